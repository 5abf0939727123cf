"""Windows at random offsets: cubes of a volume in which a token can be anywhere."""

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from MAESILLib.mae.superpatch import Shape

SPACING_MM = 1.5
"""Of the grid that windows are cut from; points are voxels of it."""
PATCH = 8
"""Voxels on a side of a token."""
TOKENS_AT_ONCE = 8192


def cut(volume: NDArray[Any], start: NDArray[np.int64], size: int, outside: str = "edge") -> NDArray[Any]:
    """Return the cube of ``size`` voxels at ``start`` of a volume (D, H, W), which it may exceed.

    Args:
        outside: what lies beyond the volume: ``edge`` repeats its border, ``constant`` is 0.
    """
    below = np.maximum(0, -start)
    above = np.maximum(0, start + size - volume.shape)
    d, h, w = (slice(max(a, 0), a + size) for a in start)
    return np.pad(volume[d, h, w], list(zip(below, above, strict=True)), mode=outside)  # type: ignore[call-overload]


def window_of_point(
    kji: NDArray[np.int64], number: int, draw: int, size: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return where a window of a point begins and the place of the token, whose centre the point is.

    The place is random (seed: number of the point, and draw), so it carries no anatomy.

    Args:
        kji: the point, a voxel of the volume.

    Returns:
        start (3,) in voxels, which may lie outside the volume, and place (3,) on the window's token grid.
    """
    place = np.random.default_rng([number, draw]).integers(0, size // PATCH, 3)
    return kji - PATCH // 2 - PATCH * place, place


def tiles(shape: Shape, size: int, seed: list[int]) -> NDArray[np.int64]:
    """Return where windows begin (B, 3) that tile a volume, from a random origin before its first voxel."""
    origin = np.random.default_rng(seed).integers(0, size, 3)
    axes = (range(-first, n, size) for first, n in zip(origin, shape, strict=True))
    return np.array(list(itertools.product(*axes)))


def token_shares(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the share of voxels in a mask (D, H, W) for each token, (tokens,) in row-major order."""
    d, h, w = (n // PATCH for n in mask.shape)
    return mask.reshape(d, PATCH, h, PATCH, w, PATCH).mean((1, 3, 5)).ravel()


def batch_size(size: int) -> int:
    """Return how many windows of ``size`` voxels are encoded at once."""
    return max(1, TOKENS_AT_ONCE // (size // PATCH) ** 3)
