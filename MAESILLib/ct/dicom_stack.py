"""Stack the slices of one DICOM series into a volume, or refuse by name what does not stack.

Slices are ordered by their position along the slice normal, never by file name or InstanceNumber. A stack that is not
along that normal (gantry tilt) keeps the sheared grid that its slices lie on.
"""

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from filecmp import cmp
from typing import Any

import numpy as np
from numpy.typing import NDArray

from MAESILLib.ct.dicom_slice import Slice, read_pixels
from MAESILLib.ct.regrid import AS_IT_IS_VOXELS, even_slices
from MAESILLib.ct.scan import NAMED, and_more, named
from MAESILLib.runtime.errors import InputError

SAME_POSITION_MM = 0.01
SAME = {"size": 0, "pixel_spacing": 5e-4, "orientation": 1e-3}
"""How much of a grid may differ between its slices, because files hold few digits."""
STEP_TOLERANCE = 0.1
"""Largest deviation of a slice distance from another, relative."""
MISSING_STEP = 1.5
"""A distance over this many medians is a gap of missing slices, or of slices that were made further apart."""
BESIDE_PIXELS = 0.5
"""How far a slice may lie beside the line through the first and the last one, in pixels."""
LARGEST_MEANT = 4.5
"""Distance over this many medians is a hole in the scan, unless the slices are as thick."""
IN_A_ROW = 3
"""Gaps that follow one another from which they are a part of the body that was scanned with slices further apart."""
MOST_TIMES = 8
"""How many times as many slices as there are are interpolated at most."""
WRAPPED_FROM = (1 << 16) - (1 << 12)
"""Stored values of unsigned 16 bits from here on are padding below 0 that was written without its sign."""
EXTENDED_INTERCEPT = -4096
"""From here down the largest stored values are metal on an extended CT scale, and not padding."""


@dataclass(frozen=True)
class Arranged:
    """The slices of a series from bottom to top, and the grid of their volume.

    Attributes:
        slices: in order; doubles are left out.
        heights: along their normal in mm, (D,).
        step: distance in mm of the slices of the volume.
        affine: of the volume, (4, 4), from (i, j, k, 1) to LPS in mm.
        size_dhw: voxels of the volume.
        warnings: one line each.
    """

    slices: list[Slice]
    heights: NDArray[np.float64]
    step: float
    affine: NDArray[np.float64]
    size_dhw: tuple[int, int, int]
    warnings: tuple[str, ...]


def arrange(label: str, slices: Iterable[Slice], fill_gaps: bool) -> Arranged:
    """Order and check the slices of a series.

    Args:
        label: what messages call it.
        fill_gaps: interpolate slices that are missing, in place of a refusal.

    Raises:
        InputError: slices differ, coincide, are missing or are shifted against each other; names them.
    """
    slices = sorted(slices, key=lambda s: (s.height, s.path, s.frame or 0))
    _refuse_mixed(label, slices)
    slices = _without_doubles(label, slices)
    if len(slices) < 2:
        raise InputError(f"{label} has one slice only", "give the folder with the whole series")
    heights = np.array([s.height for s in slices])
    step, warnings = _step(label, slices, heights, fill_gaps)
    depth = round((heights[-1] - heights[0]) / step) + 1
    if depth > MOST_TIMES * len(slices):
        raise InputError(
            f"{label} has slices from {heights[0]:.6g} to {heights[-1]:.6g} mm, {step:.3g} mm apart at the least: "
            f"{depth} slices would be made of {len(slices)}",
            "remove the slices that lie apart",
        )
    if 0 < (thickness := slices[0].thickness or 0) <= step / MISSING_STEP:
        text = f"slices are {thickness:g} mm thick but {step:g} mm apart: what lies between them was not imaged"
        warnings += (text,)
    columns, rows = slices[0].size
    return Arranged(slices, heights, step, _affine(label, slices, heights, step), (depth, rows, columns), warnings)


