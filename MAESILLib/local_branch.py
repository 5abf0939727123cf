"""The convolutional branch: what the voxels across a patch's border say of those inside it.

    prior with the visible voxels in it (B, 1, D, H, W), and which tokens are visible
      -> half resolution -> quarter resolution -> context of each token           LocalEncoder
    decoded hidden and encoded visible tokens on the token grid
      -> convolutions between neighbouring tokens                                  TokenMixing
      -> quarter -> half resolution, to each what LocalEncoder found there         LocalDecoder
      -> a residual of every voxel, plus windows made of each token that overlap   OverlappingHead
    of which the hidden voxels are used.

Attention makes every patch of one vector, so neighbours disagree about their common border. This is a
U-Net (Ronneberger et al. 2015) with the transformer at its bottom. It sees hidden voxels only as the prior
fills them, and its outputs start at zero.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import nn

from MAESILLib.config import ModelConfig, Triple


def halved(image: torch.Tensor) -> torch.Tensor:
    """Make each 2x2x2 voxels the channels of one cell: (B, 1, D, H, W) to (B, 8, D/2, H/2, W/2)."""
    batch, _, depth, height, width = image.shape
    x = image.reshape(batch, depth // 2, 2, height // 2, 2, width // 2, 2)
    return x.permute(0, 2, 4, 6, 1, 3, 5).reshape(batch, 8, depth // 2, height // 2, width // 2)


def doubled(cells: torch.Tensor) -> torch.Tensor:
    """Invert :func:`halved`: (B, 8, d, h, w) to (B, 1, 2d, 2h, 2w)."""
    batch, _, d, h, w = cells.shape
    x = cells.reshape(batch, 2, 2, 2, d, h, w).permute(0, 4, 1, 5, 2, 6, 3)
    return x.reshape(batch, 1, 2 * d, 2 * h, 2 * w)


def on_grid(tokens: torch.Tensor, grid: Triple) -> torch.Tensor:
    """View tokens (B, T, C) as (B, C, D, H, W), channels last in memory, as convolutions like it best."""
    return tokens.unflatten(1, grid).permute(0, 4, 1, 2, 3)


def _cell(config: ModelConfig) -> Triple:
    """Return a patch's cells (D, H, W) at the lowest resolution of the branch."""
    factor = 2 ** len(config.local_channels)
    d, h, w = (p // factor for p in config.patch_size)
    return d, h, w


def _zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


class ConvBlock(nn.Module):
    """Residual block of two 3x3x3 convolutions on (B, C, d, h, w), the ReLU before each."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv3d(channels, channels, 3, padding=1)
        self.second = nn.Conv3d(channels, channels, 3, padding=1)

    def start_at_zero(self) -> None:
        """Leave the features as they are."""
        _zero(self.second)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(F.relu(self.first(F.relu(x))))


class LocalEncoder(nn.Module):
    """From the filled image to features at each resolution and a context of each token."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        channels = config.local_channels
        steps = list(itertools.pairwise(channels))
        self.stem = nn.Conv3d(9, channels[0], 3, padding=1)
        self.down = nn.ModuleList(nn.Conv3d(fine, coarse, 2, stride=2) for fine, coarse in steps)
        self.blocks = nn.ModuleList(ConvBlock(coarse) for _, coarse in steps)
        self.context = nn.Conv3d(channels[-1], config.decoder_width, _cell(config), stride=_cell(config))

    def start_at_zero(self) -> None:
        """Give no context."""
        _zero(self.context)

    def forward(self, filled: torch.Tensor, is_visible: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Look at the voxels that are known or filled.

        Args:
            filled: (B, 1, D, H, W), the prior with the visible voxels in it.
            is_visible: (B, D, H, W) bool token grid.

        Returns:
            features (B, C, d, h, w) from the finest to the coarsest, and the context (B, tokens, decoder_width).
        """
        known = is_visible[:, None].to(filled.dtype)
        for axis, p in enumerate(self.patch_size, start=2):
            known = known.repeat_interleave(p // 2, axis)
        x = torch.cat([halved(filled * 2 - 1), known], 1)
        x = self.stem(x.contiguous(memory_format=torch.channels_last_3d))
        features = [x]
        for down, block in zip(self.down, self.blocks, strict=True):
            x = block(down(F.relu(x)))
            features.append(x)
        return features, self.context(F.relu(x)).flatten(2).transpose(1, 2)


class TokenMixing(nn.Module):
    """Residual 3x3x3 convolution between neighbouring tokens (B, T, C)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.conv = nn.Conv3d(width, width, 3, padding=1)
        self.out = nn.Linear(width, width)

    def start_at_zero(self) -> None:
        """Leave the tokens as they are."""
        _zero(self.out)

    def forward(self, x: torch.Tensor, grid: Triple) -> torch.Tensor:
        mixed = self.conv(on_grid(self.norm(x), grid)).permute(0, 2, 3, 4, 1).flatten(1, 3)
        return x + self.out(F.gelu(mixed, approximate="tanh"))


class OverlappingHead(nn.Module):
    """Linear head from tokens to windows two voxels larger than a patch on all sides, blended where they overlap.

    The taper is a sine squared over the four voxels that neighbours share, so that weights add up to one.
    """

    taper: torch.Tensor

    def __init__(self, width: int, patch_size: Triple) -> None:
        super().__init__()
        d, h, w = (p // 2 for p in patch_size)
        # one cell of 2x2x2 voxels is 8 channels, and one cell more on each side
        self.windows = nn.ConvTranspose3d(width, 8, (d + 2, h + 2, w + 2), stride=(d, h, w), padding=1)
        axes = [_taper(p) for p in patch_size]
        taper = axes[0][:, None, None] * axes[1][:, None] * axes[2]
        self.register_buffer("taper", halved(taper[None, None]), persistent=False)

    def start_at_zero(self) -> None:
        """Give no residual."""
        _zero(self.windows)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Turn tokens (B, C, D, H, W) of a grid into cells (B, 8, d, h, w) at half resolution."""
        one = self.windows
        return F.conv_transpose3d(tokens, one.weight * self.taper, one.bias, one.stride, padding=1)


def _taper(patch: int) -> torch.Tensor:
    ramp = torch.sin(torch.pi / 8 * (torch.arange(4) + 0.5)) ** 2
    return torch.cat([ramp, torch.ones(patch - 4), ramp.flip(0)])


class LocalDecoder(nn.Module):
    """From tokens (B, T, C) and the features of :class:`LocalEncoder` to a residual of every voxel."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        channels = config.local_channels
        steps = list(itertools.pairwise(channels))[::-1]
        self.tokens = nn.ConvTranspose3d(config.decoder_width, channels[-1], _cell(config), stride=_cell(config))
        self.blocks = nn.ModuleList(ConvBlock(coarse) for _, coarse in steps)
        self.up = nn.ModuleList(nn.ConvTranspose3d(coarse, fine, 2, stride=2) for fine, coarse in steps)
        self.last = nn.Conv3d(channels[0], channels[0], 3, padding=1)
        self.voxels = nn.Conv3d(channels[0], 8, 3, padding=1)
        self.windows = OverlappingHead(config.decoder_width, config.patch_size)

    def start_at_zero(self) -> None:
        """Give no residual."""
        _zero(self.voxels)
        self.windows.start_at_zero()

    def forward(self, tokens: torch.Tensor, grid: Triple, features: list[torch.Tensor]) -> torch.Tensor:
        """Return (B, 1, D, H, W)."""
        onto_grid = on_grid(tokens, grid)
        x = self.tokens(onto_grid) + features[-1]
        for block, up, feature in zip(self.blocks, self.up, features[-2::-1], strict=True):
            x = up(F.relu(block(x))) + feature
        return doubled(self.voxels(F.relu(self.last(F.relu(x)))) + self.windows(onto_grid))
