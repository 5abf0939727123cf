"""3x3x3 convolutions of the completion beside PyTorch's own, forward and backward, CPU time on one thread.

python Testing/Benchmarks/bench_convolution.py
"""

import time

import torch
import torch.nn.functional as F

from MAESILLib.mae.completion import Conv3x3x3

SHAPES = ((17, 16, 32), (16, 16, 32), (32, 32, 16))
"""Channels in and out, and voxels of a side: those of preset small on a crop of 64^3."""


def cpu_ms(layer: Conv3x3x3, x: torch.Tensor, own: bool) -> float:
    """Return the least CPU time of three forward and backward passes."""
    times = []
    for _ in range(4):
        began = time.process_time()
        y = layer(x) if own else F.conv3d(x, layer.weight, layer.bias, padding=1)
        y.sum().backward()
        times.append(1e3 * (time.process_time() - began))
    return min(times[1:])


def main() -> None:
    """Print a row for each shape."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print("channels   side  PyTorch ms  by slices ms  ratio")
    for channels, out, side in SHAPES:
        layer, x = Conv3x3x3(channels, out), torch.randn(1, channels, side, side, side, requires_grad=True)
        theirs, ours = cpu_ms(layer, x, False), cpu_ms(layer, x, True)
        print(f"{channels:3} > {out:3}  {side:5}  {theirs:10.1f}  {ours:12.1f}  {theirs / ours:5.1f}")


if __name__ == "__main__":
    main()
