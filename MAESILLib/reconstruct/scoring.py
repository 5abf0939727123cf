"""The metrics of one reconstruction: model and harmonic fill on the same masks, on the model's grid."""

from typing import Any

import numpy as np

from MAESILLib.config import Window
from MAESILLib.ct.body import body_mask
from MAESILLib.ct.volume import hu_to_unit, unit_to_hu
from MAESILLib.metrics.image import border_index, finite, mae_hu, psnr, score
from MAESILLib.reconstruct.plan import Plan
from MAESILLib.reconstruct.reconstruction import Reconstruction
from MAESILLib.runtime.errors import InputError
from MAESILLib.runtime.stopping import NEVER, StopRequest


def measure(
    unit: np.ndarray,
    result: Reconstruction,
    plan: Plan,
    patch_size: tuple[int, int, int],
    window_hu: Window,
    *,
    shown_hu: Window | None = None,
    body: np.ndarray | None = None,
    stop: StopRequest = NEVER,
) -> dict[str, Any]:
    """Return the metrics of a reconstruction and of the smooth fills beside it; None where one does not apply.

    Args:
        unit: (D, H, W) the reference, intensities in [0, 1] of the model's window ``window_hu``.
        result: what the model made of it under ``plan``.
        shown_hu: the window the metrics refer to, within ``window_hu``; that one if not given. Model and fills
            work in the model's window, and what they predict is mapped.
        body: (D, H, W) bool, the patient; found in ``unit`` if not given.

    Keys with ``masked`` and ``composite`` refer to what the mask hid; ``complete`` and ``autoencoding`` to every
    voxel. With complete coverage ``masked`` refers to what the first mask hid, predicted like everything there by
    the mean of all passes that hid it: compare it with single coverage only through the harmonic fill beside it.

    Raises:
        InputError: ``shown_hu`` reaches beyond ``window_hu``.
    """
    shown = shown_hu or window_hu
    if not window_hu[0] <= shown[0] < shown[1] <= window_hu[1]:
        limits = f"{window_hu[0]:g} to {window_hu[1]:g}"
        raise InputError(
            f"the window {shown[0]:g} to {shown[1]:g} HU reaches beyond the model's, {limits}", "narrow it"
        )
    if body is None:
        body = body_mask(unit_to_hu(unit, window_hu))
    is_complete = plan.coverage == "complete"
    reference = in_window(unit, window_hu, shown)
    prediction = in_window(result.prediction, window_hu, shown)
    modes = ["masked"]
    if is_complete or not plan.hides:
        modes.append("complete" if is_complete else "autoencoding")
    metrics: dict[str, float | None] = {}
    for mode in modes:
        stop.check()
        metrics |= score(reference, prediction, result.hidden, body, shown, patch_size, mode, stop)
    filled = None if result.filled is None else in_window(result.filled, window_hu, shown)
    metrics["baseline_harmonic_psnr_masked_db"] = None
    if filled is not None:
        metrics["baseline_harmonic_psnr_masked_db"] = finite(psnr(reference, filled, result.hidden))
        metrics["baseline_harmonic_border_index"] = finite(border_index(reference, filled, patch_size, body))
        if is_complete:
            metrics["baseline_harmonic_psnr_complete_db"] = finite(psnr(reference, filled))
    if result.biharmonic is not None:
        biharmonic = in_window(result.biharmonic, window_hu, shown)
        metrics["baseline_biharmonic_psnr_masked_db"] = finite(psnr(reference, biharmonic, result.hidden))
    return rounded(metrics)


def superpatch_metrics(unit: np.ndarray, result: Reconstruction, window_hu: Window) -> list[dict[str, Any]]:
    """Return the place and the metrics of every superpatch; padding does not count.

    Keys as in metrics.json: ``masked`` over what its part of the mask hid; where that is nothing, ``autoencoding``
    over every voxel.
    """
    rows = []
    for box in result.superpatches:
        part = box.in_volume(result.hidden.shape)
        hidden = result.hidden[part]
        where, mode = (hidden, "masked") if hidden.any() else (np.ones_like(hidden), "autoencoding")
        reference, prediction = unit[part], result.prediction[part]
        metrics: dict[str, float | None] = {
            "mask_ratio": float(hidden.mean()),
            f"psnr_{mode}_db": finite(psnr(reference, prediction, where)),
            f"mae_{mode}_hu": mae_hu(reference, prediction, window_hu, where),
        }
        if result.filled is not None and mode == "masked":
            metrics["baseline_harmonic_psnr_masked_db"] = finite(psnr(reference, result.filled[part], where))
        rows.append({"start_dhw": list(box.start), "size_dhw": list(box.size), **rounded(metrics)})
    return rows


def rounded(metrics: dict[str, float | None]) -> dict[str, Any]:
    """Return metrics as results hold them, with five decimals."""
    return {key: None if value is None else round(float(value), 5) for key, value in metrics.items()}


def in_window(unit: np.ndarray, own: Window, shown: Window) -> np.ndarray:
    """Map intensities of the window ``own`` to those of the window ``shown``."""
    return unit if own == shown else hu_to_unit(unit_to_hu(unit, own), shown)
