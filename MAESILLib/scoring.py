"""The figures of one reconstruction: model and harmonic fill on the same masks, on the model's grid."""

from __future__ import annotations

from typing import Any

import numpy as np

from MAESILLib.body import body_mask
from MAESILLib.config import ModelConfig
from MAESILLib.fills import fill_harmonic
from MAESILLib.metrics import psnr, score, score_whole
from MAESILLib.reconstruction import Plan, Reconstruction, masks_of_volume
from MAESILLib.stopping import StopRequest
from MAESILLib.volume import unit_to_hu

Window = tuple[float, float]


def measure(
    unit: np.ndarray,
    result: Reconstruction,
    plan: Plan,
    model: ModelConfig,
    window_hu: Window,
    name: str,
    body: np.ndarray | None = None,
    stop: StopRequest | None = None,
) -> dict[str, Any]:
    """Return the figures of metrics.json; None where one does not apply.

    Args:
        unit: (D, H, W) the reference, intensities in [0, 1].
        result: what the model made of it under ``plan``.
        name: of the volume, as it was given to the reconstruction.
        body: (D, H, W) bool, the patient; found in ``unit`` if not given.
        stop: checked between the figures, which take seconds on a large volume.

    Keys with ``masked`` and ``composite`` refer to what the mask hid (with complete coverage: its first mask);
    ``complete`` and ``autoencoding`` to every voxel.

    Raises:
        CancelledError: a stop was asked for.
    """
    stop = stop or StopRequest()
    stop.check()
    if body is None:
        body = body_mask(unit_to_hu(unit, window_hu))
        stop.check()
    some = score(unit, result.prediction, result.hidden, body, window_hu, model.patch_size)
    figures: dict[str, Any] = {
        "psnr_masked_db": some.psnr_masked_db,
        "mae_masked_hu": some.mae_masked_hu,
        "psnr_composite_db": some.psnr_composite_db,
        "ssim_composite": some.ssim_composite,
        "border_index": some.border_index,
        "baseline_harmonic_psnr_masked_db": None,
    }
    if plan.mask.strategy == "none":
        whole = score_whole(unit, result.prediction, body, window_hu, model.patch_size)
        figures |= {
            "psnr_autoencoding_db": whole.psnr_db,
            "ssim_autoencoding": whole.ssim,
            "border_index": whole.border_index,
        }
        return _rounded(figures)
    if plan.coverage == "complete":
        stop.check()
        whole = score_whole(unit, result.prediction, body, window_hu, model.patch_size)
        figures |= {
            "psnr_complete_db": whole.psnr_db,
            "mae_complete_hu": whole.mae_hu,
            "ssim_complete": whole.ssim,
            "border_index": whole.border_index,
        }
    if plan.overlap == 0:
        # overlapping superpatches hide a voxel here and show it there: no single fill compares with that
        filled = harmonic(unit, plan, model, name, stop)
        figures["baseline_harmonic_psnr_masked_db"] = _finite(psnr(unit, filled, result.hidden))
        if plan.coverage == "complete":
            figures["baseline_harmonic_psnr_complete_db"] = _finite(psnr(unit, filled))
    return _rounded(figures)


def harmonic(
    unit: np.ndarray, plan: Plan, model: ModelConfig, name: str, stop: StopRequest | None = None
) -> np.ndarray:
    """Return the harmonic fill of the masks of ``plan``: each voxel the mean over the passes that hid it.

    The fill reads the whole volume's visible voxels, the model only those of its superpatch.
    """
    shape = (unit.shape[0], unit.shape[1], unit.shape[2])
    total, count = np.zeros(shape, np.float32), np.zeros(shape, np.uint8)
    for hidden in masks_of_volume(shape, model.superpatch_size, model.patch_size, plan, name):
        if stop is not None:
            stop.check()
        total[hidden] += fill_harmonic(unit, hidden)[hidden]
        count += hidden
    return np.where(count > 0, total / np.maximum(count, 1), unit)


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _rounded(figures: dict[str, Any]) -> dict[str, Any]:
    return {key: None if value is None else round(float(value), 5) for key, value in figures.items()}
