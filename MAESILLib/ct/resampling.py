"""Separable resampling of arrays between two grids whose axes are parallel.

Along each axis the resampled values are fixed weighted sums of the input values, so resampling a volume is
three products with sparse band matrices. Compared with an image filter plus a general resampler this does the
same arithmetic about ten times faster, touches each voxel once and keeps one slice in floating point at a time.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray


def smoothing_sigma_mm(spacing_in: float, spacing_out: float) -> float:
    """Return the standard deviation in mm of the Gaussian that prevents aliasing; 0 when not downsampling.

    Source: M. J. Cardoso, M. Modat, T. Vercauteren, S. Ourselin, "Scale factor point spread function matching:
    beyond aliasing in image resampling", MICCAI 2015: voxels are taken as Gaussian point spread functions whose full
    width at half maximum is the spacing, so sigma^2 = (s_out^2 - s_in^2) / (8 ln 2).
    """
    return math.sqrt(max(spacing_out**2 - spacing_in**2, 0.0) / (8 * math.log(2)))


def linear_matrix(positions: NDArray[np.float64], size: int) -> Any:
    """Return the sparse (len(positions), size) matrix of linear interpolation at fractional indices.

    Positions outside the array take the value of its edge.
    """
    from scipy.sparse import csr_matrix

    inside = np.clip(positions, 0, size - 1)
    low = np.clip(np.floor(inside).astype(np.int64), 0, max(size - 2, 0))
    high = np.minimum(low + 1, size - 1)
    share = inside - low
    rows = np.arange(len(positions))
    weights = np.concatenate([1 - share, share])
    matrix = csr_matrix((weights, (np.tile(rows, 2), np.concatenate([low, high]))), shape=(len(positions), size))
    matrix.eliminate_zeros()
    return matrix


def gaussian_matrix(sigma_voxels: float, size: int) -> Any:
    """Return the sparse (size, size) matrix of Gaussian smoothing with the edge values extended.

    The kernel is the discrete analogue of the Gaussian, exp(-t) I_n(t) with t = sigma^2 (T. Lindeberg, "Scale-space
    for discrete signals", 1990): its variance is exact however small sigma is, where a sampled Gaussian smooths too
    little below one voxel. It is cut at 4 sigma (at least 2 voxels) and normalised.
    """
    from scipy.sparse import csr_matrix
    from scipy.special import ive

    radius = max(2, math.ceil(4 * sigma_voxels))
    offsets = np.arange(-radius, radius + 1)
    kernel = ive(np.abs(offsets), sigma_voxels**2)
    kernel /= kernel.sum()
    rows = np.repeat(np.arange(size), len(offsets))
    columns = np.clip(rows + np.tile(offsets, size), 0, size - 1)
    return csr_matrix((np.tile(kernel, size), (rows, columns)), shape=(size, size))


def shrink_along_axes(array: NDArray[Any], matrices: tuple[Any, Any, Any]) -> NDArray[np.float32]:
    """Multiply a volume with a matrix along each axis, slices first: cheap when the result is the smaller volume.

    Args:
        array: (D, H, W), any real dtype, any strides.
        matrices: float32 sparse matrices (D', D), (H', H), (W', W).

    Returns:
        float32 (D', H', W').
    """
    return _along_first_axis(matrices[0], _along_planes(array, matrices, np.dtype(np.float32)))


def grow_along_axes(array: NDArray[Any], matrices: tuple[Any, Any, Any]) -> NDArray[Any]:
    """Do the same, slices last: cheap when the result is the larger volume.

    Returns:
        (D', H', W') with the dtype of ``array``; integers are rounded to nearest, not cut.
    """
    return _along_planes(_along_first_axis(matrices[0], array), matrices, array.dtype)


def _along_planes(array: NDArray[Any], matrices: tuple[Any, Any, Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Apply the second and third matrix slice by slice: one slice in floating point stays in the processor's cache."""
    _, along_h, along_w = matrices
    planes = np.empty((array.shape[0], along_h.shape[0], along_w.shape[0]), dtype)
    for source, target in zip(array, planes, strict=True):
        rows_done = along_h @ np.asarray(source, dtype=np.float32, order="C")
        transposed = along_w @ np.ascontiguousarray(rows_done.T)
        if np.issubdtype(dtype, np.integer):
            np.rint(transposed, out=transposed)
        target[...] = transposed.T
    return planes


def _along_first_axis(matrix: Any, array: NDArray[Any]) -> NDArray[np.float32]:
    flat = np.asarray(array, dtype=np.float32, order="C").reshape(array.shape[0], -1)
    return np.asarray(matrix @ flat).reshape(matrix.shape[0], *array.shape[1:])
