"""What the client programs share: a folder of their own on the mount, reproducible bytes, and the run itself."""

import os
import shutil
import tempfile
import unittest

import numpy as np

MIB = 1 << 20


def noise(seed, length):
    """`length` bytes that depend on `seed` alone."""
    return np.random.default_rng(seed).bytes(length)


class OnMount(unittest.TestCase):
    """A test with a folder of its own below SWAPFS_TEST_DIR; removing it must leave nothing behind."""

    def setUp(self):
        self.folder = tempfile.mkdtemp(dir=os.environ["SWAPFS_TEST_DIR"])

    def tearDown(self):
        shutil.rmtree(self.folder)
        self.assertFalse(os.path.exists(self.folder))

    def path(self, *names):
        return os.path.join(self.folder, *names)

    def put(self, name, data):
        with open(self.path(name), "wb") as file:
            file.write(data)
        return self.path(name)

    def assert_holds(self, name, data):
        """The file's bytes are `data`; a long difference is named by its first offset only."""
        with open(self.path(name), "rb") as file:
            found = file.read()
        self.assert_same(found, data, name)

    def assert_same(self, found, data, what):
        if len(found) != len(data):
            self.fail(f"{what}: {len(found)} bytes instead of {len(data)}")
        if found != data:
            wrong = np.frombuffer(found, np.uint8) != np.frombuffer(data, np.uint8)
            self.fail(f"{what}: first difference at {int(wrong.argmax())}, {int(wrong.sum())} bytes differ")


def main():
    unittest.main(module="__main__")
