"""CT volumes, and the way between a volume's own grid and the grid of the model.

The model's grid is canonical (D towards superior, H towards posterior, W towards left) and isotropic. Its axes are
parallel to the volume's axes: an oblique volume stays oblique, so going there and back needs flips, a permutation and
one-dimensional resampling only.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from MAESILLib.ct.geometry import Geometry, closest_lps_axes
from MAESILLib.ct.resampling import (
    gaussian_matrix,
    grow_along_axes,
    linear_matrix,
    shrink_along_axes,
    smoothing_sigma_mm,
)

__all__ = ["WINDOW_HU", "CTVolume", "Geometry", "ModelGrid", "hu_to_unit", "model_grid", "unit_to_hu"]

WINDOW_HU = (-1000.0, 1000.0)
SAME_SPACING = 1e-2
"""Relative difference up to which two spacings count as equal: interpolating for less would blur, and gain nothing."""
SLIVER_VOXELS = 1e-3
"""A model grid need not cover a last strip of the volume thinner than this."""


@dataclass(frozen=True, eq=False)
class CTVolume:
    """A CT volume in Hounsfield units.

    Attributes:
        hu: int16 or float32, (D, H, W).
        geometry: where its voxels lie.
        name: file name without suffix, or DICOM series description.
        warnings: what a user should know about the input, one line each.
        path: file or folder it was read from.
    """

    hu: NDArray[Any]
    geometry: Geometry
    name: str
    warnings: tuple[str, ...] = ()
    path: str = ""


@dataclass(frozen=True)
class ModelGrid:
    """The model's grid for one volume grid, and the way to it and back. Made by :func:`model_grid`.

    Attributes:
        geometry: the model's grid.
        source: the volume's grid.
        is_resampled: False when the way is flips and a permutation only, exact to the voxel in both directions.
        axes: for each model axis (D, H, W) the source array axis it comes from.
        flips: for each model axis whether that source axis is reversed.
    """

    geometry: Geometry
    source: Geometry
    is_resampled: bool
    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]

    def labels_to_model(self, labels: NDArray[Any]) -> NDArray[Any]:
        """Bring a label map from the source grid to the model's grid: at each voxel centre the nearest voxel's value.

        Args:
            labels: (D, H, W) of the source grid, any dtype.

        Returns:
            a new array (D, H, W) of the model's grid with the dtype of ``labels``.

        Raises:
            ValueError: the array has another shape than the source grid.
        """
        _check_shape(labels, self.source, "source")
        if not self.is_resampled:
            return np.array(self._oriented(labels), order="C", copy=True)
        nearest = labels[np.ix_(*self._per_source_axis(self._nearest_source_index))]
        return np.ascontiguousarray(nearest.transpose(self.axes))

    def to_model(self, hu: NDArray[Any]) -> NDArray[np.float32]:
        """Bring an array from the source grid to the model's grid.

        Axes that become coarser are smoothed first (:func:`MAESILLib.ct.resampling.smoothing_sigma_mm`), then linearly
        interpolated; beyond the outermost voxel centres the edge value continues.

        Args:
            hu: (D, H, W) of the source grid, any real dtype.

        Returns:
            a new float32 array (D, H, W) of the model's grid.

        Raises:
            ValueError: the array has another shape than the source grid.
        """
        _check_shape(hu, self.source, "source")
        if not self.is_resampled:
            return self._oriented(hu).astype(np.float32, order="C", copy=True)
        resampled = shrink_along_axes(hu, self._per_source_axis(self._matrix_to_model))
        return np.ascontiguousarray(resampled.transpose(self.axes))

    def to_source(self, array: NDArray[Any], *, nearest: bool = False) -> NDArray[Any]:
        """Bring an array from the model's grid back to the source grid: all planes of :meth:`planes_to_source`."""
        (whole,) = self.planes_to_source(array, self.source.size_dhw[0], nearest=nearest)
        return whole

    def planes_to_source(self, array: NDArray[Any], count: int, *, nearest: bool = False) -> Iterator[NDArray[Any]]:
        """Bring an array from the model's grid back to the source grid, ``count`` planes at a time.

        Values are interpolated at the source's voxel centres, without smoothing.

        Args:
            array: (D, H, W) of the model's grid.
            nearest: take the nearest voxel (label maps) instead of interpolating linearly.

        Yields:
            new arrays (count or fewer, H, W) of the source grid with the dtype of ``array``; integers are rounded.

        Raises:
            ValueError: the array has another shape than the model's grid, or booleans are to be interpolated.
        """
        _check_shape(array, self.geometry, "model")
        slabs = [slice(first, first + count) for first in range(0, self.source.size_dhw[0], count)]
        if not self.is_resampled:
            yield from (np.array(self._unoriented(array)[slab], order="C", copy=True) for slab in slabs)
            return
        in_source_order = np.ascontiguousarray(array.transpose(np.argsort(self.axes)))
        if nearest:
            along_d, *along_plane = self._per_source_axis(self._nearest_index)
            yield from (in_source_order[np.ix_(along_d[slab], *along_plane)] for slab in slabs)
            return
        if array.dtype == np.bool_:
            raise ValueError("booleans cannot be interpolated linearly: pass nearest=True")
        matrix_d, matrix_h, matrix_w = self._per_source_axis(self._matrix_to_source)
        yield from (grow_along_axes(in_source_order, (matrix_d[slab], matrix_h, matrix_w)) for slab in slabs)

    def _oriented(self, array: NDArray[Any]) -> NDArray[Any]:
        return array.transpose(self.axes)[self._flip_slices()]

    def _unoriented(self, array: NDArray[Any]) -> NDArray[Any]:
        return array[self._flip_slices()].transpose(np.argsort(self.axes))

    def _flip_slices(self) -> tuple[slice, ...]:
        return tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)

    def _per_source_axis(self, make: Any) -> tuple[Any, Any, Any]:
        """Call ``make(model axis)`` for the source's axes in array order."""
        first, second, third = (make(int(axis)) for axis in np.argsort(self.axes))
        return first, second, third

    def _matrix_to_model(self, axis: int) -> Any:
        source_axis = self.axes[axis]
        size, spacing = self.source.size_dhw[source_axis], self.source.spacing_dhw[source_axis]
        step = self.geometry.spacing_dhw[axis]
        matrix = linear_matrix(_source_index(self, axis), size)
        if (sigma := smoothing_sigma_mm(spacing, step)) > 0:
            matrix = matrix @ gaussian_matrix(sigma / spacing, size)
        return matrix.astype(np.float32)

    def _matrix_to_source(self, axis: int) -> Any:
        return linear_matrix(_model_index(self, axis), self.geometry.size_dhw[axis]).astype(np.float32)

    def _nearest_source_index(self, axis: int) -> NDArray[np.int64]:
        nearest = np.floor(_source_index(self, axis) + 0.5).astype(np.int64)
        return np.clip(nearest, 0, self.source.size_dhw[self.axes[axis]] - 1)

    def _nearest_index(self, axis: int) -> NDArray[np.int64]:
        nearest = np.floor(_model_index(self, axis) + 0.5).astype(np.int64)
        return np.clip(nearest, 0, self.geometry.size_dhw[axis] - 1)