def read_voxels(arranged: Arranged) -> NDArray[Any]:
    """Return the volume in HU, (D, H, W): int16 where all values are whole numbers that fit, else float32.

    Raises:
        InputError: pixels are damaged or compressed in an unsupported way; names the file.
    """
    slices, size = arranged.slices, (len(arranged.slices), *arranged.size_dhw[1:])
    # other numbers, and stored ones of more than 16 bits, are calculated in double precision
    whole = all(s.pixels[2] <= 16 and all(v == int(v) and abs(v) < 1 << 14 for v in s.rescale) for s in slices)
    voxels = np.empty(size, np.int16 if whole else np.float32)
    by_file = sorted(range(len(slices)), key=lambda n: (slices[n].path, slices[n].frame or 0))
    for _, group in itertools.groupby(by_file, key=lambda n: slices[n].path):
        numbers = list(group)
        for number, stored in zip(numbers, read_pixels([slices[n] for n in numbers]), strict=True):
            if stored.shape != size[1:]:
                raise InputError(f"{slices[number].path} has pixels of another shape than it states", "copy it again")
            _to_hu(stored, *slices[number].rescale, voxels[number])
    if len(voxels) == arranged.size_dhw[0] and _is_even(arranged.heights, arranged.step):
        return voxels
    return even_slices(voxels, arranged.heights, arranged.step)


def _to_hu(stored: NDArray[Any], slope: float, intercept: float, hu: NDArray[Any]) -> None:
    """Write stored values (rows, columns) into ``hu`` as HU."""
    is_unsigned = stored.dtype.kind == "u" and stored.dtype.itemsize == 2
    if is_unsigned and intercept > EXTENDED_INTERCEPT and stored.max() >= WRAPPED_FROM:
        stored = np.where(stored >= WRAPPED_FROM, stored.astype(np.int32) - (1 << 16), stored)
    if hu.dtype != np.int16:
        hu[:] = stored * np.float64(slope) + intercept
        return
    ends = [int(end) * int(slope) + int(intercept) for end in (stored.min(), stored.max())]
    if min(ends) >= -32768 and max(ends) <= 32767:
        # modulo 2^16, where all results fit: without copies of 32 bits, which took half of the time
        hu[:] = stored
        if slope != 1:
            hu *= np.int16(slope)
        hu += np.int16(intercept)
        return
    hu[:] = np.clip(stored.astype(np.int32) * int(slope) + int(intercept), -32768, 32767)


def same_grid(one: Slice, other: Slice) -> bool:
    """Tell whether slices have the same size, spacing and orientation."""
    return all(_near(getattr(one, name), getattr(other, name), most) for name, most in SAME.items())


def _near(one: Iterable[float], other: Iterable[float], most: float) -> bool:
    return all(abs(a - b) <= most for a, b in zip(one, other, strict=True))


def _refuse_mixed(label: str, slices: list[Slice]) -> None:
    for name, most in SAME.items():
        groups: dict[tuple[float, ...], list[str]] = {}
        for one in slices:
            value = getattr(one, name)
            groups.setdefault(next((v for v in groups if _near(v, value, most)), value), []).append(one.path.name)
        if len(groups) > 1:
            between = "/" if name == "orientation" else "x"
            texts = {value: between.join(f"{round(v, 4) + 0.0:g}" for v in value) for value in groups}
            (usual, kept), *others = sorted(groups.items(), key=lambda item: -len(item[1]))
            odd = "; ".join(f"{texts[value]}: {named(sorted(names))}" for value, names in others[:NAMED])
            raise InputError(
                f"{label} mixes slices of different {name.replace('_', ' ')}s: {len(kept)} have {texts[usual]}, but "
                f"{odd}",
                "remove those files, or export one series of equal slices",
            )


def _without_doubles(label: str, slices: list[Slice]) -> list[Slice]:
    """Leave out slices that are there twice; refuse different ones at one position."""
    kept: list[Slice] = []
    for one in slices:
        last = kept[-1] if kept else None
        if last is None or one.height - last.height >= SAME_POSITION_MM:
            kept.append(one)
        elif (
            last.rescale != one.rescale
            or not np.allclose(last.position, one.position, atol=SAME_POSITION_MM)
            or not (
                (last.frame == one.frame and cmp(last.path, one.path, shallow=False))
                or np.array_equal(read_pixels([last])[0], read_pixels([one])[0])
            )
        ):
            doubles = sum(b.height - a.height < SAME_POSITION_MM for a, b in itertools.pairwise(slices))
            raise InputError(
                f"{label} has {doubles} duplicate slice positions with different slices: {last.path.name} and "
                f"{one.path.name} both lie at {one.height:.2f} mm{and_more(doubles - 1)}",
                "give one copy and one phase of the series",
            )
    return kept


