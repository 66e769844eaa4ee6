"""Plain files: odd lengths, seeks, append, truncation, names that change while a file is open, directories, statvfs."""

import errno
import os

import numpy as np

from shared import MIB, OnMount, main, noise


class PlainFiles(OnMount):
    def test_every_odd_length_comes_back(self):
        for length in (0, 1, 511, 512, 4095, 4096, 4097, MIB - 1, MIB, MIB + 1, 5 * MIB + 4093, 150 * MIB + 7):
            data = noise(length, length)
            path = self.put("t", data)
            self.assertEqual(os.path.getsize(path), length)
            self.assert_holds("t", data)

    def test_unbuffered_readinto_fills_a_large_buffer(self):
        data = noise(1, 96 * MIB + 13)
        path = self.put("t", data)
        buffer = bytearray(len(data))
        with open(path, "rb", buffering=0) as file:
            filled = 0
            while count := file.readinto(memoryview(buffer)[filled : filled + 3 * MIB + 1]):
                filled += count
        self.assertEqual(filled, len(data))
        self.assert_same(bytes(buffer), data, "readinto")

    def test_overwrites_anywhere_match_a_copy_in_memory(self):
        copy = bytearray(noise(2, 24 * MIB + 77))
        path = self.put("t", copy)
        random = np.random.default_rng(3)
        with open(path, "r+b", buffering=0) as file:
            for turn in range(200):
                offset = int(random.integers(0, len(copy) - MIB))
                piece = noise((4, turn), int(random.integers(1, MIB)))
                self.assertEqual(os.pwrite(file.fileno(), piece, offset), len(piece))
                copy[offset : offset + len(piece)] = piece
                if turn % 40 == 0:
                    os.fdatasync(file.fileno())
        self.assert_holds("t", bytes(copy))

    def test_append_truncation_and_holes(self):
        data = noise(5, 3 * MIB + 11)
        path = self.put("t", data)
        with open(path, "ab") as file:
            file.write(b"end" * 1000)
        data += b"end" * 1000
        self.assert_holds("t", data)
        os.truncate(path, MIB + 5)
        os.truncate(path, 2 * MIB + 9)
        data = data[: MIB + 5] + bytes(MIB + 4)
        self.assert_holds("t", data)
        with open(path, "r+b") as file:
            file.seek(4 * MIB, os.SEEK_END)
            file.write(b"beyond")
        self.assert_holds("t", data + bytes(4 * MIB) + b"beyond")
        self.put("t", b"cut by O_TRUNC")
        self.assert_holds("t", b"cut by O_TRUNC")

    def test_an_open_file_survives_its_name(self):
        path = self.put("old", b"old" * 5000)
        other = self.put("new", b"new" * 7000)
        with open(path, "rb") as held:
            os.replace(other, path)
            self.assertEqual(held.read(), b"old" * 5000)
        self.assert_holds("old", b"new" * 7000)
        self.assertEqual(os.listdir(self.folder), ["old"])
        with open(path, "r+b", buffering=0) as held:
            os.unlink(path)
            self.assertEqual(os.fstat(held.fileno()).st_nlink, 0)
            os.pwrite(held.fileno(), b"NEW", 3)
            self.assertEqual(os.pread(held.fileno(), 9, 0), b"newNEWnew")
        self.assertEqual(os.listdir(self.folder), [])

    def test_directories_hold_what_was_made_in_them(self):
        for index in range(240):
            os.makedirs(self.path(f"rank{index % 8}"), exist_ok=True)
            self.put(f"rank{index % 8}/{index}_param.tensor.swp", b"%d" % index)
        os.rename(self.path("rank0"), self.path("rank8"))
        for rank in range(1, 9):
            self.assertEqual(len(os.listdir(self.path(f"rank{rank}"))), 30)
        self.assert_holds("rank8/8_param.tensor.swp", b"8")
        with self.assertRaises(FileExistsError):
            os.open(self.path("rank1", "1_param.tensor.swp"), os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        with self.assertRaises(OSError) as raised:
            os.rmdir(self.path("rank1"))
        self.assertEqual(raised.exception.errno, errno.ENOTEMPTY)

    def test_space_is_counted_as_soon_as_it_is_written(self):
        path = self.put("t", noise(6, 64 * MIB))
        self.assertGreaterEqual(os.stat(path).st_blocks * 512, 64 * MIB)
        space = os.statvfs(self.folder)
        self.assertGreater(space.f_blocks, space.f_bfree)
        self.assertGreater(space.f_files, space.f_ffree)


if __name__ == "__main__":
    main()
