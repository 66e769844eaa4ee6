#!/usr/bin/env python3
"""torch_layers.py MOUNTPOINT: a PyTorch module whose parameters live on a swapfs mount and come in layer by layer.

Needs torch. Each layer's parameters are one partition. While a layer works, the next one is being swapped in; when it is done, its
memory and the pool's copy go. With a GPU, layers come by way of one pinned buffer. What it prints (without a GPU) is in expected/torch_layers.txt:
a line for each layer, with the statuses of all partitions, A for available and . for not_available.
"""

import os
import shutil
import sys

import torch

LAYERS, WIDTH = 8, 1024
LETTERS = {"available": "A", "not_available": "."}


def ask(path, request):
    """Asks for a swap-in or release, which returns at once."""
    os.setxattr(path, "user.swap.request", request.encode())


def settled(path):
    """The status once nothing of the partition is in flight."""
    while (status := os.getxattr(path, "user.swap.wait")) == b"inflight":
        pass
    return status.decode()


class SwappedLayer:
    """Keeps one layer's parameters in one file; in memory they are only while the layer works."""

    def __init__(self, layer, path, following, staging, device):
        self.path, self.following, self.staging, self.device = path, following, staging, device
        self.parameters = list(layer.parameters())
        self.shapes = [parameter.shape for parameter in self.parameters]
        with open(path, "wb", buffering=0) as file:
            for parameter in self.parameters:
                data = memoryview(parameter.detach().numpy()).cast("B")
                while data:
                    data = data[file.write(data) :]
        ask(path, "release")
        self.drop()
        layer.register_forward_pre_hook(lambda layer, inputs: self.swap_in())
        layer.register_forward_hook(lambda layer, inputs, output: self.drop())

    def swap_in(self):
        if self.following:
            ask(self.following, "swap_in")  # Its transfers go on while this layer works.
        length = os.path.getsize(self.path)
        data = memoryview(self.staging.numpy())[:length]
        with open(self.path, "rb", buffering=0) as file:
            while data:
                data = data[file.readinto(data) :]
        ask(self.path, "release")  # The pool's copy; the next pass reads it again.
        flat = self.staging[:length].view(torch.float32).to(self.device, non_blocking=True, copy=True)
        if self.device == "cuda":
            torch.cuda.current_stream().synchronize()  # The staging buffer is the next layer's.
        sizes = [shape.numel() for shape in self.shapes]
        for parameter, shape, part in zip(self.parameters, self.shapes, flat.split(sizes)):
            parameter.data = part.view(shape)

    def drop(self):
        for parameter in self.parameters:
            parameter.data = torch.empty(0, device=self.device)


def main():
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    folder = os.path.join(sys.argv[1], "torch_layers")
    os.mkdir(folder)
    try:
        run(folder)
    finally:
        shutil.rmtree(folder)


@torch.no_grad()
def run(folder):
    torch.manual_seed(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    layers = [torch.nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)]
    model = torch.nn.Sequential(*layers)
    batch = torch.randn(16, WIDTH)
    expected = model(batch)

    paths = [os.path.join(folder, f"{number}_param.tensor.swp") for number in range(LAYERS)]
    largest = max(sum(parameter.numel() * 4 for parameter in layer.parameters()) for layer in layers)
    staging = torch.empty(largest, dtype=torch.uint8, pin_memory=device == "cuda")
    for number, layer in enumerate(layers):
        following = paths[number + 1] if number + 1 < LAYERS else None
        SwappedLayer(layer, paths[number], following, staging, device)

    def show(what):
        # Waits for what is in flight, so that it shows the same every time.
        print(f"{what:<12}", *(LETTERS[settled(path)] for path in paths))

    for number, layer in enumerate(layers):
        layer.register_forward_hook(lambda layer, inputs, output, number=number: show(f"layer {number}"))
    print(f"{LAYERS} layers of {largest} bytes, worked on by the {device}")
    show("swapped out")
    found = model(batch.to(device))
    left = sum(parameter.numel() for parameter in model.parameters())
    print(f"parameters in memory afterwards: {left}")
    if not torch.allclose(found.cpu(), expected, atol=0 if device == "cpu" else 1e-3):
        sys.exit("torch_layers: the output differs from that of the module in memory")
    print("the output is that of the module in memory")


main()
