"""How much of a volume, or of a box in it, is body: counted once in blocks, asked without reading voxels."""

import math

import numpy as np

from MAESILLib.mae.superpatch import Shape, Slices

FOREGROUND_HU = -500
BLOCK = 8
"""Voxels along each axis of a block; those at a volume's end may be shorter."""


def table_shape(shape: Shape) -> Shape:
    """Return the blocks (D, H, W) of a volume of ``shape`` voxels."""
    return -(-shape[0] // BLOCK), -(-shape[1] // BLOCK), -(-shape[2] // BLOCK)


def foreground_table(volume: np.ndarray) -> np.ndarray:
    """Count voxels above -500 HU in blocks of 8x8x8 voxels.

    Args:
        volume: (D, H, W) HU.

    Returns:
        uint16 (ceil(D/8), ceil(H/8), ceil(W/8)), at most 512 each.
    """
    d, h, w = volume.shape
    table = np.empty(table_shape((d, h, w)), np.uint16)
    rows, columns = np.arange(0, h, BLOCK), np.arange(0, w, BLOCK)
    # slab by slab, because a mask of the whole volume would double the memory
    for index, start in enumerate(range(0, d, BLOCK)):
        along_d = (volume[start : start + BLOCK] > FOREGROUND_HU).sum(axis=0, dtype=np.uint16)
        table[index] = np.add.reduceat(np.add.reduceat(along_d, rows, axis=0), columns, axis=1)
    return table


def foreground_share(table: np.ndarray, shape: Shape, box: Slices) -> float:
    """Estimate the share of a box's voxels that lie above -500 HU.

    A block that the box covers in part counts with the part of its volume that is covered; a box that ends where
    blocks end is counted exactly. The box has to lie in the volume.

    Args:
        table: as :func:`foreground_table` returns it.
        shape: voxels (D, H, W) of the volume.
        box: voxels (D, H, W), as slices.
    """
    d, h, w = (_overlap(n, part) for n, part in zip(shape, box, strict=True))
    counts = table[d[0], h[0], w[0]].astype(np.float64)
    return float(counts @ w[1] @ h[1] @ d[1]) / math.prod(part.stop - part.start for part in box)


def _overlap(length: int, part: slice) -> tuple[slice, np.ndarray]:
    """Return the blocks that a part of an axis touches, and the covered share of each."""
    first, last = part.start // BLOCK, -(-part.stop // BLOCK)
    begins = np.arange(first, last) * BLOCK
    ends = np.minimum(begins + BLOCK, length)
    covered = np.minimum(ends, part.stop) - np.maximum(begins, part.start)
    return slice(first, last), covered / (ends - begins)