def model_grid(geometry: Geometry, spacing_mm: float = 1.5) -> ModelGrid:
    """Return the model's grid for a volume with ``geometry``.

    The grid begins at the right, anterior and inferior faces of the volume's outermost voxels and covers the volume.
    Where every spacing agrees with ``spacing_mm`` to :data:`SAME_SPACING`, the volume's own voxels are used.

    Args:
        geometry: the volume's grid.
        spacing_mm: isotropic spacing of the model's grid in mm.

    Raises:
        ValueError: ``spacing_mm`` is not a positive number.
    """
    if not (math.isfinite(spacing_mm) and spacing_mm > 0):
        raise ValueError(f"spacing_mm must be a positive number of mm, not {spacing_mm}")
    axes, flips = closest_lps_axes(geometry.direction)
    spacing = _permuted(geometry.spacing_dhw, axes)
    size = _permuted(geometry.size_dhw, axes)
    is_resampled = any(abs(s - spacing_mm) > SAME_SPACING * spacing_mm for s in spacing)
    if is_resampled:
        new_size = tuple(
            max(1, math.ceil(n * s / spacing_mm - SLIVER_VOXELS)) for n, s in zip(size, spacing, strict=True)
        )
        new_spacing = (spacing_mm, spacing_mm, spacing_mm)
    else:
        new_size, new_spacing = size, spacing
    columns = geometry.axes_lps()[:, [2 - axis for axis in reversed(axes)]]  # model i, j, k as columns
    direction = columns * np.where(flips[::-1], -1.0, 1.0) + 0.0  # no negative zeros
    origin = geometry.physical_point(_first_voxel(geometry, axes, flips, new_spacing))
    target = Geometry(
        size_dhw=(new_size[0], new_size[1], new_size[2]),
        spacing_dhw=new_spacing,
        origin_lps=(float(origin[0]), float(origin[1]), float(origin[2])),
        direction=tuple(float(c) for c in direction.ravel()),
    )
    return ModelGrid(target, geometry, is_resampled, axes, flips)