def _step(
    label: str, slices: list[Slice], heights: NDArray[np.float64], fill_gaps: bool
) -> tuple[float, tuple[str, ...]]:
    """Return the distance of the volume's slices, and warnings; refuse slices that are missing."""
    steps = np.diff(heights)
    usual = float(np.median(steps))
    if _is_even(heights, usual):
        return float(heights[-1] - heights[0]) / (len(slices) - 1), ()
    gaps = np.flatnonzero(steps > MISSING_STEP * usual)
    if not len(gaps) or _are_meant(slices, steps, gaps, usual):
        even = _divided(heights, max(float(steps.min()), usual / 3))
        apart = f"{steps.min():.3g} to {steps.max():.3g} mm apart"
        return even, (f"slices are {apart}: interpolated to equal distances of {even:.3g} mm",)
    places = "; ".join(
        f"between {slices[g].path.name} ({heights[g]:.2f} mm) and {slices[g + 1].path.name} ({heights[g + 1]:.2f} mm)"
        for g in gaps[:NAMED]
    )
    missing = int(sum(max(1, round(float(steps[g]) / usual) - 1) for g in gaps))
    count = f"about {missing} slice{'s' if missing > 1 else ''}"
    what = f"missing {count} (the others are {usual:.2f} mm apart) {places}{and_more(len(gaps) - NAMED)}"
    if fill_gaps:
        return _divided(heights, usual), (f"is {what}: interpolated",)
    raise InputError(f"{label} is {what}", "restore the missing files, or interpolate them: --fill-gaps")


def _divided(heights: NDArray[np.float64], step: float) -> float:
    """Return a step of about ``step`` and no larger, a whole number of which leads from the first to the last slice."""
    span = float(heights[-1] - heights[0])
    return span / math.ceil(span / step - STEP_TOLERANCE)


def _are_meant(slices: list[Slice], steps: NDArray[np.float64], gaps: NDArray[np.intp], usual: float) -> bool:
    """Tell slices made further apart from missing ones.

    They are as thick as they are apart; or the gaps are small, and no multiples of the usual distance or, where no
    thickness is stated, follow one another.
    """
    thick = np.array([max(slices[g].thickness or 0, slices[g + 1].thickness or 0) for g in gaps])
    if np.all(thick >= (1 - STEP_TOLERANCE) * steps[gaps]):
        return True
    multiples = steps[gaps] / usual
    if multiples.max() > LARGEST_MEANT:
        return False
    in_a_row = not thick.any() and len(gaps) >= IN_A_ROW and gaps[-1] - gaps[0] == len(gaps) - 1
    return bool(in_a_row or np.all(np.abs(multiples - np.rint(multiples)) > STEP_TOLERANCE))


def _is_even(heights: NDArray[np.float64], step: float) -> bool:
    """Tell whether slices lie at equal distances but for rounding, as of 0.625 mm to 0.1 mm."""
    apart = np.abs(heights - np.linspace(heights[0], heights[-1], len(heights))).max()
    return bool(apart <= AS_IT_IS_VOXELS * step)


def _affine(label: str, slices: list[Slice], heights: NDArray[np.float64], step: float) -> NDArray[np.float64]:
    """Return the affine of the volume; refuse slices that do not lie on one line."""
    first = slices[0]
    i, j, k = first.axes()
    offsets = np.array([s.position for s in slices]) - np.array(first.position)
    risen = heights - heights[0]
    along = offsets[-1] / risen[-1]
    beside = np.linalg.norm(offsets - risen[:, None] * along, axis=1)
    worst, most = int(np.argmax(beside)), BESIDE_PIXELS * min(first.pixel_spacing)
    if beside[worst] > most:
        raise InputError(
            f"{label} has slices shifted against each other: {slices[worst].path.name} lies {beside[worst]:.1f} mm "
            "beside its place between the others",
            "export the series again",
        )
    row_distance, column_distance = first.pixel_spacing
    affine = np.eye(4)
    # where the stack is along the normal, rounded positions do not bend it
    straight = np.linalg.norm(offsets[-1] - risen[-1] * k) <= most
    affine[:3, :3] = np.array([i * column_distance, j * row_distance, (k if straight else along) * step]).T
    affine[:3, 3] = first.position
    return affine
