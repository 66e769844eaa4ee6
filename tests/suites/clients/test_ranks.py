"""Eight processes at once, as the ranks of a training run: folders of their own, one file read by all, one written by all."""

import fcntl
import multiprocessing
import os

from shared import MIB, OnMount, main, noise

RANKS = 8
SLICE = 2 * MIB + 1001


def own_folder(folder, rank):
    """Writes, synchronizes, reads back and rewrites partitions in the rank's folder."""
    place = os.path.join(folder, f"rank{rank}")
    os.mkdir(place)
    for turn in range(2):
        for index in range(4):
            with open(os.path.join(place, f"{index}_param.tensor.swp"), "wb") as file:
                file.write(noise((rank, index, turn), 8 * MIB + rank * 7 + index))
                file.flush()
                os.fsync(file.fileno())
        handle = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(handle)
        os.close(handle)
        for index in range(4):
            with open(os.path.join(place, f"{index}_param.tensor.swp"), "rb") as file:
                if file.read() != noise((rank, index, turn), 8 * MIB + rank * 7 + index):
                    return f"rank {rank}, turn {turn}, partition {index}"
    return None


def read_shared(folder, rank):
    """Reads the shared file in steps of the rank's own odd length."""
    expected = noise(31, 48 * MIB)
    step = MIB + 4096 * rank + rank
    with open(os.path.join(folder, "shared"), "rb", buffering=0) as file:
        for start in range(0, len(expected), step):
            piece = os.pread(file.fileno(), step, start)
            if piece != expected[start : start + step]:
                return f"reader {rank} at {start}"
    return None


def write_slice(folder, rank):
    """Writes the rank's slice of one file: its neighbours' bytes lie in the same blocks and pages."""
    handle = os.open(os.path.join(folder, "sliced"), os.O_RDWR | os.O_CREAT, 0o644)
    data = noise((32, rank), SLICE)
    for start in range(0, SLICE, 65521):
        os.pwrite(handle, data[start : start + 65521], rank * SLICE + start)
    os.fsync(handle)
    os.close(handle)
    return None


def append_lines(folder, rank):
    """Appends numbered lines to one log, every second one under flock."""
    handle = os.open(os.path.join(folder, "log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for index in range(100):
        if index % 2:
            fcntl.flock(handle, fcntl.LOCK_EX)
        os.write(handle, b"%d %d\n" % (rank, index))
        if index % 2:
            fcntl.flock(handle, fcntl.LOCK_UN)
    os.close(handle)
    return None


def count_under_lock(folder, rank):
    """Adds one, fifty times, to a number in a file that only fcntl locks protect."""
    with open(os.path.join(folder, "counter"), "r+b", buffering=0) as file:
        for _ in range(50):
            fcntl.lockf(file, fcntl.LOCK_EX, 8, 0)
            value = int.from_bytes(os.pread(file.fileno(), 8, 0), "little")
            os.pwrite(file.fileno(), (value + 1).to_bytes(8, "little"), 0)
            fcntl.lockf(file, fcntl.LOCK_UN, 8, 0)
    return None


class Ranks(OnMount):
    def every(self, work):
        with multiprocessing.get_context("fork").Pool(RANKS) as pool:
            answers = pool.starmap(work, [(self.folder, rank) for rank in range(RANKS)], chunksize=1)
        self.assertEqual([answer for answer in answers if answer], [])

    def test_every_rank_finds_its_own_partitions(self):
        self.every(own_folder)

    def test_all_read_one_file(self):
        self.put("shared", noise(31, 48 * MIB))
        self.every(read_shared)

    def test_neighbouring_slices_do_not_disturb_each_other(self):
        self.every(write_slice)
        self.assert_holds("sliced", b"".join(noise((32, rank), SLICE) for rank in range(RANKS)))

    def test_no_appended_line_is_lost_or_torn(self):
        self.every(append_lines)
        with open(self.path("log")) as file:
            lines = file.read().splitlines()
        self.assertEqual(sorted(lines), sorted(f"{rank} {index}" for rank in range(RANKS) for index in range(100)))

    def test_a_counter_under_locks_counts_everyone(self):
        self.put("counter", bytes(8))
        self.every(count_under_lock)
        self.assert_holds("counter", (RANKS * 50).to_bytes(8, "little"))


if __name__ == "__main__":
    main()
