"""Measuring checkpoints on a cache: every setting on every volume, then mean and deviation over volumes.

Masks come from fixed seeds, so every checkpoint with the same superpatch and patch sizes is measured on the same
ones, beside the trivial fills of the same masks. It is done in fp32 on every device.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from MAESILLib import __version__
from MAESILLib.body import body_mask
from MAESILLib.checkpoint import checkpoint_identity, load_checkpoint, read_info
from MAESILLib.config import Window
from MAESILLib.data.cache import Cache, CacheEntry
from MAESILLib.device import device_name, full_precision, memory_guard
from MAESILLib.errors import InputError
from MAESILLib.evaluation.figures import Drawer, drawn_setting
from MAESILLib.evaluation.lpips import PerceptualDistance
from MAESILLib.evaluation.tables import side_by_side, summarise
from MAESILLib.events import Reporter
from MAESILLib.fills import fill_mean, fill_nearest
from MAESILLib.masking import MaskSpec
from MAESILLib.metrics import psnr
from MAESILLib.plan import Plan
from MAESILLib.provenance import hash_of_patient, source_commit, trained_on
from MAESILLib.reconstruction import Reconstruction, reconstruct
from MAESILLib.scoring import in_window, measure
from MAESILLib.stopping import StopRequest
from MAESILLib.volume import hu_to_unit

SCHEMA = "maesil-evaluation/1"


@dataclass(frozen=True)
class Setting:
    """A named plan."""

    name: str
    plan: Plan


def held_out_share(checkpoints: list[Path]) -> float:
    """Return the share of patients the checkpoints' trainings held out, where their data named no split.

    Raises:
        InputError: they held out different shares, so one has been trained on what the other has not.
    """
    shares = {float(read_info(path).training.get("train", {}).get("validation_share", 0.1)) for path in checkpoints}
    if len(shares) > 1:
        raise InputError(
            f"the checkpoints held out different shares of the patients: {sorted(shares)}",
            "evaluate them one by one, or give volumes a split when preparing",
        )
    return shares.pop()


def protocol(seed: int) -> list[Setting]:
    """Return the settings that are measured: two strategies at three shares, complete, auto-encoding."""
    settings = []
    for strategy in ("dual", "uniform"):
        for share in (0.5, 0.75, 0.9):
            # both steps hide the same share; 0.75 is the dual mask .5/.5
            ratio = 1 - (1 - share) ** 0.5
            settings.append(Setting(f"{strategy} {share:g}", Plan(MaskSpec(strategy, ratio, ratio), seed=seed)))
    settings.append(Setting("complete dual 0.75", Plan(MaskSpec("dual", 0.5, 0.5), "complete", seed=seed)))
    settings.append(Setting("auto-encoding", Plan(MaskSpec("none"), seed=seed)))
    return settings


def evaluate(
    checkpoints: list[Path],
    cache: Cache,
    entries: tuple[CacheEntry, ...],
    settings: list[Setting],
    *,
    split: str,
    window_hu: tuple[float, float] | None = None,
    device: torch.device | str = "cpu",
    batch_size: int = 1,
    drawer: Drawer | None = None,
    lpips: PerceptualDistance | None = None,
    reporter: Reporter | None = None,
    stop: StopRequest | None = None,
) -> dict[str, Any]:
    """Measure checkpoints on the volumes ``entries`` of ``cache``.

    Args:
        split: what ``entries`` are of the cache; only named in the result.
        window_hu: window the figures refer to, within the checkpoint's own; that if not given. Model and fills
            predict in the checkpoint's window, and what they predict is mapped.
        batch_size: most superpatches of a forward pass; figures differ by rounding only, below 1e-3 dB.
        drawer: draws every volume with one of the settings.
        lpips: the perceptual distance, where its weights are at hand.

    Returns:
        what evaluation.json holds: settings, one row for each checkpoint, volume and setting, summaries, and what
        further checkpoints differ in from the first.

    Raises:
        InputError: no volumes, or a checkpoint that needs another spacing than the cache has.
        CancelledError: a stop was asked for.
    """
    if not entries:
        raise InputError(f"{cache.folder} has no volume of that split", "choose another --split")
    reporter, stop = reporter or Reporter(), stop or StopRequest()
    device = torch.device(device)
    rows: list[dict[str, Any]] = []
    protocols = set()
    described: list[dict[str, Any]] = []
    labels = label_checkpoints(checkpoints)
    drawn = drawn_setting([setting.name for setting in settings])
    total = len(labels) * len(entries) * len(settings)
    with full_precision(), memory_guard(device, "choose --device cpu, or close other programs"):
        for path, label in labels.items():
            model, info = load_checkpoint(path, device)
            if info.preprocessing.spacing_mm != cache.spacing_mm:
                raise InputError(
                    f"{path} needs {info.preprocessing.spacing_mm} mm voxels, {cache.folder} has {cache.spacing_mm} mm",
                    "prepare the data again with that --spacing",
                )
            own = info.preprocessing.window_hu
            protocols.add((window_hu or own, info.model.patch_size, info.model.superpatch_size))
            seen = trained_on(info.training, entries)
            if seen:
                reporter.warning(
                    f"{label} was trained on {len(seen)} of these volumes or their patients, first {seen[0]}"
                )
            described.append({**checkpoint_identity(path), "name": label, "trained_on": seen})
            for entry in entries:
                hu = np.asarray(cache.open(entry))
                unit, body = hu_to_unit(hu, own), body_mask(hu)
                for setting in settings:
                    stop.check()
                    plan = setting.plan
                    result = reconstruct(
                        model,
                        unit,
                        plan,
                        name=entry.name,
                        device=device,
                        batch_size=batch_size,
                        stop=stop,
                    )
                    patch_size = info.model.patch_size
                    # scipy lets go of the interpreter, so the fills are made beside the measuring
                    with ThreadPoolExecutor(1) as pool:
                        trivial = pool.submit(_trivial, unit, result, plan, own, window_hu or own)
                        found = measure(unit, result, plan, patch_size, own, shown_hu=window_hu, body=body, stop=stop)
                    figures = found.figures | trivial.result()
                    if lpips is not None:
                        figures["lpips"] = _perceptual(lpips, unit, result, plan, own, window_hu or own)
                    row: dict[str, Any] = {"checkpoint": label, "volume": entry.name, "dataset": entry.dataset}
                    row |= {"setting": setting.name, "hidden_share": round(result.hidden_share, 5)}
                    rows.append(row | figures)
                    if drawer is not None and setting.name == drawn:
                        drawer.draw(label, entry.name, setting.name, unit, result, own, figures)
                    reporter.progress("evaluate", len(rows) / total, f"{entry.name} {setting.name}")
    if len(protocols) > 1:
        reporter.warning(
            "the checkpoints differ in their window or the size of patches or superpatches, so in what is measured: "
            "no differences are given"
        )
    patients = {entry.name: hash_of_patient(entry) for entry in entries}
    return {
        "schema": SCHEMA,
        "library_version": __version__,
        "commit": source_commit(),
        "data": {"fingerprint": cache.fingerprint(), "split": split, "volumes": [e.name for e in entries]},
        "checkpoints": described,
        "window_hu": list(window_hu) if window_hu else "the checkpoint's own",
        "spacing_mm": cache.spacing_mm,
        "device": device_name(device),
        "batch_size": batch_size,
        "precision": "fp32",
        "lpips": lpips is not None,
        "settings": [_describe(setting) for setting in settings],
        "rows": rows,
        "summary": summarise(rows),
        "differences": side_by_side(rows, patients) if len(protocols) == 1 else [],
        "drawn": drawn,
    }


def label_checkpoints(paths: list[Path]) -> dict[Path, str]:
    """Return a name for each file: as many last parts of its path as tell it from the others.

    Every run's checkpoint is called model.safetensors. A file that is given twice counts once.
    """
    files: dict[Path, Path] = {}
    for path in paths:
        files.setdefault(path.resolve(), path)
    labels = {}
    for path in files.values():
        parts = path.absolute().parts
        others = [other.absolute().parts for other in files.values() if other != path]
        count = next(n for n in range(1, len(parts) + 1) if all(other[-n:] != parts[-n:] for other in others))
        labels[path] = "/".join(parts[-count:])
    return labels


def _describe(setting: Setting) -> dict[str, Any]:
    plan = setting.plan
    return {
        "name": setting.name,
        "strategy": plan.mask.strategy,
        "plane_ratio": round(plan.mask.plane_ratio, 5),
        "axis_ratio": round(plan.mask.axis_ratio, 5),
        "coverage": plan.coverage,
        "seed": plan.seed,
    }


def _is_masked(plan: Plan) -> bool:
    return plan.coverage == "single" and plan.mask.strategy != "none"


def _perceptual(
    lpips: PerceptualDistance, unit: np.ndarray, result: Reconstruction, plan: Plan, own: Window, shown: Window
) -> float:
    """Return LPIPS of the composite where a share is hidden, else of the whole prediction."""
    made = np.where(result.hidden, result.prediction, unit) if _is_masked(plan) else result.prediction
    return round(lpips.of_slices(in_window(unit, own, shown), in_window(made, own, shown)), 5)


def _trivial(
    unit: np.ndarray, result: Reconstruction, plan: Plan, own: Window, shown: Window
) -> dict[str, float | None]:
    """Return the figures of the fills that cost little; none where nothing is hidden once."""
    if not _is_masked(plan):
        return {}
    hidden = result.hidden
    reference = in_window(unit, own, shown)
    figures = {
        "baseline_mean_psnr_masked_db": psnr(reference, in_window(fill_mean(unit, hidden), own, shown), hidden),
        "baseline_nearest_psnr_masked_db": psnr(reference, in_window(fill_nearest(unit, hidden), own, shown), hidden),
    }
    # undefined where nothing is hidden, infinite where the fill is exact
    return {key: round(value, 5) if math.isfinite(value) else None for key, value in figures.items()}
