"""numpy: memmaps in all four modes, flushed and compared through every other way to the same bytes; save and load."""

import os

import numpy as np

from shared import MIB, OnMount, main

COUNT = 24 * MIB + 37


class Memmaps(OnMount):
    def setUp(self):
        super().setUp()
        self.random = np.random.default_rng(21)
        self.values = self.random.standard_normal(COUNT, dtype=np.float32)

    def open(self, mode, **more):
        return np.memmap(self.path("t"), dtype=np.float32, mode=mode, **more)

    def made(self):
        view = self.open("w+", shape=(COUNT,))
        view[:] = self.values
        view.flush()
        return view

    def test_a_new_map_reaches_every_other_reader(self):
        view = self.made()
        self.assertEqual(os.path.getsize(self.path("t")), self.values.nbytes)
        self.assertTrue(np.array_equal(np.fromfile(self.path("t"), np.float32), self.values))
        del view
        self.assertTrue(np.array_equal(self.open("r"), self.values))

    def test_random_stores_and_writes_agree(self):
        self.made()
        view = self.open("r+")
        for turn in range(300):
            start = int(self.random.integers(0, COUNT - 30000))
            piece = self.random.standard_normal(int(self.random.integers(1, 30000)), dtype=np.float32)
            if turn % 3:
                view[start : start + piece.size] = piece
            else:
                with open(self.path("t"), "r+b", buffering=0) as file:
                    self.assertEqual(os.pwrite(file.fileno(), piece.tobytes(), start * 4), piece.nbytes)
            self.values[start : start + piece.size] = piece
            if turn % 60 == 0:
                view.flush()
            with open(self.path("t"), "rb", buffering=0) as file:
                self.assertEqual(os.pread(file.fileno(), piece.nbytes, start * 4), piece.tobytes())
            self.assertTrue(np.array_equal(view[start : start + piece.size], piece))
        self.assertTrue(np.array_equal(view, self.values))
        del view
        self.assertTrue(np.array_equal(np.fromfile(self.path("t"), np.float32), self.values))

    def test_a_private_map_changes_nothing(self):
        self.made()
        view = self.open("c")
        view[:5000] = 0
        self.assertEqual(float(view[:5000].sum()), 0)
        del view
        self.assertTrue(np.array_equal(self.open("r"), self.values))

    def test_a_map_may_start_anywhere(self):
        self.made()
        view = np.memmap(self.path("t"), dtype=np.uint8, mode="r", offset=4099, shape=(100001,))
        self.assertEqual(view.tobytes(), self.values.view(np.uint8)[4099 : 4099 + 100001].tobytes())

    def test_saved_arrays_load_mapped_or_not(self):
        shaped = self.values[: 513 * 1021].reshape(513, 1021)
        np.save(self.path("a.npy"), shaped)
        self.assertTrue(np.array_equal(np.load(self.path("a.npy")), shaped))
        self.assertTrue(np.array_equal(np.load(self.path("a.npy"), mmap_mode="r"), shaped))
        half = np.lib.format.open_memmap(self.path("b.npy"), mode="w+", dtype=np.float16, shape=(300, 1021))
        half[:] = 1
        half[100:200] = 7
        half.flush()
        del half
        self.assertEqual(int(np.load(self.path("b.npy"), mmap_mode="r").astype(np.int64).sum()), 1021 * (200 + 700))


if __name__ == "__main__":
    main()
