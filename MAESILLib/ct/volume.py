"""CT volumes, and the way between a volume's own grid and the grid of the model.

The model's grid is canonical (D towards superior, H towards posterior, W towards left) and isotropic. Its axes are
parallel to the volume's axes: an oblique volume stays oblique, so going there and back needs flips, a permutation and
one-dimensional resampling only.
"""

import math
from collections.abc import Callable, Iterator
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

    def to_model(self, hu: NDArray[Any]) -> NDArray[np.float32]:
        """Bring an array (D, H, W) of any real dtype from the source grid to a new float32 one of the model's grid.

        Axes that become coarser are smoothed first (:func:`MAESILLib.ct.resampling.smoothing_sigma_mm`), then linearly
        interpolated; beyond the outermost voxel centres the edge value continues.

        Raises:
            ValueError: the array has another shape than the source grid.
        """
        _check_shape(hu, self.source, "source")
        if not self.is_resampled:
            return hu.transpose(self.axes)[self._flipped()].astype(np.float32, order="C", copy=True)
        resampled = shrink_along_axes(hu, self._per_source_axis(self._matrix_to_model))
        return np.ascontiguousarray(resampled.transpose(self.axes))

    def labels_to_model(self, labels: NDArray[Any]) -> NDArray[Any]:
        """Bring a label map (D, H, W) to a new array of the model's grid: at each voxel centre the nearest voxel.

        Raises:
            ValueError: the array has another shape than the source grid.
        """
        _check_shape(labels, self.source, "source")
        if not self.is_resampled:
            return np.array(labels.transpose(self.axes)[self._flipped()], order="C", copy=True)
        nearest = self._per_source_axis(lambda axis: _nearest(self._source_index(axis), labels.shape[self.axes[axis]]))
        return np.ascontiguousarray(labels[np.ix_(*nearest)].transpose(self.axes))

    def to_source(self, array: NDArray[Any], *, nearest: bool = False) -> NDArray[Any]:
        """Bring an array from the model's grid back to the source grid: all planes of :meth:`planes_to_source`."""
        (whole,) = self.planes_to_source(array, self.source.size_dhw[0], nearest=nearest)
        return whole

    def planes_to_source(self, array: NDArray[Any], count: int, *, nearest: bool = False) -> Iterator[NDArray[Any]]:
        """Bring an array (D, H, W) from the model's grid back to the source grid, ``count`` planes at a time.

        Values are interpolated at the source's voxel centres, without smoothing.

        Args:
            nearest: take the nearest voxel (label maps) instead of interpolating linearly.

        Yields:
            new arrays (count or fewer, H, W) of the source grid with the dtype of ``array``; integers are rounded.

        Raises:
            ValueError: the array has another shape than the model's grid, or booleans are to be interpolated.
        """
        _check_shape(array, self.geometry, "model")
        order = np.argsort(self.axes)
        slabs = [slice(first, first + count) for first in range(0, self.source.size_dhw[0], count)]
        if not self.is_resampled:
            whole = array[self._flipped()].transpose(order)
            yield from (np.array(whole[slab], order="C", copy=True) for slab in slabs)
            return
        in_source_order = np.ascontiguousarray(array.transpose(order))
        if nearest:
            along_d, *along_plane = self._per_source_axis(
                lambda axis: _nearest(self._model_index(axis), array.shape[axis])
            )
            yield from (in_source_order[np.ix_(along_d[slab], *along_plane)] for slab in slabs)
            return
        if array.dtype == np.bool_:
            raise ValueError("booleans cannot be interpolated linearly: pass nearest=True")
        matrix_d, matrix_h, matrix_w = self._per_source_axis(
            lambda axis: linear_matrix(self._model_index(axis), array.shape[axis]).astype(np.float32)
        )
        yield from (grow_along_axes(in_source_order, (matrix_d[slab], matrix_h, matrix_w)) for slab in slabs)

    def _flipped(self) -> tuple[slice, ...]:
        return tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)

    def _per_source_axis(self, make: Callable[[int], Any]) -> tuple[Any, Any, Any]:
        """Call ``make(model axis)`` for the source's axes in array order."""
        first, second, third = (make(int(axis)) for axis in np.argsort(self.axes))
        return first, second, third

    def _matrix_to_model(self, axis: int) -> Any:
        source_axis = self.axes[axis]
        size, spacing = self.source.size_dhw[source_axis], self.source.spacing_dhw[source_axis]
        matrix = linear_matrix(self._source_index(axis), size)
        if (sigma := smoothing_sigma_mm(spacing, self.geometry.spacing_dhw[axis])) > 0:
            matrix = matrix @ gaussian_matrix(sigma / spacing, size)
        return matrix.astype(np.float32)

    def _source_index(self, axis: int) -> NDArray[np.float64]:
        """Return, for each model voxel along model axis ``axis``, its fractional index on the source's axis."""
        source_axis = self.axes[axis]
        ratio = self.geometry.spacing_dhw[axis] / self.source.spacing_dhw[source_axis]
        index = (np.arange(self.geometry.size_dhw[axis], dtype=np.float64) + 0.5) * ratio - 0.5
        return self.source.size_dhw[source_axis] - 1 - index if self.flips[axis] else index

    def _model_index(self, axis: int) -> NDArray[np.float64]:
        """Return, for each source voxel on the source of model axis ``axis``, its fractional index on the model's."""
        source_axis = self.axes[axis]
        ratio = self.source.spacing_dhw[source_axis] / self.geometry.spacing_dhw[axis]
        index = (np.arange(self.source.size_dhw[source_axis], dtype=np.float64) + 0.5) * ratio - 0.5
        return index[::-1] if self.flips[axis] else index


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
    spacing = [geometry.spacing_dhw[axis] for axis in axes]
    size = [geometry.size_dhw[axis] for axis in axes]
    is_resampled = any(abs(s - spacing_mm) > SAME_SPACING * spacing_mm for s in spacing)
    index = [0.0, 0.0, 0.0]  # of the model's first voxel on the source's axes
    for number, (axis, flip) in enumerate(zip(axes, flips, strict=True)):
        if is_resampled:
            size[number] = max(1, math.ceil(size[number] * spacing[number] / spacing_mm - SLIVER_VOXELS))
            spacing[number] = spacing_mm
        from_face = 0.5 * spacing[number] / geometry.spacing_dhw[axis] - 0.5
        index[axis] = geometry.size_dhw[axis] - 1 - from_face if flip else from_face
    columns = geometry.axes_lps()[:, [2 - axis for axis in reversed(axes)]]  # model i, j, k as columns
    direction = columns * np.where(flips[::-1], -1.0, 1.0) + 0.0  # no negative zeros
    origin = tuple(geometry.physical_point(index).tolist())
    target = Geometry(
        (size[0], size[1], size[2]), (spacing[0], spacing[1], spacing[2]), origin, tuple(direction.ravel().tolist())
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


def _nearest(index: NDArray[np.float64], size: int) -> NDArray[np.int64]:
    return np.clip(np.floor(index + 0.5).astype(np.int64), 0, size - 1)


def _check_shape(array: NDArray[Any], geometry: Geometry, which: str) -> None:
    if array.shape != geometry.size_dhw:
        raise ValueError(f"the array has shape {array.shape}, the {which} grid {geometry.size_dhw} (D, H, W)")
