#!/usr/bin/env python3
"""safetensors_file.py MOUNTPOINT: a safetensors checkpoint on a swapfs mount, read whole, tensor by tensor, and replaced.

Needs safetensors and numpy; with torch, framework="pt" and safetensors.torch do the same. What it prints is in
expected/safetensors_file.txt.
"""

import os
import shutil
import sys

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save_file


def settled(path):
    """The status once nothing of the partition is in flight."""
    while (status := os.getxattr(path, "user.swap.wait")) == b"inflight":
        pass
    return status.decode()


def main():
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    folder = os.path.join(sys.argv[1], "safetensors_file")
    os.mkdir(folder)
    try:
        run(os.path.join(folder, "model.safetensors"))
    finally:
        shutil.rmtree(folder)


def run(path):
    random = np.random.default_rng(1)
    model = {f"layers.{number}.weight": random.standard_normal((1024, 1024), np.float32) for number in range(8)}
    save_file(model, path)
    print(f"saved: {len(model)} tensors, {settled(path)}")

    os.setxattr(path, "user.swap.request", b"release")
    print(f"released: {settled(path)}")
    with safe_open(path, framework="np") as file:  # A mapping: only what is touched is read.
        assert np.array_equal(file.get_tensor("layers.3.weight"), model["layers.3.weight"])
        assert np.array_equal(file.get_slice("layers.5.weight")[10:20, :7], model["layers.5.weight"][10:20, :7])
    resident, size = (int(os.getxattr(path, f"user.swap.{key}")) for key in ("resident", "size"))
    print(f"one tensor and a slice of another: equal, less than the file read for them: {'yes' if resident < size else 'no'}")

    os.setxattr(path, "user.swap.request", b"swap_in")  # A whole load is ahead: let it begin.
    loaded = load_file(path)
    assert all(np.array_equal(loaded[name], model[name]) for name in model)
    print(f"load_file: equal, {settled(path)}")

    with safe_open(path, framework="np") as former:  # A new checkpoint takes the name; who has the old one open keeps it.
        save_file({name: -tensor for name, tensor in model.items()}, path + ".new")
        os.replace(path + ".new", path)
        assert np.array_equal(former.get_tensor("layers.0.weight"), model["layers.0.weight"])
    assert np.array_equal(load_file(path)["layers.0.weight"], -model["layers.0.weight"])
    print("replaced: new readers see the new one, the old mapping still reads the old one")


main()
