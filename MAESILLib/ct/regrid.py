"""From the grid that a file states to a rectangular one: sheared axes, and slices at unequal distances.

A grid is an affine (4, 4) from (i, j, k, 1) to LPS in mm. Everything behind the readers has perpendicular axes
(:class:`MAESILLib.ct.geometry.Geometry`).
"""

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from MAESILLib.ct.check import MIN_VOXELS, check_grid
from MAESILLib.ct.geometry import Geometry
from MAESILLib.ct.resampling import linear_matrix
from MAESILLib.runtime.errors import InputError

AS_IT_IS_VOXELS = 0.2
"""How far a voxel may lie from its place on the rectangular grid taken for its own, in voxels along an axis."""
AIR_HU = -1024
MOST_TIMES = 8
"""How many times as many voxels as there are a rectangular grid has at most."""


def rectangular_grid(
    affine: NDArray[np.float64], size_dhw: tuple[int, ...], where: str, fewest: int = MIN_VOXELS
) -> tuple[Geometry, str]:
    """Return the rectangular grid of a volume: the nearest one, or one around it.

    Args:
        affine: of the volume's grid, which spans a volume; its axes need not be perpendicular.
        fewest: voxels along an axis that it must have.

    Returns:
        the grid, and why voxels have to be interpolated on it; empty where they are taken as they are.

    Raises:
        InputError: the axes are too far from perpendicular, or size or spacing are not those of a CT.
    """
    size_ijk, why = size_dhw[::-1], ""
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    grid = _nearest(affine, lengths, size_ijk)
    if largest_shift(affine, grid, size_ijk) > AS_IT_IS_VOXELS:
        axes = affine[:3, :3] / lengths
        cosine = np.abs((axes.T @ axes)[[0, 0, 1], [1, 2, 2]]).max()
        degrees = f"{np.degrees(np.arcsin(min(1.0, cosine))):.2g} degrees off perpendicular"
        voxels, (grid, size_ijk) = np.prod(size_ijk), _around(affine, size_ijk)
        if np.prod(size_ijk) > MOST_TIMES * voxels:
            raise InputError(
                f"{where} has axes {degrees}: too many to be resampled", "correct the orientation in the file's header"
            )
        why = f"its axes are {degrees} (as gantry tilt makes): resampled to a rectangular grid"
        lengths = np.linalg.norm(grid[:3, :3], axis=0)
    direction = grid[:3, :3] / lengths + 0.0  # no negative zeros
    spacing_ijk, origin, numbers = lengths.tolist(), grid[:3, 3].tolist(), direction.ravel().tolist()
    check_grid(size_ijk, spacing_ijk, numbers, where, fewest)
    return Geometry(size_ijk[::-1], tuple(spacing_ijk[::-1]), tuple(origin), tuple(numbers)), why  # type: ignore[arg-type]


def resampled(
    voxels: NDArray[Any], affine: NDArray[np.float64], geometry: Geometry, beyond: float, order: int = 1
) -> NDArray[Any]:
    """Interpolate voxels (D, H, W) of a grid linearly on another one, or take the nearest ones (``order`` 0).

    Args:
        beyond: the value beyond the volume.
    """
    from scipy.ndimage import affine_transform

    # from index (k, j, i) of the target to that of the source
    step = (np.linalg.inv(affine) @ geometry.ijk_to_lps())[[2, 1, 0, 3]][:, [2, 1, 0, 3]]
    # rounded, because an index of -1e-16 lies beyond the volume
    step = np.round(step, 9)
    source = voxels.astype(np.float32)
    # voxels have an extent, of which "constant" leaves out the outer half of the outermost ones
    mode = "constant" if order else "grid-constant"
    found = affine_transform(source, step[:3, :3], step[:3, 3], geometry.size_dhw, order=order, mode=mode, cval=beyond)
    return _like(found, voxels)


def even_slices(voxels: NDArray[Any], heights: NDArray[np.float64], step: float) -> NDArray[Any]:
    """Interpolate slices linearly to equal distances.

    Args:
        voxels: (D, H, W).
        heights: of the slices along their normal in mm, increasing, (D,).
        step: distance in mm of the slices returned, a whole number of which leads from the first to the last one.
    """
    wanted = heights[0] + step * np.arange(round((heights[-1] - heights[0]) / step) + 1)
    matrix = linear_matrix(np.interp(wanted, heights, np.arange(len(heights), dtype=float)), len(heights))
    flat = np.asarray(matrix.astype(np.float32) @ voxels.reshape(len(voxels), -1).astype(np.float32))
    return _like(flat.reshape(-1, *voxels.shape[1:]), voxels)


def largest_shift(affine: NDArray[np.float64], other: NDArray[np.float64], size_ijk: tuple[int, ...]) -> float:
    """Return how far apart two grids put the same voxel at most, in voxels of the second along its axes."""
    between = np.linalg.inv(other) @ affine
    corners = np.array([[*corner, 1.0] for corner in itertools.product(*((0, n - 1) for n in size_ijk))])
    return float(np.abs(corners @ between.T - corners).max())


def _nearest(
    affine: NDArray[np.float64], lengths: NDArray[np.float64], size_ijk: tuple[int, ...]
) -> NDArray[np.float64]:
    """Return the rectangular grid closest to ``affine``, with the same centre.

    Its axes are the orthogonal factor of the polar decomposition (Higham 1986), the orthonormal matrix closest to the
    given unit vectors.
    """
    u, _, v = np.linalg.svd(affine[:3, :3] / lengths)
    nearest = affine.copy()
    nearest[:3, :3] = (u @ v) * lengths
    nearest[:3, 3] += (affine - nearest)[:3, :3] @ ((np.array(size_ijk) - 1) / 2)
    return nearest


def _around(affine: NDArray[np.float64], size_ijk: tuple[int, ...]) -> tuple[NDArray[np.float64], tuple[int, ...]]:
    """Return a rectangular grid that holds all voxels, and its size along i, j, k.

    It keeps the direction of i, and the plane of i and j: slices are shifted, not turned.
    """
    q, r = np.linalg.qr(affine[:3, :3])
    signs = np.sign(np.diag(r))
    axes, extent = q * signs, r * signs[:, None]
    spacing = np.diag(extent)
    corners = np.array(list(itertools.product(*((0, n - 1) for n in size_ijk)))) @ extent.T / spacing
    low = np.floor(corners.min(0) + 1e-6)
    size = np.ceil(corners.max(0) - 1e-6) - low + 1
    target = np.eye(4)
    target[:3, :3] = axes * spacing
    target[:3, 3] = affine[:3, 3] + target[:3, :3] @ low
    return target, (int(size[0]), int(size[1]), int(size[2]))


def _like(values: NDArray[np.float32], voxels: NDArray[Any]) -> NDArray[Any]:
    return np.rint(values).astype(voxels.dtype) if np.issubdtype(voxels.dtype, np.integer) else values
