"""A reconstruction's files: volumes on the input's grid, figure, metrics.json; all of them or none."""

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from MAESILLib.config import Window
from MAESILLib.ct.volume import CTVolume, ModelGrid, hu_to_unit, model_grid, unit_to_hu
from MAESILLib.ct.writing import PLANES, volume_writer
from MAESILLib.mae.checkpoint import checkpoint_identity, load_checkpoint
from MAESILLib.mae.checkpoint_info import CheckpointInfo
from MAESILLib.mae.network import Network
from MAESILLib.metrics.catalogue import caption
from MAESILLib.reconstruct.plan import Plan
from MAESILLib.reconstruct.reconstruction import Reconstruction, reconstruct
from MAESILLib.reconstruct.scoring import measure, superpatch_metrics
from MAESILLib.runtime.device import device_name, has_bf16, memory_guard, peak_memory_mib
from MAESILLib.runtime.errors import InputError
from MAESILLib.runtime.events import Reporter
from MAESILLib.runtime.files import staged, write_json
from MAESILLib.runtime.stopping import StopRequest

SCHEMA = "maesil-reconstruction/2"
METRICS = "metrics.json"
MEMORY_HINT = "choose --device cpu, or close other programs"
KINDS = ("masked", "reconstruction", "composite", "error", "mask")


@dataclass(frozen=True)
class Outputs:
    """Where results go, and as what: ``format`` is nrrd or nii.gz; ``compress`` is for nrrd, nii.gz always is."""

    folder: Path
    format: str = "nrrd"
    figure: bool = True
    compress: bool = True


@dataclass(frozen=True, eq=False)
class Model:
    """A checkpoint on a device, and as what results name it. Made by :func:`load_model`."""

    network: Network
    info: CheckpointInfo
    identity: dict[str, str]
    device: torch.device


def load_model(checkpoint: Path, device: torch.device) -> Model:
    """Load a checkpoint.

    Raises:
        InputError: it cannot be used.
        OutOfMemoryError: it does not fit the device.
    """
    with memory_guard(device, MEMORY_HINT):
        network, info = load_checkpoint(checkpoint, device)
    return Model(network, info, checkpoint_identity(checkpoint), device)


