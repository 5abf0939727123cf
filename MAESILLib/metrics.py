"""How well a prediction matches a CT volume: PSNR, MAE, SSIM and the visibility of the patch grid.

All volumes are (D, H, W) intensities of the model's grid: HU clipped to a window and mapped to [0, 1],
so the data range is 1. Padding is cropped off before: every voxel passed here counts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from MAESILLib.errors import InputError
from MAESILLib.stopping import NEVER, StopRequest

SSIM_RADIUS = 5
SSIM_SIGMA = 1.5
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2
# Planes filtered at once: the float64 intermediates of a slab then stay in the processor's cache.
SSIM_SLAB = 16


@dataclass(frozen=True)
class Scores:
    """Figures of merit of one masked reconstruction; None where one is undefined or infinite.

    Attributes:
        psnr_masked_db: over the hidden voxels; None if nothing is hidden.
        mae_masked_hu: mean absolute error over the hidden voxels, in HU; None if nothing is hidden.
        psnr_composite_db: of the composite (visible voxels pasted in), over all voxels.
        ssim_composite: mean of the composite's SSIM map over the hidden voxels of the body.
        border_index: of the composite inside the body; 1.0 means no visible patch grid.
    """

    psnr_masked_db: float | None
    mae_masked_hu: float | None
    psnr_composite_db: float | None
    ssim_composite: float | None
    border_index: float | None


@dataclass(frozen=True)
class WholeScores:
    """Figures of merit of a prediction of every voxel; None where one is undefined or infinite.

    For auto-encoding (nothing was hidden) and for complete coverage (each voxel was predicted unseen).

    Attributes:
        psnr_db: over all voxels.
        mae_hu: mean absolute error over all voxels, in HU.
        ssim: mean of the SSIM map over the body.
        border_index: inside the body; 1.0 means no visible patch grid.
    """

    psnr_db: float | None
    mae_hu: float | None
    ssim: float | None
    border_index: float | None


def score(
    reference: np.ndarray,
    prediction: np.ndarray,
    hidden: np.ndarray,
    body: np.ndarray,
    window_hu: tuple[float, float],
    patch_size: int | tuple[int, int, int],
    stop: StopRequest = NEVER,
) -> Scores:
    """Score the prediction of the hidden voxels of one volume.

    Args:
        reference: (D, H, W) intensities in [0, 1].
        prediction: (D, H, W) intensities, clipped to [0, 1] here; read only where hidden.
        hidden: (D, H, W) bool, True where the model did not see the voxel.
        body: (D, H, W) bool, True in the patient (see :func:`MAESILLib.body.body_mask`).
        window_hu: lowest and highest HU of the window that maps to [0, 1].
        patch_size: voxels of a patch, one number or (D, H, W).

    Raises:
        InputError: the shapes do not fit, or the prediction is not finite.
        CancelledError: a stop was asked for.
    """
    _check(reference, prediction, hidden, body)
    composite = np.where(hidden, np.clip(prediction, 0, 1), reference)
    return Scores(
        psnr_masked_db=_json_safe(psnr(reference, composite, hidden)),
        mae_masked_hu=_json_safe(mae_hu(reference, composite, window_hu, hidden)),
        psnr_composite_db=_json_safe(psnr(reference, composite)),
        ssim_composite=_json_safe(ssim(reference, composite, hidden & body, stop)),
        border_index=_json_safe(border_index(reference, composite, patch_size, where=body)),
    )


def score_whole(
    reference: np.ndarray,
    prediction: np.ndarray,
    body: np.ndarray,
    window_hu: tuple[float, float],
    patch_size: int | tuple[int, int, int],
    stop: StopRequest = NEVER,
) -> WholeScores:
    """Score a prediction of every voxel: auto-encoding (mask none) or complete coverage.

    Arguments and errors as in :func:`score`.
    """
    _check(reference, prediction, body)
    clipped = np.clip(prediction, 0, 1)
    return WholeScores(
        psnr_db=_json_safe(psnr(reference, clipped)),
        mae_hu=_json_safe(mae_hu(reference, clipped, window_hu)),
        ssim=_json_safe(ssim(reference, clipped, body, stop)),
        border_index=_json_safe(border_index(reference, clipped, patch_size, where=body)),
    )


def psnr(reference: np.ndarray, prediction: np.ndarray, where: np.ndarray | None = None) -> float:
    """Return the peak signal-to-noise ratio in dB for data range 1, -10 log10(mean squared error).

    Args:
        reference, prediction: (D, H, W) intensities; nothing is clipped here.
        where: (D, H, W) bool, the voxels that count. None: all.

    Returns:
        The PSNR; ``inf`` where the two are equal, ``nan`` where no voxel counts.

    Raises:
        InputError: the shapes do not fit, or the prediction is not finite.
    """
    difference = _difference(reference, prediction, where)
    if not difference.size:
        return math.nan
    mean_squared = np.square(difference, out=difference).mean(dtype=np.float64)
    return math.inf if mean_squared == 0 else -10 * math.log10(mean_squared)


def mae_hu(
    reference: np.ndarray, prediction: np.ndarray, window_hu: tuple[float, float], where: np.ndarray | None = None
) -> float:
    """Return the mean absolute error in HU of two volumes mapped from ``window_hu`` to [0, 1].

    Arguments and errors as in :func:`psnr`; ``nan`` where no voxel counts.
    """
    difference = _difference(reference, prediction, where)
    if not difference.size:
        return math.nan
    low, high = window_hu
    return float(np.abs(difference, out=difference).mean(dtype=np.float64) * (high - low))


def ssim(
    reference: np.ndarray, prediction: np.ndarray, where: np.ndarray | None = None, stop: StopRequest = NEVER
) -> float:
    """Return the mean of :func:`ssim_map` over the voxels of ``where`` (None: all); ``nan`` if there are none.

    Only the bounding box of ``where`` is computed; the map there is the same as that of the whole volumes.
    """
    _check(reference, prediction, where)
    if where is None:
        return float(ssim_map(reference, prediction, stop).mean(dtype=np.float64))
    if not where.any():
        return math.nan
    box = _bounding_box(where, SSIM_RADIUS)
    return float(ssim_map(reference[box], prediction[box], stop)[where[box]].mean(dtype=np.float64))


def ssim_map(reference: np.ndarray, prediction: np.ndarray, stop: StopRequest = NEVER) -> np.ndarray:
    """Return the structural similarity of the 3D neighbourhoods of each voxel, data range 1.

    Z. Wang, A. Bovik, H. Sheikh, E. Simoncelli, IEEE Trans. Image Process. 13(4), 2004, equation 13,
    with a Gaussian window of sigma 1.5 and 11x11x11 voxels, K1 .01, K2 .03, population variances;
    volumes are continued by reflection. Arguments and errors as in :func:`psnr`.

    Returns:
        (D, H, W) float32, 1 where the neighbourhoods are equal.
    """
    _check(reference, prediction)
    similarity = np.empty(reference.shape, np.float32)
    depth = len(reference)
    for start in range(0, depth, SSIM_SLAB):
        stop.check()
        first, last = max(start - SSIM_RADIUS, 0), min(start + SSIM_SLAB + SSIM_RADIUS, depth)
        end = min(start + SSIM_SLAB, depth)
        similarity[start:end] = _ssim_slab(
            reference[first:last].astype(np.float64),
            prediction[first:last].astype(np.float64),
            slice(start - first, end - first),
        )
    return similarity


def _ssim_slab(x: np.ndarray, y: np.ndarray, planes: slice) -> np.ndarray:
    """Return the SSIM map of the ``planes`` of a slab; both variances enter as their sum only."""
    mean_x, mean_y = _window_mean(x, planes), _window_mean(y, planes)
    product = mean_x * mean_y
    squares = mean_x**2 + mean_y**2
    covariance = _window_mean(x * y, planes) - product
    variances = _window_mean(x**2 + y**2, planes) - squares
    numerator = (2 * product + SSIM_C1) * (2 * covariance + SSIM_C2)
    return numerator / ((squares + SSIM_C1) * (variances + SSIM_C2))


def _window_mean(volume: np.ndarray, planes: slice) -> np.ndarray:
    offsets = np.arange(-SSIM_RADIUS, SSIM_RADIUS + 1)
    kernel = np.exp(-(offsets**2) / (2 * SSIM_SIGMA**2))
    kernel /= kernel.sum()
    volume = ndimage.correlate1d(volume, kernel, axis=0)[planes]
    return ndimage.correlate1d(ndimage.correlate1d(volume, kernel, axis=1), kernel, axis=2)


def border_index(
    reference: np.ndarray,
    prediction: np.ndarray,
    patch_size: int | tuple[int, int, int],
    origin_offsets: tuple[int, int, int] = (0, 0, 0),
    where: np.ndarray | None = None,
) -> float:
    """Return how visible the patch grid is in ``prediction``: 1.0 not at all, above 1 as seams, below 1 as blur.

    The mean absolute difference of face neighbours in different patches over that of face neighbours in
    the same patch, all axes pooled, divided by the same ratio in ``reference``.

    Args:
        reference, prediction: (D, H, W) intensities.
        patch_size: voxels of a patch, one number or (D, H, W).
        origin_offsets: (D, H, W) index of the first voxel of some patch.
        where: (D, H, W) bool; a pair counts if both its voxels are in it. None: all.

    Returns:
        The index; ``nan`` where no pair counts or a mean to divide by is zero.

    Raises:
        InputError: the shapes do not fit, or the prediction is not finite.
    """
    _check(reference, prediction, where)
    sizes = (patch_size,) * 3 if isinstance(patch_size, int) else patch_size
    numerator = _border_ratio(prediction, sizes, origin_offsets, where)
    denominator = _border_ratio(reference, sizes, origin_offsets, where)
    return numerator / denominator if denominator else math.nan


def _border_ratio(
    volume: np.ndarray, sizes: tuple[int, int, int], offsets: tuple[int, int, int], where: np.ndarray | None
) -> float:
    """Return the mean absolute difference across patch borders over that inside patches, or ``nan``."""
    # Columns: sum of differences and number of pairs; rows: inside, across.
    totals = np.zeros((2, 2))
    for axis in range(3):
        difference = np.abs(np.diff(volume, axis=axis))
        others = tuple(other for other in range(3) if other != axis)
        if where is None:
            pairs = np.full(difference.shape[axis], difference.size / max(difference.shape[axis], 1))
        else:
            lower, upper = (np.moveaxis(where, axis, 0)[part] for part in (slice(None, -1), slice(1, None)))
            both = np.moveaxis(lower & upper, 0, axis)
            difference *= both
            pairs = np.count_nonzero(both, axis=others)
        sums = difference.sum(axis=others, dtype=np.float64)
        across = (np.arange(1, len(sums) + 1) - offsets[axis]) % sizes[axis] == 0
        for row, chosen in enumerate((~across, across)):
            totals[row] += sums[chosen].sum(), pairs[chosen].sum()
    (inside_sum, inside_pairs), (across_sum, across_pairs) = totals.tolist()
    if not (inside_sum and across_pairs):
        return math.nan
    return (across_sum / across_pairs) / (inside_sum / inside_pairs)


def _difference(reference: np.ndarray, prediction: np.ndarray, where: np.ndarray | None) -> np.ndarray:
    """Return a fresh array of the differences that count."""
    _check(reference, prediction, where)
    if where is None:
        return prediction - reference
    return prediction[where] - reference[where]


def _bounding_box(where: np.ndarray, margin: int) -> tuple[slice, ...]:
    box = []
    for axis in range(where.ndim):
        others = tuple(other for other in range(where.ndim) if other != axis)
        indices = np.flatnonzero(where.any(axis=others))
        box.append(slice(max(int(indices[0]) - margin, 0), int(indices[-1]) + 1 + margin))
    return tuple(box)


def _json_safe(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _check(reference: np.ndarray, prediction: np.ndarray, *masks: np.ndarray | None) -> None:
    if reference.ndim != 3 or prediction.shape != reference.shape:
        raise InputError(
            f"cannot compare volumes of shapes {reference.shape} and {prediction.shape}",
            "pass two (D, H, W) arrays on the same grid",
        )
    for mask in masks:
        if mask is not None and (mask.shape != reference.shape or mask.dtype != bool):
            raise InputError(
                f"a mask is {mask.dtype} of shape {mask.shape}, but the volume has shape {reference.shape}",
                "pass a bool array of the volume's shape",
            )
    if not np.isfinite(prediction).all():
        raise InputError("the prediction holds values that are not finite", "check the checkpoint it was made with")
