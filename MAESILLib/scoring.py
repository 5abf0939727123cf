"""The figures of one reconstruction: model and harmonic fill on the same masks, on the model's grid."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from MAESILLib.body import body_mask
from MAESILLib.config import Window
from MAESILLib.errors import InputError
from MAESILLib.metrics import Scores, WholeScores, border_index, mae_hu, psnr, score, score_whole
from MAESILLib.plan import Plan
from MAESILLib.reconstruction import Reconstruction
from MAESILLib.stopping import NEVER, StopRequest
from MAESILLib.volume import hu_to_unit, unit_to_hu


@dataclass(frozen=True)
class Measured:
    """What :func:`measure` found; arrays (D, H, W) are intensities of the window the figures refer to.

    Attributes:
        figures: those of metrics.json; None where one does not apply.
        reference: the input.
        prediction: what the model made of it.
        filled: the harmonic fill of the same masks; None where nothing is hidden or superpatches overlap.
        window_hu: the window.
    """

    figures: dict[str, Any]
    reference: np.ndarray
    prediction: np.ndarray
    filled: np.ndarray | None
    window_hu: Window


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
) -> Measured:
    """Compare a reconstruction with its input, and the harmonic fill with both.

    Args:
        unit: (D, H, W) the reference, intensities in [0, 1] of the model's window ``window_hu``.
        result: what the model made of it under ``plan``.
        shown_hu: the window the figures refer to, within ``window_hu``; that one if not given. Model and fills
            work in the model's window, and what they predict is mapped.
        body: (D, H, W) bool, the patient; found in ``unit`` if not given.

    Keys with ``masked`` and ``composite`` refer to what the mask hid; ``complete`` and ``autoencoding`` to every
    voxel. With complete coverage ``masked`` refers to what the first mask hid, predicted like everything there by
    the mean of all passes that hid it: compare it with single coverage only through the harmonic fill beside it.

    Raises:
        InputError: ``shown_hu`` reaches beyond ``window_hu``.
        CancelledError: a stop was asked for.
    """
    shown = shown_hu or window_hu
    if not window_hu[0] <= shown[0] < shown[1] <= window_hu[1]:
        limits = f"{window_hu[0]:g} to {window_hu[1]:g}"
        raise InputError(
            f"the window {shown[0]:g} to {shown[1]:g} HU reaches beyond the model's, {limits}", "narrow it"
        )
    if body is None:
        body = body_mask(unit_to_hu(unit, window_hu))
    is_complete, is_masked = plan.coverage == "complete", plan.mask.strategy != "none"
    reference = in_window(unit, window_hu, shown)
    prediction = in_window(result.prediction, window_hu, shown)
    # numpy and scipy let go of the interpreter, so two threads use two cores
    with ThreadPoolExecutor(2) as pool:
        stop.check()
        masked = pool.submit(score, reference, prediction, result.hidden, body, shown, patch_size, stop)
        whole = None
        if is_complete or not is_masked:
            whole = pool.submit(score_whole, reference, prediction, body, shown, patch_size, stop)
    figures = _figures(
        masked.result(), None if whole is None else whole.result(), "complete" if is_complete else "autoencoding"
    )
    figures["baseline_harmonic_psnr_masked_db"] = None
    filled = None if result.filled is None else in_window(result.filled, window_hu, shown)
    if filled is not None:
        figures["baseline_harmonic_psnr_masked_db"] = _finite(psnr(reference, filled, result.hidden))
        figures["baseline_harmonic_border_index"] = _finite(border_index(reference, filled, patch_size, where=body))
        if is_complete:
            figures["baseline_harmonic_psnr_complete_db"] = _finite(psnr(reference, filled))
    if result.biharmonic is not None:
        biharmonic = in_window(result.biharmonic, window_hu, shown)
        figures["baseline_biharmonic_psnr_masked_db"] = _finite(psnr(reference, biharmonic, result.hidden))
    return Measured(_rounded(figures), reference, prediction, filled, shown)


def superpatch_figures(measured: Measured, result: Reconstruction) -> list[dict[str, Any]]:
    """Return the place and the figures of every superpatch; padding does not count.

    Keys as in metrics.json: ``masked`` over what its part of the mask hid; where that is nothing, ``autoencoding``
    over every voxel.
    """
    low, high = measured.window_hu
    rows = []
    for box in result.superpatches:
        part = box.in_volume(result.hidden.shape)
        hidden = result.hidden[part]
        where, mode = (hidden, "masked") if hidden.any() else (np.ones_like(hidden), "autoencoding")
        reference, prediction = measured.reference[part], measured.prediction[part]
        figures: dict[str, float | None] = {
            "mask_ratio": float(hidden.mean()),
            f"psnr_{mode}_db": _finite(psnr(reference, prediction, where)),
            f"mae_{mode}_hu": mae_hu(reference, prediction, (low, high), where),
        }
        if measured.filled is not None and mode == "masked":
            figures["baseline_harmonic_psnr_masked_db"] = _finite(psnr(reference, measured.filled[part], where))
        rows.append({"start_dhw": list(box.start), "size_dhw": list(box.size), **_rounded(figures)})
    return rows


def _rounded(figures: dict[str, float | None]) -> dict[str, Any]:
    return {key: None if value is None else round(float(value), 5) for key, value in figures.items()}


def in_window(unit: np.ndarray, own: Window, shown: Window) -> np.ndarray:
    """Map intensities of the window ``own`` to those of the window ``shown``."""
    return unit if own == shown else hu_to_unit(unit_to_hu(unit, own), shown)


def _figures(masked: Scores, whole: WholeScores | None, mode: str) -> dict[str, float | None]:
    figures = {
        "psnr_masked_db": masked.psnr_masked_db,
        "mae_masked_hu": masked.mae_masked_hu,
        "psnr_composite_db": masked.psnr_composite_db,
        "ssim_composite": masked.ssim_composite,
        "border_index": masked.border_index,
    }
    if whole is not None:
        figures |= {
            f"psnr_{mode}_db": whole.psnr_db,
            f"mae_{mode}_hu": whole.mae_hu,
            f"ssim_{mode}": whole.ssim,
            "border_index": whole.border_index,
        }
    return figures


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
