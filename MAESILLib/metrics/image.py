"""How well a prediction matches a CT volume: PSNR, MAE, SSIM and the visibility of the patch grid.

All volumes are (D, H, W) intensities of the model's grid: HU clipped to a window and mapped to [0, 1],
so the data range is 1. Padding is cropped off before: every voxel passed here counts.
"""

import itertools
import math

import numpy as np
from scipy import ndimage

from MAESILLib.metrics.catalogue import metric_key
from MAESILLib.runtime.errors import InputError
from MAESILLib.runtime.stopping import NEVER, StopRequest

SSIM_RADIUS = 5
SSIM_SIGMA = 1.5
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2
SLAB = 16
"""Planes worked on at once: the intermediate results of a slab stay in the processor's cache."""


def score(
    reference: np.ndarray,
    prediction: np.ndarray,
    hidden: np.ndarray,
    body: np.ndarray,
    window_hu: tuple[float, float],
    patch_size: tuple[int, int, int],
    mode: str = "masked",
    stop: StopRequest = NEVER,
) -> dict[str, float | None]:
    """Return the metrics of a prediction by their keys in results; None where one is undefined or infinite.

    In the mode ``masked``, PSNR and MAE are those of the hidden voxels; visible voxels are pasted in for the
    composite's PSNR over all voxels, its SSIM over the hidden voxels of the body, and the border index. In the modes
    ``complete`` and ``autoencoding`` the prediction counts everywhere.

    Args:
        reference: (D, H, W) intensities in [0, 1].
        prediction: (D, H, W) intensities, clipped to [0, 1] here; in the mode ``masked`` read only where hidden.
        hidden: (D, H, W) bool, True where the model did not see the voxel; counts in the mode ``masked`` alone.
        body: (D, H, W) bool, True in the patient (see :func:`MAESILLib.ct.body.body_mask`).
        window_hu: lowest and highest HU of the window that maps to [0, 1].
        patch_size: voxels (D, H, W) of a patch.
        mode: masked, complete or autoencoding.

    Raises:
        InputError: the shapes do not fit, or the prediction is not finite.
    """
    _check(reference, prediction, hidden, body)
    made, where, inside = np.clip(prediction, 0, 1), None, body
    composite = {}
    if mode == "masked":
        made, where, inside = np.where(hidden, made, reference), hidden, hidden & body
        composite = {"psnr_composite_db": psnr(reference, made)}
    metrics = {
        metric_key("psnr", mode): psnr(reference, made, where),
        metric_key("mae", mode): mae_hu(reference, made, window_hu, where),
        **composite,
        metric_key("ssim", mode): ssim(reference, made, inside, stop),
        "border_index": border_index(reference, made, patch_size, body),
    }
    return {key: finite(value) for key, value in metrics.items()}


def finite(value: float) -> float | None:
    """Return a value, or None where it is infinite or undefined: JSON has neither."""
    return value if math.isfinite(value) else None


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


def ssim(reference: np.ndarray, prediction: np.ndarray, where: np.ndarray, stop: StopRequest = NEVER) -> float:
    """Return the mean of :func:`ssim_map` over the voxels of ``where``; ``nan`` if there are none.

    Only the bounding box of ``where`` is computed; the map there is the same as that of the whole volumes.
    """
    _check(reference, prediction, where)
    if not where.any():
        return math.nan
    (found,) = ndimage.find_objects(where.astype(np.uint8))
    box = tuple(slice(max(part.start - SSIM_RADIUS, 0), part.stop + SSIM_RADIUS) for part in found)
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
    for start in range(0, depth, SLAB):
        stop.check()
        first, last = max(start - SSIM_RADIUS, 0), min(start + SLAB + SSIM_RADIUS, depth)
        end = min(start + SLAB, depth)
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
    reference: np.ndarray, prediction: np.ndarray, patch_size: tuple[int, int, int], where: np.ndarray
) -> float:
    """Return how visible the patch grid is in ``prediction``: 1.0 not at all, above 1 as seams, below 1 as blur.

    The mean absolute difference of face neighbours in different patches over that of face neighbours in
    the same patch, all axes pooled, divided by the same ratio in ``reference``.

    Args:
        reference, prediction: (D, H, W) intensities.
        patch_size: voxels (D, H, W) of a patch; the first begins at voxel 0.
        where: (D, H, W) bool; a pair counts if both its voxels are in it.

    Returns:
        The index; ``nan`` where no pair counts or a mean to divide by is zero.

    Raises:
        InputError: the shapes do not fit, or the prediction is not finite.
    """
    _check(reference, prediction, where)
    denominator = _border_ratio(reference, patch_size, where)
    return _border_ratio(prediction, patch_size, where) / denominator if denominator else math.nan


def _border_ratio(volume: np.ndarray, patch_size: tuple[int, int, int], where: np.ndarray) -> float:
    """Return the mean absolute difference across patch borders over that inside patches, or ``nan``."""
    # Columns: sum of differences and number of pairs; rows: inside, across.
    totals = np.zeros((2, 2))
    for axis, first in itertools.product(range(3), range(0, len(volume), SLAB)):
        planes = slice(first, first + SLAB + (axis == 0))
        others = tuple(other for other in range(3) if other != axis)
        lower, upper = (np.moveaxis(where[planes], axis, 0)[part] for part in (slice(None, -1), slice(1, None)))
        both = np.moveaxis(lower & upper, 0, axis)
        sums = (np.abs(np.diff(volume[planes], axis=axis)) * both).sum(axis=others, dtype=np.float64)
        pairs = np.count_nonzero(both, axis=others)
        across = (np.arange(1, len(sums) + 1) + (first if axis == 0 else 0)) % patch_size[axis] == 0
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
