#!/usr/bin/env python3
"""accelerate_offload.py MOUNTPOINT: Hugging Face Accelerate's disk offload with its folder on a swapfs mount.

Needs torch and accelerate, which know nothing of swapfs: the offload folder is just a path. What it prints is in
expected/accelerate_offload.txt.
"""

import os
import shutil
import sys
from collections import Counter

import torch
from accelerate import disk_offload

LAYERS, WIDTH = 6, 1024


def statuses(folder):
    """How many of Accelerate's .dat files have which status, once nothing is in flight."""
    counts = Counter()
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        while (status := os.getxattr(path, "user.swap.wait")) == b"inflight":
            pass
        if name.endswith(".weight.dat"):
            counts[status.decode()] += 1
    return ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))


def main():
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    folder = os.path.join(sys.argv[1], "accelerate_offload")
    os.mkdir(folder)
    try:
        run(folder)
    finally:
        shutil.rmtree(folder)


@torch.no_grad()
def run(folder):
    torch.manual_seed(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = torch.nn.Sequential(*(torch.nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)))
    batch = torch.randn(16, WIDTH)
    expected = model(batch)

    disk_offload(model, offload_dir=folder, execution_device=device)
    in_memory = sum(parameter.device.type != "meta" for parameter in model.parameters())
    print(f"offloaded, {in_memory} parameters in memory; weights on the mount: {statuses(folder)}")
    os.setxattr(folder, "user.swap.request", b"release")  # A folder: all partitions below it.
    while os.getxattr(os.path.dirname(folder), "user.swap.wait") != b"idle":
        pass
    print(f"released: {statuses(folder)}")
    found = model(batch.to(device))
    print(f"after a forward pass: {statuses(folder)}")
    if not torch.allclose(found.cpu(), expected, atol=0 if device.type == "cpu" else 1e-3):
        sys.exit("accelerate_offload: the output differs from that of the model in memory")
    print("the output is that of the model in memory")


main()