def reconstruct_volume(
    volume: CTVolume,
    model: Model,
    plan: Plan,
    outputs: Outputs,
    reporter: Reporter,
    stop: StopRequest,
    begin: float,
    *,
    completed: bool = True,
    request: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Reconstruct a volume and write its results.

    Args:
        completed: hidden patches are the completion's, if the checkpoint has one; else the decoder's.
        begin: time.monotonic() at which the work began; metrics.json counts from there.
        request: stored in metrics.json: what tells a later call that it need not be made again.

    Returns:
        what metrics.json holds.

    Raises:
        InputError: the plan or the folder cannot be used.
        CancelledError: a stop was asked for; nothing is left behind.
        OutOfMemoryError: the superpatch does not fit the device.
        DiskFullError: the results do not fit the disk; nothing is left behind.
    """
    _check_input_not_overwritten(volume, outputs)
    for warning in volume.warnings:
        reporter.warning(warning)
    device, info = model.device, model.info
    bf16 = has_bf16(device)
    with memory_guard(device, MEMORY_HINT):
        window = info.preprocessing.window_hu
        grid = model_grid(volume.geometry, info.preprocessing.spacing_mm)
        unit = hu_to_unit(grid.to_model(volume.hu), window)
        with staged(outputs.folder, last=METRICS) as staging:
            # the fills come before the first superpatch
            reporter.progress("reconstruct", 0.0)
            result = reconstruct(
                model.network,
                unit,
                plan,
                name=volume.name,
                device=device,
                bf16=bf16,
                stop=stop,
                completed=completed,
                progress=lambda share: reporter.progress("reconstruct", share),
            )
            stop.check()
            reporter.progress("measure", 0.0)
            measured = measure(unit, result, plan, info.model.patch_size, window, stop=stop)
            reporter.progress("measure", 1.0)
            metrics = {
                **_describe(volume, model, plan, grid, result),
                "completion": completed and "completion" in info.parts,
                **measured,
                "superpatches": superpatch_metrics(unit, result, window),
                "window_hu": list(window),
                "device": device_name(device),
                "precision": "bf16" if bf16 else "fp32",
                **({} if request is None else {"request": dict(request)}),
            }
            _write_volumes(staging, volume, grid, result, window, outputs, reporter, stop)
            stop.check()
            if outputs.figure:
                _write_figure(staging / "figure.png", grid, unit, result, window, metrics)
            peak = peak_memory_mib(device)
            metrics["seconds"] = round(time.monotonic() - begin, 2)
            metrics["peak_memory_mib"] = None if peak is None else round(peak)
            metrics["files"] = sorted(path.name for path in staging.iterdir())
            write_json(staging / METRICS, metrics)
            stop.check()
            written = sorted(path.name for path in staging.iterdir())
    for name in written:
        reporter.artifact(name.split(".")[0], outputs.folder / name)
    return metrics


def _describe(volume: CTVolume, model: Model, plan: Plan, grid: ModelGrid, result: Reconstruction) -> dict[str, Any]:
    d, h, w = volume.geometry.spacing_dhw
    return {
        "schema": SCHEMA,
        "input": {
            "path": volume.path,
            "name": volume.name,
            "size": list(volume.geometry.size_dhw[::-1]),
            "spacing_mm": [w, h, d],
        },
        "checkpoint": model.identity,
        "mask": {
            "strategy": plan.mask.strategy,
            "plane_ratio": plan.mask.plane_ratio,
            "axis_ratio": plan.mask.axis_ratio,
            "mask_ratio": round(result.mask_ratio, 6),
            "mask_voxel_ratio": round(float(result.hidden.mean()), 6),
            "seed": plan.seed,
            "coverage": plan.coverage,
            "passes": result.passes,
            "overlap": plan.overlap,
            **({"painted": plan.painted} if plan.painted else {}),
        },
        "model_grid": {
            "size_dhw": list(grid.geometry.size_dhw),
            "spacing_mm": grid.geometry.spacing_dhw[0],
            "ijk_to_lps": grid.geometry.ijk_to_lps().tolist(),
        },
    }


def displayed_mask_ratio(mask: dict[str, Any]) -> float:
    """Return the mask ratio that ``masked`` and the figure display.

    Args:
        mask: of metrics.json. Where superpatches overlap, a voxel is hidden if any of them hides it: more than each
            hides by itself.
    """
    return mask["mask_voxel_ratio"] if mask["overlap"] > 0 else mask["mask_ratio"]


def mask_title(mask: dict[str, Any]) -> str:
    """Return what hides tokens, by ``mask`` of metrics.json: strategy with its ratios, a label map, or both."""
    drawn = f"{mask['strategy']} {mask['plane_ratio']:g}/{mask['axis_ratio']:g}"
    painted = mask.get("painted", "")
    return painted if painted and mask["strategy"] == "none" else " + ".join(filter(None, (drawn, painted)))


def _check_input_not_overwritten(volume: CTVolume, outputs: Outputs) -> None:
    """Raise InputError if a result would overwrite the input."""
    written = [(outputs.folder / f"{kind}.{outputs.format}").resolve() for kind in KINDS]
    if Path(volume.path).resolve() in written:
        raise InputError(f"{volume.path} would be overwritten by its own result", "choose another output folder")


def _write_volumes(
    staging: Path,
    volume: CTVolume,
    grid: ModelGrid,
    result: Reconstruction,
    window: Window,
    outputs: Outputs,
    reporter: Reporter,
    stop: StopRequest,
) -> None:
    """Write the five volumes on the input's grid, a few planes at a time; HU are int16, clipped to the window."""
    low, high = window
    depth = volume.geometry.size_dhw[0]
    predicted = grid.planes_to_source(unit_to_hu(result.prediction, window), PLANES)
    hides = grid.planes_to_source(result.hidden, PLANES, nearest=True)
    with ExitStack() as files, ThreadPoolExecutor(len(KINDS)) as pool:
        write = {
            kind: files.enter_context(
                volume_writer(
                    staging / f"{kind}.{outputs.format}",
                    np.uint8 if kind == "mask" else np.int16,
                    volume.geometry,
                    compress=outputs.compress,
                )
            )
            for kind in KINDS
        }
        for first, (reconstruction, hidden) in zip(
            range(0, depth, PLANES), zip(predicted, hides, strict=True), strict=True
        ):
            stop.check()
            reporter.progress("write", first / depth)
            reconstruction, clipped = (
                np.rint(hu).astype(np.int16)
                for hu in (reconstruction, np.clip(volume.hu[first : first + PLANES], low, high))
            )
            made = {
                "masked": np.where(hidden, np.int16(round(low)), clipped),
                "reconstruction": reconstruction,
                "composite": np.where(hidden, reconstruction, clipped),
                "error": reconstruction - clipped,
                "mask": hidden.astype(np.uint8),
            }
            # compression, most of the work, lets go of the interpreter
            list(pool.map(lambda kind, made=made: write[kind](made[kind]), KINDS))
    reporter.progress("write", 1.0)


def _write_figure(
    path: Path, grid: ModelGrid, unit: np.ndarray, result: Reconstruction, window: Window, metrics: dict[str, Any]
) -> None:
    from MAESILLib.reconstruct.figure import reconstruction_figure

    mask, checkpoint = metrics["mask"], metrics["checkpoint"]
    reconstruction_figure(
        path,
        reference=unit,
        reconstruction=result.prediction,
        hidden=result.hidden,
        spacing_dhw=grid.geometry.spacing_dhw,
        window_hu=window,
        title=f"{metrics['input']['name']}: mask {mask_title(mask)}, "
        f"{displayed_mask_ratio(mask):.0%} hidden, {mask['coverage']} coverage",
        subtitle=f"checkpoint {checkpoint['name']} ({checkpoint['sha256'][:8]}) | {caption(metrics)}",
    )
