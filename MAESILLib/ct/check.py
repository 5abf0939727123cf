"""Is this image a CT volume in Hounsfield units? Refusals with their reason, and warnings.

What is refused would train or run without complaint and give nonsense; what is merely unusual is a warning. Values
below -1100 HU are padding outside the scan circle (-2000, -3024 and the like) and take no part in the decision.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from MAESILLib.ct.scan import NOT_CT
from MAESILLib.runtime.errors import InputError

MIN_VOXELS = 8
"""Fewest voxels on an axis: one patch."""
SPACING_LIMITS_MM = (0.05, 20.0)
"""Open limits of a believable spacing. The finest clinical CT (cone beam, photon counting, extremity) has 0.06 mm or
more, and slices over 20 mm apart do not make a volume; metres or micrometres taken for millimetres fall outside."""
PADDING_BELOW_HU = -1100
AIR_BELOW_HU = -200
"""Lung, bowel gas and the air around a patient are below it, no tissue is."""
FAT_HU = (-200, -20)
TISSUE_HU = (-200, 300)
MAX_SAMPLE = 1_000_000
LARGEST_VALUE = 100_000


def check_affine(affine: NDArray[np.float64], where: str) -> None:
    """Refuse an affine (4, 4) without extent along an axis.

    Raises:
        InputError: a spacing is 0 or no number, or two axes have one direction.
    """
    for axis, spacing in zip("ijk", np.linalg.norm(affine[:3, :3], axis=0), strict=True):
        if not (math.isfinite(spacing) and spacing > 0):
            raise InputError(
                f"{where} has a spacing of {spacing:g} mm along {axis}",
                "correct the spacing in the file's header, in mm",
            )
    volume = abs(np.linalg.det(affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)))
    if not np.isfinite(affine).all() or volume < 0.1:
        raise InputError(f"{where} has axes that span no volume", "correct the orientation in the file's header")


def check_grid(
    size_ijk: Sequence[int],
    spacing_ijk: Sequence[float],
    direction: Sequence[float],
    where: str,
    fewest: int = MIN_VOXELS,
) -> None:
    """Refuse too small a volume, unbelievable spacings and axes that are not perpendicular.

    Args:
        fewest: voxels along an axis.

    Raises:
        InputError: says which axis of ``where`` is wrong.
    """
    low, high = SPACING_LIMITS_MM
    for axis, spacing, count in zip("ijk", spacing_ijk, size_ijk, strict=True):
        if not (math.isfinite(spacing) and low < spacing <= high):
            raise InputError(
                f"{where} has a spacing of {spacing:g} mm along {axis}, outside ({low:g}, {high:g}] mm",
                "correct the spacing in the file's header, in mm",
            )
        if count < fewest:
            raise InputError(
                f"{where} has {count} voxels along {axis}, fewer than {fewest}", "give a larger part of the scan"
            )
    axes = np.array(direction, dtype=np.float64).reshape(3, 3)
    if not np.allclose(axes.T @ axes, np.eye(3), atol=1e-3):
        raise InputError(
            f"{where} has axes that are not perpendicular (a sheared grid, as gantry tilt makes)",
            "resample it to a rectangular grid first",
        )


def check_values(array: NDArray[Any], where: str) -> tuple[str, ...]:
    """Refuse voxel values that are not Hounsfield units; return warnings.

    Extremes are taken over all voxels, shares over a regular sample of at most about a million.

    Args:
        array: (D, H, W), any real dtype, as stored (before clipping).
        where: what to call the image in messages.

    Raises:
        InputError: says what the values look like instead.
    """
    if array.dtype.kind == "f":
        with np.errstate(all="ignore"):  # infinities of both signs make the sum NaN, which is the answer
            is_finite = math.isfinite(float(np.sum(array, dtype=np.float64)))
        if not is_finite:
            refuse_not_finite(~np.isfinite(array), "", where)
    low, high = float(array.min()), float(array.max())
    if low == high:
        raise InputError(f"{where} has the same value {low:g} in every voxel", "give a volume that shows something")
    if low > -1.5 and _is_label_map(array, high):
        raise InputError(
            f"{where} looks like a label map (whole numbers from {low:g} to {high:g} in flat regions), not CT",
            "give the CT volume itself",
        )
    check_range(low, high, where)
    # what a CT shows: air and, in Hounsfield units, fat and soft tissue
    sample = _sample(array)
    inside = sample[sample >= PADDING_BELOW_HU]
    if inside.size == 0:
        raise InputError(f"{where} has padding (below {PADDING_BELOW_HU} HU) only", "give a scan that shows a body")
    span = f"{where} has values from {low:g} to {high:g} with"
    if (soft_tissue := _shifted_soft_tissue(inside)) is not None:
        raise InputError(
            f"{span} soft tissue near {soft_tissue}: CT numbers stored with an offset of about +1024, not Hounsfield "
            "units",
            "if so, give the scan's RescaleIntercept: --hu-offset -1024",
        )
    tissue = _share(inside, *TISSUE_HU)
    if _share(inside, PADDING_BELOW_HU, AIR_BELOW_HU) >= 5e-4:
        text = f"{100 * tissue:.1f} % of the voxels have values of soft tissue (-200 to 300 HU): is it a body?"
        return (text,) if tissue < 0.01 else ()
    if tissue >= 0.5 and _share(inside, *FAT_HU) >= 0.005:
        return ("no air in the volume: taken as a crop from inside the body, in Hounsfield units",)
    raise InputError(
        f"{span} no air (nothing below {AIR_BELOW_HU} HU) and no range of soft tissue: MR or another modality, not CT "
        "in Hounsfield units",
        NOT_CT,
    )


def refuse_not_finite(wrong: NDArray[np.bool_], place: str, where: str) -> None:
    """Refuse voxels without a value, where there are any.

    Raises:
        InputError: says how many, and where the first is.
    """
    if count := int(np.count_nonzero(wrong)):
        k, j, i = np.unravel_index(int(np.argmax(wrong)), wrong.shape)
        raise InputError(
            f"{where} has {count} voxels{place} that are not finite (NaN or infinite), the first at (i, j, k) = "
            f"({i}, {j}, {k})",
            "replace them (outside the body with -1024) and save the volume again",
        )


def check_range(low: float, high: float, where: str) -> None:
    """Refuse ranges that no CT has, whatever it shows.

    Raises:
        InputError: says what has such values.
    """
    for is_wrong, what, hint in (
        (low >= -1.5 and high <= 1.5, "normalised intensities, not Hounsfield units", "give it before normalisation"),
        (low >= 0 and high <= 255, "an 8-bit picture (windowed export), not Hounsfield units", "export the CT values"),
        (high - low < 100, "too narrow a range for Hounsfield units (normalised?)", NOT_CT),
        (high > LARGEST_VALUE, "too large for Hounsfield units", NOT_CT),
        (high < AIR_BELOW_HU, "nothing but air in Hounsfield units", "give a scan that shows a body"),
    ):
        if is_wrong:
            raise InputError(f"{where} has values from {low:g} to {high:g}: {what}", hint)


def _shifted_soft_tissue(inside: NDArray[Any]) -> int | None:
    """Return the median of soft tissue if the values are those of a CT shifted by about 1000, else None.

    In such a volume half of what is denser than lung (300) or more lies between shifted fat and shifted organs with
    contrast medium (-150 to 250 HU, shifted by 1000 to 1024), which no other modality does by chance. Air is near 0, so
    little lies below ``AIR_BELOW_HU`` but what was filled in (the minimum); in 55 CTs it was twice as much or more.
    """
    imaged = inside[inside > inside.min()]
    not_air = imaged[imaged > 300]
    soft = not_air[(not_air >= 850) & (not_air < 1275)]
    air = np.count_nonzero(imaged < AIR_BELOW_HU)
    if not_air.size < 0.01 * inside.size or soft.size < 0.5 * not_air.size or air > 0.5 * not_air.size:
        return None
    return round(float(np.median(soft)))


def _share(values: NDArray[Any], low: float, high: float) -> float:
    return float(np.count_nonzero((values >= low) & (values < high)) / max(values.size, 1))


def _sample(array: NDArray[Any]) -> NDArray[Any]:
    step = max(1, math.ceil((array.size / MAX_SAMPLE) ** (1 / 3)))
    return array[::step, ::step, ::step]


def _is_label_map(array: NDArray[Any], high: float) -> bool:
    """Tell labels from intensities: few whole numbers, in regions where neighbours are equal."""
    if high > 65535:
        return False
    sample = _sample(array)
    if not np.issubdtype(sample.dtype, np.integer) and np.any(sample != np.rint(sample)):
        return False
    distinct = len(np.unique(sample))
    if distinct <= 16:
        return True
    left, right = array[:, :, :-1], array[:, :, 1:]
    step = max(1, array.size // (4 * MAX_SAMPLE))
    left, right = left[::step], right[::step]
    labelled = (left != 0) | (right != 0)
    equal = np.count_nonzero(labelled & (left == right))
    return distinct <= 1024 and bool(equal >= 0.5 * np.count_nonzero(labelled))
