"""Stack the slices of one DICOM series into a volume, or refuse by name what does not stack.

Slices are ordered by their position along the slice normal, never by file name or InstanceNumber. Sheared stacks
(gantry tilt) are refused: their voxels do not lie on a rectangular grid, and reading them as one bends the anatomy.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from MAESILLib.ct.dicom import Series, SliceHeader
from MAESILLib.ct.geometry import Geometry
from MAESILLib.ct.itk import one_line_reason
from MAESILLib.runtime.errors import InputError

SAME_POSITION_MM = 0.01
STEP_TOLERANCE = 0.1
"""Largest deviation of a slice distance from the median, relative: scanners round positions to 0.01 to 0.1 mm."""
MISSING_STEP = 1.5
"""A distance over this many medians is a gap of missing slices."""
NAMED = 3
"""How many files or gaps a message names before it counts the rest."""


@dataclass(frozen=True)
class Stack:
    """The voxels of a series in HU (as DICOM's rescale gives them) and their grid.

    Attributes:
        voxels: (D, H, W), a read-only view or an array.
        geometry: their grid.
        warnings: one line each.
    """

    voxels: NDArray[Any]
    geometry: Geometry
    warnings: tuple[str, ...]


def read_stack(series: Series) -> Stack:
    """Order, check and read the slices of a series.

    Raises:
        InputError: slices differ, coincide, are missing, are shifted against each other or unreadable; names them.
    """
    _refuse_mixed(series)
    slices, heights = _ordered(series)
    _refuse_doubles(series, slices, heights)
    _refuse_gaps(series, slices, heights)
    _refuse_tilt(series, slices, heights)
    geometry = _geometry(slices, heights)
    return Stack(_read_voxels(slices), geometry, _thin_slice_warning(slices, geometry))


def _axes(header: SliceHeader) -> NDArray[np.float64]:
    """Return i, j and k axes as rows: DICOM's rounded cosines made exactly perpendicular (Gram-Schmidt)."""
    i = np.array(header.orientation[:3])
    j = np.array(header.orientation[3:])
    i /= np.linalg.norm(i)
    j -= i * (i @ j)
    j /= np.linalg.norm(j)
    return np.array([i, j, np.cross(i, j)])


def _refuse_mixed(series: Series) -> None:
    checks: tuple[tuple[str, Callable[[SliceHeader], Any]], ...] = (
        ("sizes", lambda s: f"{s.size[0]}x{s.size[1]}"),
        ("pixel spacings", lambda s: "x".join(f"{v:.4g}" for v in s.pixel_spacing) or "none"),
        ("orientations", lambda s: "/".join(f"{v + 0:.3f}" for v in np.round(s.orientation, 3) + 0.0)),
    )
    for what, property_of in checks:
        groups: dict[str, list[SliceHeader]] = {}
        for header in series.slices:
            groups.setdefault(property_of(header), []).append(header)
        if len(groups) > 1:
            usual, *others = sorted(groups.items(), key=lambda item: -len(item[1]))
            odd = "; ".join(f"{value}: {_names(headers)}" for value, headers in others[:NAMED])
            raise InputError(
                f"{series.label} mixes slices of different {what}: {len(usual[1])} have {usual[0]}, but {odd}",
                "remove those files, or export one series of equal slices",
            )
    first = series.slices[0]
    if len(first.pixel_spacing) != 2 or min(first.pixel_spacing) <= 0:
        raise InputError(f"{series.label} has no PixelSpacing", "export the original CT series")
    if not np.allclose(np.linalg.norm(np.reshape(first.orientation, (2, 3)), axis=1), 1, atol=0.01):
        raise InputError(f"{series.label} has an unusable ImageOrientationPatient", "export the original CT series")


def _ordered(series: Series) -> tuple[list[SliceHeader], NDArray[np.float64]]:
    """Return the slices from bottom to top along their normal, and their heights on it in mm."""
    normal = _axes(series.slices[0])[2]
    pairs = sorted(((float(normal @ np.array(s.position)), s) for s in series.slices), key=lambda p: (p[0], p[1].path))
    if len(pairs) < 2:
        raise InputError(f"{series.label} has one slice only", "give the folder with the whole series")
    return [header for _, header in pairs], np.array([height for height, _ in pairs])


def _refuse_doubles(series: Series, slices: list[SliceHeader], heights: NDArray[np.float64]) -> None:
    doubles = np.flatnonzero(np.diff(heights) < SAME_POSITION_MM)
    if len(doubles):
        at = doubles[0]
        raise InputError(
            f"{series.label} has {len(doubles)} duplicate slice positions: {slices[at].path.name} and "
            f"{slices[at + 1].path.name} both lie at {heights[at]:.2f} mm{_and_more(len(doubles) - 1)}",
            "give one copy and one phase of the series",
        )


def _refuse_gaps(series: Series, slices: list[SliceHeader], heights: NDArray[np.float64]) -> None:
    steps = np.diff(heights)
    usual = float(np.median(steps))
    gaps = np.flatnonzero(steps > MISSING_STEP * usual)
    if len(gaps):
        named = "; ".join(
            f"between {slices[g].path.name} ({heights[g]:.2f} mm) and {slices[g + 1].path.name} "
            f"({heights[g + 1]:.2f} mm)"
            for g in gaps[:NAMED]
        )
        missing = int(sum(max(1, round(float(steps[g]) / usual) - 1) for g in gaps))
        raise InputError(
            f"{series.label} is missing about {missing} slices (the others are {usual:.2f} mm apart) "
            f"{named}{_and_more(len(gaps) - NAMED)}",
            "restore the missing files, or export the series again",
        )
    uneven = np.flatnonzero(np.abs(steps - usual) > STEP_TOLERANCE * usual)
    if len(uneven):
        at = uneven[0]
        raise InputError(
            f"{series.label} has uneven slice distances: {steps[at]:.2f} mm between {slices[at].path.name} and "
            f"{slices[at + 1].path.name}, {usual:.2f} mm elsewhere{_and_more(len(uneven) - 1)}",
            "resample it to even distances first",
        )


def _refuse_tilt(series: Series, slices: list[SliceHeader], heights: NDArray[np.float64]) -> None:
    """Refuse slices that lie beside the normal through the first one by more than half a pixel."""
    i, j, _ = _axes(slices[0])
    offsets = np.array([s.position for s in slices]) - np.array(slices[0].position)
    sideways = np.hypot(offsets @ i, offsets @ j)
    worst = int(np.argmax(sideways))
    if sideways[worst] > 0.5 * min(slices[0].pixel_spacing):
        angle = math.degrees(math.atan2(sideways[worst], heights[worst] - heights[0]))
        raise InputError(
            f"{series.label} is not stacked along its slice normal (gantry tilt or shifted slices): "
            f"{slices[worst].path.name} lies {sideways[worst]:.1f} mm beside it, {angle:.1f} degrees",
            "regularise the geometry first (in 3D Slicer: DICOM import, acquisition geometry regularization)",
        )


def _geometry(slices: list[SliceHeader], heights: NDArray[np.float64]) -> Geometry:
    first = slices[0]
    row_distance, column_distance = first.pixel_spacing
    step = round(float(heights[-1] - heights[0]) / (len(slices) - 1), 6)
    return Geometry(
        size_dhw=(len(slices), first.size[1], first.size[0]),
        spacing_dhw=(step, row_distance, column_distance),
        origin_lps=(first.position[0], first.position[1], first.position[2]),
        direction=tuple(float(c) for c in (_axes(first).T + 0.0).ravel()),
    )


def _read_voxels(slices: list[SliceHeader]) -> NDArray[Any]:
    """Read the slices in order; GDCM applies each file's rescale slope and intercept."""
    reader = sitk.ImageSeriesReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileNames([str(s.path) for s in slices])
    if len({s.rescale for s in slices}) > 1:
        reader.SetOutputPixelType(sitk.sitkFloat32)  # else the first file's type would cut the others' values
    try:
        return sitk.GetArrayFromImage(reader.Execute())
    except RuntimeError as error:
        _refuse_unreadable(slices)
        raise InputError(f"{slices[0].path.parent}: {one_line_reason(error)}", "export the series again") from None


def _refuse_unreadable(slices: list[SliceHeader]) -> None:
    """Name the first slice that cannot be read by itself."""
    for header in slices:
        try:
            sitk.ReadImage(str(header.path), imageIO="GDCMImageIO")
        except RuntimeError as error:
            raise InputError(f"{header.path} cannot be read: {one_line_reason(error)}", "copy it again") from None


def _thin_slice_warning(slices: list[SliceHeader], geometry: Geometry) -> tuple[str, ...]:
    thickness, step = slices[0].thickness, geometry.spacing_dhw[0]
    if thickness is None or thickness <= 0 or step < MISSING_STEP * thickness:
        return ()
    return (f"slices are {thickness:g} mm thick but {step:g} mm apart: what lies between them was not imaged",)


def _names(headers: list[SliceHeader]) -> str:
    return ", ".join(h.path.name for h in headers[:NAMED]) + _and_more(len(headers) - NAMED)


def _and_more(count: int) -> str:
    return f" and {count} more" if count > 0 else ""
