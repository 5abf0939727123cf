"""What tokens are described by: a frozen encoder, the same with random weights, or features without training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from MAESILLib.mae.dct import dct_matrix
from MAESILLib.mae.superpatch import Shape
from MAESILLib.probe.windows import PATCH, cut
from MAESILLib.runtime.events import Reporter
from MAESILLib.runtime.stopping import NEVER, StopRequest

Encode = Callable[[torch.Tensor], list[torch.Tensor]]
"""HU (B, D, H, W) float -> after each block the tokens (B, tokens, width), in row-major order."""
Array = NDArray[np.float32]
Key = tuple[str, int]
"""A feature's name and a block, from 1."""

ENCODER, RANDOM, RAW, HAND_MADE, POSITION = "encoder", "random weights", "raw patch", "hand-made", "position"
BANDS_HU = (-1100, -950, -700, -200, -120, -50, 0, 30, 60, 90, 130, 200, 400, 3000)
AROUND = (3, 7, 17)
"""Tokens on a side of the cubes over which hand-made features average HU bands."""
COSINES = 4
"""Lowest cosines of each axis."""


@dataclass(frozen=True)
class Feature:
    """A description of tokens.

    Attributes:
        blocks: from 1, those that are tried.
    """

    name: str
    encode: Encode
    blocks: tuple[int, ...] = (1,)


@dataclass(frozen=True)
class Tools:
    """What describes tokens, and where it runs."""

    features: tuple[Feature, ...]
    device: torch.device
    reporter: Reporter = field(default_factory=Reporter)
    stop: StopRequest = NEVER


def encoder_blocks(depth: int) -> tuple[int, ...]:
    """Return the blocks that are tried: at half and at three quarters of the depth, and the last."""
    return tuple(sorted({max(1, depth // 2), max(1, 3 * depth // 4), depth}))


def baselines() -> list[Feature]:
    """Return the features of the image that need no training."""
    return [Feature(HAND_MADE, hand_made), Feature(RAW, raw_patch)]


def raw_patch(hu: torch.Tensor) -> list[torch.Tensor]:
    """Describe a token by its 512 intensities, [-1000, 1000] HU mapped to [0, 1]."""
    return [_intensities(_patches(hu))]


def hand_made(hu: torch.Tensor) -> list[torch.Tensor]:
    """Describe a token by its 64 lowest cosines, its shares of 13 HU bands, and their means over 3, 7, 17 tokens.

    Beyond the window's border the means repeat its outermost tokens.
    """
    patches = _patches(hu)
    low = _intensities(patches) @ _cosines().to(hu)
    # edges are whole, so a table over whole HU finds the band; several times faster than a search
    first, last = BANDS_HU[0] - 1, BANDS_HU[-1]
    band_of = torch.bucketize(torch.arange(first, last + 1), torch.tensor(BANDS_HU), right=True).to(hu.device)
    band = band_of[patches.floor().clamp(first, last).long() - first]
    shares = torch.zeros(*band.shape[:2], len(BANDS_HU) + 1, device=hu.device)
    shares.scatter_add_(2, band, torch.full_like(band, 1, dtype=shares.dtype))
    shares = shares[..., 1:-1] / PATCH**3
    grid = shares.unflatten(1, [n // PATCH for n in hu.shape[1:]])
    around = []
    for side in AROUND:
        d, h, w = (_box(n, side).to(hu) for n in grid.shape[1:4])
        around.append(torch.einsum("bdhwc,xd,yh,zw->bxyzc", grid, d, h, w).flatten(1, 3))
    return [torch.cat([low, shares, *around], 2)]


def position(start: NDArray[np.int64], place: NDArray[np.int64], shape: Shape, size: int) -> Array:
    """Describe tokens by nothing but where they lie, in the volume and in the window.

    Args:
        start: (K, 3) first voxel of the window of each token.
        place: (K, 3) on the window's token grid.
        shape: of the volume, voxels.
        size: of the window, voxels.

    Returns:
        (K, 128): products of the four lowest cosines of each axis, of the place as a share (0 to 1) of the volume,
        then of the window; a linear map of them can follow anatomy that a map of three numbers could not.
    """
    centre = start + PATCH * place + PATCH / 2
    described = []
    for share in (np.clip(centre / np.array(shape), 0, 1), (place + 0.5) / (size // PATCH)):
        d, h, w = np.moveaxis(np.cos(np.pi * np.arange(COSINES) * share[..., None]), 1, 0)
        described.append(np.einsum("ki,kj,kl->kijl", d, h, w).reshape(len(share), -1))
    return np.hstack(described).astype(np.float32)


def describe(
    tools: Tools,
    volume: NDArray[np.int16],
    starts: NDArray[np.int64],
    size: int,
    window: NDArray[np.int64],
    place: NDArray[np.int64],
) -> dict[Key, Array]:
    """Describe K tokens in a batch of windows of a volume by every feature and block, and by position.

    Args:
        volume: (D, H, W) HU.
        starts: (B, 3) where the windows begin.
        window: (K,) index of each token's window.
        place: (K, 3) of the token on the window's token grid.

    Returns:
        for each feature and each of its blocks (K, F).
    """
    cubes = np.stack([cut(volume, start, size) for start in starts])
    found: dict[Key, Array] = {}
    for feature in tools.features:
        tokens = tokens_of(feature.encode, feature.blocks, cubes, window, place, tools.device)
        found |= {(feature.name, block): one for block, one in zip(feature.blocks, tokens, strict=True)}
    return {**found, (POSITION, 1): position(starts[window], place, volume.shape, size)}


@torch.inference_mode()
def tokens_of(
    encode: Encode,
    blocks: Sequence[int] | None,
    hu: NDArray[np.int16],
    window: NDArray[np.int64],
    place: NDArray[np.int64],
    device: torch.device | str,
) -> list[Array]:
    """Return the tokens (K, width) after each of some blocks, or of all, in windows (B, D, H, W).

    Other arguments as for :func:`describe`.
    """
    states = encode(torch.from_numpy(hu).to(device).float())
    index = np.ravel_multi_index(tuple(place.T), tuple(n // PATCH for n in hu.shape[1:]))
    rows = torch.from_numpy(window).to(device), torch.from_numpy(index).to(device)
    return [states[block - 1][rows].float().cpu().numpy() for block in blocks or range(1, len(states) + 1)]


def _patches(hu: torch.Tensor) -> torch.Tensor:
    """Cut (B, D, H, W) into (B, tokens, 512), tokens and voxels in row-major order."""
    d, h, w = (n // PATCH for n in hu.shape[1:])
    cubes = hu.reshape(len(hu), d, PATCH, h, PATCH, w, PATCH).permute(0, 1, 3, 5, 2, 4, 6)
    return cubes.reshape(len(hu), d * h * w, PATCH**3)


def _intensities(hu: torch.Tensor) -> torch.Tensor:
    return ((hu + 1000) / 2000).clamp(0, 1)


def _cosines() -> torch.Tensor:
    """Return products (512, 64) of the four lowest vectors an axis of the orthonormal cosine transform, type II."""
    axis = dct_matrix(PATCH)[:COSINES].T.float()
    return torch.einsum("xi,yj,zk->xyzijk", axis, axis, axis).reshape(PATCH**3, COSINES**3)


def _box(size: int, side: int) -> torch.Tensor:
    """Return the matrix (size, size) of a running mean over ``side`` values, edges repeated."""
    matrix = torch.zeros(size, size)
    for offset in range(-(side // 2), side // 2 + 1):
        matrix[torch.arange(size), (torch.arange(size) + offset).clamp(0, size - 1)] += 1 / side
    return matrix
