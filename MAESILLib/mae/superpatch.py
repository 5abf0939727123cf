"""Superpatches: the 3D chunks a volume is cut into, and how their results go back.

A superpatch is a box of whole patches, at most ``superpatch_size`` voxels long on each axis. The volume's
tokens along an axis are shared out as evenly as it goes, so no superpatch is left with a sliver of
context, and a volume shorter than a superpatch is one superpatch of its own length. Only patches at
the volume's border can be padded, by repeating the edge voxel: the padding of a hidden patch comes
from that patch itself, so it gives nothing away.
"""

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike

from MAESILLib.config import check_sizes
from MAESILLib.runtime.errors import InputError

Shape = tuple[int, int, int]
Slices = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Superpatch:
    """A box of voxels, ``start`` and ``size`` as (D, H, W); ``size`` is a multiple of the patch.

    The box begins inside the volume and may end after it; what lies outside is padding.
    """

    index: int
    start: Shape
    size: Shape

    def in_volume(self, shape: Shape) -> Slices:
        """Return the part of a volume of ``shape`` that the box covers."""
        ends = (min(n, s + size) for s, size, n in zip(self.start, self.size, shape, strict=True))
        d, h, w = (slice(s, end) for s, end in zip(self.start, ends, strict=True))
        return d, h, w

    def in_box(self, shape: Shape) -> Slices:
        """Return the same part as seen from the box: what is not padding."""
        d, h, w = (
            slice(part.start - s, part.stop - s) for part, s in zip(self.in_volume(shape), self.start, strict=True)
        )
        return d, h, w


def partition(shape: Shape, superpatch_size: Shape, patch_size: Shape, overlap: float = 0.0) -> list[Superpatch]:
    """Cut a volume of ``shape`` voxels into superpatches that cover it.

    Without overlap they do not overlap and all lie on one patch grid that starts at voxel 0. With
    ``overlap`` neighbours share at least that part of their length, and every second one begins half a
    patch off the grid, so that patch borders do not coincide where results are blended.

    Raises:
        InputError: sizes that do not divide, or an overlap outside [0, 0.75].
    """
    check_sizes(superpatch_size, patch_size)
    if not 0 <= overlap <= 0.75:
        raise InputError(f"overlap is {overlap}", "choose a share from 0 to 0.75")
    axes = [_axis_boxes(n, s, p, overlap) for n, s, p in zip(shape, superpatch_size, patch_size, strict=True)]
    boxes = itertools.product(*axes)
    return [Superpatch(index, (d[0], h[0], w[0]), (d[1], h[1], w[1])) for index, (d, h, w) in enumerate(boxes)]


def _axis_boxes(length: int, superpatch: int, patch: int, overlap: float) -> list[tuple[int, int]]:
    """Return (start, size) of the boxes along one axis."""
    tokens = -(-length // patch)
    most = superpatch // patch
    if overlap == 0 or tokens <= most:
        count = -(-tokens // most)
        edges = [round(i * tokens / count) for i in range(count + 1)]
        return [(a * patch, (b - a) * patch) for a, b in itertools.pairwise(edges)]
    reach = length - superpatch
    boxes, start = [(0, superpatch)], 0
    while start < reach:
        # every second box lies half a patch off the grid
        residue = 0 if start % patch else patch // 2
        furthest = start + int(superpatch * (1 - overlap))
        following = residue + (furthest - residue) // patch * patch
        last = residue - (residue - reach) // patch * patch
        start = min(max(following, start + patch - patch // 2), last)
        boxes.append((start, superpatch))
    return boxes


def token_grid(size: Shape, patch_size: Shape) -> Shape:
    """Return the token grid (D, H, W) of a box."""
    return size[0] // patch_size[0], size[1] // patch_size[1], size[2] // patch_size[2]


def extract(volume: np.ndarray, box: Superpatch) -> np.ndarray:
    """Return the voxels of ``box`` from ``volume`` (D, H, W), edges repeated where it sticks out."""
    part = volume[box.in_volume(volume.shape)]
    inner = box.in_box(volume.shape)
    pads = [(0, size - s.stop) for s, size in zip(inner, box.size, strict=True)]
    return np.pad(part, pads, mode="edge") if any(map(any, pads)) else np.ascontiguousarray(part)


def blending_weights(size: Shape) -> np.ndarray:
    """Return a Gaussian window (D, H, W), sigma an eighth of each side, highest in the middle, above 0."""
    d, h, w = (np.exp(-0.5 * ((np.arange(n) - (n - 1) / 2) / (n / 8)) ** 2) for n in size)
    return np.maximum(d[:, None, None] * h[:, None] * w, 1e-4).astype(np.float32)


class Blend:
    """A volume of weighted means, filled superpatch by superpatch.

    Args:
        shape: (D, H, W) of the volume.
        weight: float32, or an integer where weights are booleans.
    """

    def __init__(self, shape: Shape, weight: DTypeLike = np.float32) -> None:
        self.total = np.zeros(shape, np.float32)
        self.weight = np.zeros(shape, weight)

    def add(self, box: Superpatch, values: np.ndarray, weights: np.ndarray) -> None:
        """Add ``values`` of the box with ``weights``, both (D, H, W) of the box; padding is dropped."""
        shape = self.total.shape
        outer, inner = box.in_volume(shape), box.in_box(shape)
        self.total[outer] += values[inner] * weights[inner]
        self.weight[outer] += weights[inner]

    def mean(self, where_empty: np.ndarray | float = 0.0) -> np.ndarray:
        """Return the weighted mean (D, H, W); ``where_empty`` where nothing was added."""
        mean = np.full(self.weight.shape, where_empty, np.float32)
        return np.divide(self.total, self.weight, out=mean, where=self.weight > 0)
