#!/usr/bin/env python3
"""plain_numpy.py MOUNTPOINT: plain Python files, numpy files and a numpy memmap on a swapfs mount, with where each one is.

Needs numpy. What it prints is in expected/plain_numpy.txt.
"""

import os
import shutil
import sys

import numpy as np

MIB = 1 << 20


def ask(path, request):
    """Asks for a swap-in, swap-out or release, which returns at once."""
    os.setxattr(path, "user.swap.request", request.encode())


def settled(path):
    """The status once nothing of the partition is in flight."""
    while (status := os.getxattr(path, "user.swap.wait")) == b"inflight":
        pass
    return status.decode()


def swapped(path, key):
    return int(os.getxattr(path, f"user.swap.{key}"))


def plain(path, bytes_written):
    with open(path, "wb") as file:
        file.write(bytes_written)
    print(f"written: {settled(path)}, {swapped(path, 'resident')} of {swapped(path, 'size')} bytes in the pool")
    ask(path, "release")
    print(f"released: {settled(path)}, {swapped(path, 'resident')} bytes in the pool")
    ask(path, "swap_in")
    print(f"swapped in: {settled(path)}")
    with open(path, "rb") as file:
        assert file.read() == bytes_written
    print("read: equal")


def saved(path, array):
    np.save(path, array)
    ask(path, "release")
    settled(path)
    rows = np.load(path, mmap_mode="r")[100:110]
    assert np.array_equal(rows, array[100:110])
    whole = swapped(path, "resident") == swapped(path, "size")
    print(f"np.load(mmap_mode='r'), ten rows: equal, the whole file read for it: {'yes' if whole else 'no'}")
    assert np.array_equal(np.load(path), array)
    print(f"np.load: equal, {settled(path)}")


def mapped(path, array):
    memmap = np.memmap(path, array.dtype, "w+", shape=array.shape)
    memmap[:] = array
    memmap.flush()  # msync: on the disk when it returns.
    assert np.array_equal(np.fromfile(path, array.dtype), array.ravel())
    memmap[7] = -1
    with open(path, "rb") as file:  # What the mapping holds is what read() finds, flushed or not.
        file.seek(7 * array.strides[0])
        assert np.all(np.frombuffer(file.read(array.strides[0]), array.dtype) == -1)
    print("np.memmap: the file agrees with the mapping")


def main():
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    folder = os.path.join(sys.argv[1], "plain_numpy")
    os.mkdir(folder)
    try:
        array = np.random.default_rng(1).standard_normal((4096, 1024), np.float32)
        plain(os.path.join(folder, "tensor.swp"), array.tobytes()[: 8 * MIB + 5])
        saved(os.path.join(folder, "tensor.npy"), array)
        mapped(os.path.join(folder, "tensor.map"), array)
    finally:
        shutil.rmtree(folder)


main()
