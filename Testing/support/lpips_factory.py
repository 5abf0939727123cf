"""Weights for LPIPS of random numbers, in the two files that the real ones come in."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

CHANNELS = (64, 192, 384, 256, 256)


def alexnet() -> nn.Sequential:
    """The features of AlexNet (Krizhevsky 2014), as torchvision numbers them."""
    return nn.Sequential(
        *(nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2)),
    )


def write_lpips_weights(folder: Path) -> tuple[nn.Sequential, list[torch.Tensor]]:
    """Write both files; return the network and the weights of its channels."""
    torch.manual_seed(0)
    trunk = alexnet()
    torch.save(
        {f"features.{key}": value for key, value in trunk.state_dict().items()}, folder / "alexnet-owt-7be5be79.pth"
    )
    channels = [torch.rand(1, n, 1, 1) for n in CHANNELS]
    torch.save({f"lin{n}.model.1.weight": value for n, value in enumerate(channels)}, folder / "alex.pth")
    return trunk, channels
