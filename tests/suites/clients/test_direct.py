"""O_DIRECT with preadv and pwritev: aligned memory, several threads, vectors, and coherence with ordinary handles."""

import mmap
import os
from concurrent.futures import ThreadPoolExecutor

from shared import MIB, OnMount, main, noise

LENGTH = 128 * MIB


def aligned(data):
    """Page-aligned memory that holds `data`."""
    memory = mmap.mmap(-1, len(data))
    memory[:] = data
    return memory


class Direct(OnMount):
    def setUp(self):
        super().setUp()
        self.file = os.open(self.path("t"), os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o600)

    def tearDown(self):
        os.close(self.file)
        super().tearDown()

    def write_all(self, data, workers):
        source = memoryview(aligned(data))
        with ThreadPoolExecutor(workers) as pool:
            counts = pool.map(lambda at: os.pwritev(self.file, [source[at : at + MIB]], at), range(0, LENGTH, MIB))
            self.assertEqual(set(counts), {MIB})

    def read_all(self, workers):
        memory = mmap.mmap(-1, LENGTH)
        target = memoryview(memory)
        with ThreadPoolExecutor(workers) as pool:
            counts = pool.map(lambda at: os.preadv(self.file, [target[at : at + MIB]], at), range(0, LENGTH, MIB))
            self.assertEqual(set(counts), {MIB})
        return bytes(memory)

    def test_one_thread_and_six_see_the_same_bytes(self):
        for workers in (1, 6):
            data = noise(workers, LENGTH)
            self.write_all(data, workers)
            self.assertEqual(os.fstat(self.file).st_size, LENGTH)
            self.assert_same(self.read_all(7 - workers), data, f"{workers} writers")
        os.fsync(self.file)

    def test_a_vector_of_pieces_is_one_transfer(self):
        data = noise(11, MIB)
        os.pwritev(self.file, [memoryview(aligned(data))], 0)
        pieces = [mmap.mmap(-1, 4096) for _ in range(32)]
        self.assertEqual(os.preadv(self.file, pieces, 20480), 32 * 4096)
        self.assertEqual(b"".join(bytes(piece) for piece in pieces), data[20480 : 20480 + 32 * 4096])

    def test_no_alignment_duty_for_the_client(self):
        data = noise(12, 3 * MIB + 5)
        for offset, length in ((0, 13), (1, 512), (4095, 2), (700_001, MIB + 3), (MIB - 1, 2)):
            os.pwrite(self.file, data, 0)
            os.pwrite(self.file, b"\xa5" * length, offset)
            expected = data[:offset] + b"\xa5" * length + data[offset + length :]
            self.assertEqual(os.pread(self.file, length + 2, max(offset - 1, 0)),
                             expected[max(offset - 1, 0) : max(offset - 1, 0) + length + 2])
            self.assert_holds("t", expected)

    def test_direct_and_ordinary_handles_agree_at_once(self):
        os.pwritev(self.file, [aligned(noise(13, MIB))], 0)
        page = aligned(b"D" * 4096)
        with open(self.path("t"), "r+b", buffering=0) as plain:
            os.pread(plain.fileno(), 8192, 4096)
            os.pwritev(self.file, [page], 8192)
            self.assertEqual(os.pread(plain.fileno(), 4096, 8192), b"D" * 4096)
            os.pwrite(plain.fileno(), b"P" * 4096, 12288)
            os.preadv(self.file, [page], 12288)
            self.assertEqual(page[:], b"P" * 4096)

    def test_the_end_of_a_file_is_where_it_was_cut(self):
        data = noise(14, 2 * MIB)
        os.pwritev(self.file, [aligned(data)], 0)
        os.ftruncate(self.file, 2 * MIB - 1000)
        buffer = mmap.mmap(-1, MIB)
        self.assertEqual(os.preadv(self.file, [buffer], MIB), MIB - 1000)
        self.assertEqual(buffer[: MIB - 1000], data[MIB:-1000])
        self.assertEqual(os.preadv(self.file, [buffer], 2 * MIB), 0)

    def test_allocated_space_reads_as_zeros(self):
        os.posix_fallocate(self.file, 0, 16 * MIB)
        self.assertEqual(os.fstat(self.file).st_size, 16 * MIB)
        self.assert_holds("t", bytes(16 * MIB))


if __name__ == "__main__":
    main()
