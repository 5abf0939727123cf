"""What reads the masked autoencoder without teaching it: completion and read-out.

    biharmonic fill of the visible voxels, decoder's patches, visible voxels, all detached
      -> Completion, a small U-Net across patch borders -> hidden voxels
    outputs of the encoder's blocks, detached
      -> ReadOut, linear -> visible patches: auto-encoding

The decoder makes every patch of one vector, so neighbours disagree about their common border. The completion
(Ronneberger et al. 2015, arXiv 1505.04597) starts as the fill.
"""

import itertools
import math

import torch
import torch.nn.functional as F
from torch import nn

from MAESILLib.config import ModelConfig
from MAESILLib.mae.model import Mix


def halved(image: torch.Tensor) -> torch.Tensor:
    """Make each 2x2x2 voxels the channels of one cell: (B, C, D, H, W) to (B, 8 C, D/2, H/2, W/2)."""
    batch, channels, depth, height, width = image.shape
    x = image.reshape(batch, channels, depth // 2, 2, height // 2, 2, width // 2, 2)
    return x.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(batch, 8 * channels, depth // 2, height // 2, width // 2)


def doubled(cells: torch.Tensor) -> torch.Tensor:
    """Invert :func:`halved` for one channel: (B, 8, d, h, w) to (B, 1, 2d, 2h, 2w)."""
    batch, _, d, h, w = cells.shape
    x = cells.view(batch, 2, 2, 2, d, h, w).permute(0, 4, 1, 5, 2, 6, 3)
    return x.reshape(batch, 1, 2 * d, 2 * h, 2 * w)


class Conv3x3x3(nn.Conv3d):
    """3x3x3 convolution, computed as a 2D convolution of stacked neighbouring slices.

    On a CPU, with few channels, several times as fast as PyTorch's own (Testing/Benchmarks/bench_convolution.py).
    """

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(channels, out_channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, _, depth, _, _ = x.shape
        padded = F.pad(x.transpose(1, 2), (0, 0, 0, 0, 0, 0, 1, 1))
        stacked = torch.cat([padded[:, k : k + depth] for k in range(3)], 2).flatten(0, 1)
        weight = self.weight.transpose(1, 2).flatten(1, 2)
        return F.conv2d(stacked, weight, self.bias, padding=1).unflatten(0, (batch, depth)).transpose(1, 2)


class ConvBlock(nn.Module):
    """Residual block of two 3x3x3 convolutions on (B, C, d, h, w), a ReLU before each."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = Conv3x3x3(channels, channels)
        self.second = Conv3x3x3(channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(F.relu(self.first(F.relu(x))))


class Completion(nn.Module):
    """U-Net from fill, decoder's picture and visible voxels to the intensities of the first window."""

    def __init__(self, config: ModelConfig, windows: int) -> None:
        super().__init__()
        channels = config.completion_channels
        steps = list(itertools.pairwise(channels))
        self.stem = Conv3x3x3(8 + 8 * windows + 1, channels[0])
        self.down = nn.ModuleList(nn.Conv3d(fine, coarse, 2, stride=2) for fine, coarse in steps)
        self.blocks = nn.ModuleList(ConvBlock(coarse) for coarse in channels)
        self.up = nn.ModuleList(nn.ConvTranspose3d(coarse, fine, 2, stride=2) for fine, coarse in steps)
        self.voxels = Conv3x3x3(channels[0], 16)
        # zero_init: training starts at the fill
        for parameter in self.voxels.parameters():
            nn.init.zeros_(parameter)

    def forward(self, filled: torch.Tensor, picture: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        """Complete images.

        Args:
            filled: (B, 1, D, H, W) in [0, 1], visible voxels and the biharmonic fill of the hidden ones.
            picture: (B, windows, D, H, W), visible voxels and the decoder's patches.
            visible: (B, D, H, W) bool token grid, True where the patch is visible.

        Returns:
            (B, 1, D, H, W), not clipped; of interest where the voxels are hidden.
        """
        fill, windows = halved(filled), halved(picture)
        known = F.interpolate(visible[:, None].to(fill.dtype), size=fill.shape[2:])
        x = self.stem(torch.cat([fill * 2 - 1, windows * 2 - 1, known], 1))
        features = []
        for down in self.down:
            features.append(x)
            x = down(F.relu(x))
        x = self.blocks[-1](x)
        for block, up, feature in zip(self.blocks[-2::-1], self.up[::-1], features[::-1], strict=True):
            x = block(up(F.relu(x)) + feature)
        # where the decoder is better than the fill, the gate opens for it
        gate, residual = self.voxels(F.relu(x)).split(8, 1)
        return doubled(fill + gate * (windows[:, :8] - fill) + residual)


class ReadOut(nn.Module):
    """Linear read-out of the visible patches, first window, from a learned mix of the encoder's outputs."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.mix = Mix(config.encoder_depth)
        self.head = nn.Linear(config.encoder_width, math.prod(config.patch_size))

    def forward(self, encoded: list[torch.Tensor]) -> torch.Tensor:
        """Return the patches (B, N, P) of encoded tokens, each (B, N, width)."""
        return self.head(self.mix(encoded))
