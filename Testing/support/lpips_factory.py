"""Random weights for LPIPS, in the file that the real ones come in."""

from pathlib import Path

import torch
from torch import nn
from torchvision_cpu import imported


def write_lpips_weights(folder: Path) -> nn.Sequential:
    """Write a file for the features of AlexNet (Krizhevsky 2014) and return them; a test skips without lpips."""
    imported("lpips")
    torch.manual_seed(0)
    trunk = imported("torchvision.models").alexnet(weights=None).features
    torch.save(
        {f"features.{key}": value for key, value in trunk.state_dict().items()}, folder / "alexnet-owt-7be5be79.pth"
    )
    return trunk