def hu_to_unit(hu: NDArray[Any], window_hu: tuple[float, float] = WINDOW_HU) -> NDArray[np.float32]:
    """Map ``window_hu`` = (low, high) in HU linearly to [0, 1] and clip; any shape, returns a new float32 array.

    Raises:
        ValueError: the window is empty.
    """
    low, width = _window(window_hu)
    unit = np.subtract(hu, low, dtype=np.float32)
    np.multiply(unit, np.float32(1 / width), out=unit)
    return np.clip(unit, 0, 1, out=unit)


def unit_to_hu(unit: NDArray[Any], window_hu: tuple[float, float] = WINDOW_HU) -> NDArray[np.float32]:
    """Map [0, 1] linearly to ``window_hu`` = (low, high) in HU; the inverse of :func:`hu_to_unit` within the window.

    Raises:
        ValueError: the window is empty.
    """
    low, width = _window(window_hu)
    hu = np.multiply(unit, width, dtype=np.float32)
    return np.add(hu, np.float32(low), out=hu)


def _window(window_hu: tuple[float, float]) -> tuple[float, float]:
    low, high = window_hu
    if not low < high:
        raise ValueError(f"window_hu must be (low, high) with low < high, not {window_hu}")
    return float(low), float(high - low)


def _permuted(values: tuple[Any, ...], axes: tuple[int, int, int]) -> tuple[Any, Any, Any]:
    return values[axes[0]], values[axes[1]], values[axes[2]]


def _first_voxel(
    source: Geometry, axes: tuple[int, int, int], flips: tuple[bool, bool, bool], spacing: tuple[float, float, float]
) -> list[float]:
    """Return the fractional source index (d, h, w) of the model's voxel (0, 0, 0)."""
    index = [0.0, 0.0, 0.0]
    for axis, flip, step in zip(axes, flips, spacing, strict=True):
        from_face = 0.5 * step / source.spacing_dhw[axis] - 0.5
        index[axis] = source.size_dhw[axis] - 1 - from_face if flip else from_face
    return index


def _source_index(grid: ModelGrid, axis: int) -> NDArray[np.float64]:
    """Return, for each model voxel along model axis ``axis``, its fractional index on the source's axis."""
    source_axis = grid.axes[axis]
    ratio = grid.geometry.spacing_dhw[axis] / grid.source.spacing_dhw[source_axis]
    index: NDArray[np.float64] = (np.arange(grid.geometry.size_dhw[axis], dtype=np.float64) + 0.5) * ratio - 0.5
    return grid.source.size_dhw[source_axis] - 1 - index if grid.flips[axis] else index


def _model_index(grid: ModelGrid, axis: int) -> NDArray[np.float64]:
    """Return, for each source voxel along the source of model axis ``axis``, its fractional index on the model axis."""
    source_axis = grid.axes[axis]
    size = grid.source.size_dhw[source_axis]
    from_face: NDArray[np.float64] = np.arange(size, dtype=np.float64) + 0.5
    if grid.flips[axis]:
        from_face = size - from_face
    return from_face * (grid.source.spacing_dhw[source_axis] / grid.geometry.spacing_dhw[axis]) - 0.5


def _check_shape(array: NDArray[Any], geometry: Geometry, which: str) -> None:
    if array.shape != geometry.size_dhw:
        raise ValueError(f"the array has shape {array.shape}, the {which} grid {geometry.size_dhw} (D, H, W)")
