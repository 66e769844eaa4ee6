#!/usr/bin/env python3
"""deepspeed_zero3.py MOUNTPOINT: DeepSpeed's ZeRO-3 with parameters and optimizer states on a swapfs mount.

Needs torch and deepspeed, and for DeepSpeed's aio handle a C++ compiler and libaio's headers (Debian: g++, libaio-dev). DeepSpeed
knows nothing of swapfs: its nvme_path is just a folder there. Trains for a few steps, on one process, with and without
the offload, and compares the losses. What it prints, but for DeepSpeed's own log, is in expected/deepspeed_zero3.txt.
"""

import os
import shutil
import sys
from collections import Counter

os.environ.setdefault("DS_ACCELERATOR", "cuda" if os.path.exists("/dev/nvidiactl") else "cpu")
os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="29517")

import deepspeed
import torch

LAYERS, WIDTH, STEPS = 4, 1024, 4


def config(nvme_path):
    """What a user's ds_config.json says; `swapfs mount --config` takes the same file."""
    zero = {"stage": 3, "stage3_param_persistence_threshold": 0, "sub_group_size": WIDTH * WIDTH}
    if nvme_path:
        device = {"device": "nvme", "nvme_path": nvme_path, "pin_memory": False}
        zero["offload_param"] = {**device, "buffer_count": 5, "buffer_size": 2 * WIDTH * WIDTH}
        zero["offload_optimizer"] = {**device, "buffer_count": 4}
    return {
        "train_micro_batch_size_per_gpu": 16,
        "optimizer": {"type": "Adam", "params": {"lr": 1e-3, "torch_adam": True}},
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": zero,
        "aio": {"block_size": 1 << 20, "queue_depth": 8, "intra_op_parallelism": 1},
    }


def train(nvme_path):
    """The loss of each step."""
    torch.manual_seed(1)
    layers = (layer for _ in range(LAYERS) for layer in (torch.nn.Linear(WIDTH, WIDTH), torch.nn.Tanh()))
    model = torch.nn.Sequential(*layers)
    engine, *_ = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=config(nvme_path))
    batch = torch.randn(16, WIDTH, device=engine.device)
    target = torch.randn(16, WIDTH, device=engine.device)
    losses = []
    for _ in range(STEPS):
        loss = torch.nn.functional.mse_loss(engine(batch), target)
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    engine.destroy()
    return losses


def statuses(folder, mountpoint):
    """How many partitions of each kind there are and, once they are released, how many have which status."""
    os.setxattr(folder, "user.swap.request", b"release")  # A folder: all partitions below it.
    while os.getxattr(mountpoint, "user.swap.wait") != b"idle":
        pass
    kinds, counts = Counter(), Counter()
    for at, _, names in os.walk(folder):
        for name in names:
            kinds["parameters" if "_param." in name else "gradients" if "_gradient_" in name else "optimizer states"] += 1
            counts[os.getxattr(os.path.join(at, name), "user.swap.status").decode()] += 1
    return kinds, counts


def main():
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    folder = os.path.join(sys.argv[1], "deepspeed_zero3")
    os.mkdir(folder)
    try:
        deepspeed.init_distributed(dist_backend="nccl" if os.environ["DS_ACCELERATOR"] == "cuda" else "gloo")
        swapped, plain = train(folder), train(None)
        kinds, counts = statuses(folder, sys.argv[1])
    finally:
        shutil.rmtree(folder)
    for title, found in (("files", kinds), ("released", counts)):
        print(f"zero3: {title}:", ", ".join(f"{count} {what}" for what, count in sorted(found.items())))
    for step, (here, there) in enumerate(zip(swapped, plain)):
        print(f"zero3: step {step}: loss {here:.2f}")
        if abs(here - there) > 1e-3 * there:
            sys.exit(f"deepspeed_zero3: without the offload the loss of step {step} is {there}, not {here}")
    print("zero3: the losses are those without the offload")


main()
