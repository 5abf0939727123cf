"""Measuring checkpoints on a cache: every setting on every volume, then mean and deviation over volumes.

Masks come from fixed seeds or from a file, so every checkpoint with the same superpatch and patch sizes is measured on
the same ones, next to the trivial fills of the same masks. It is done in fp32 on every device.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from MAESILLib import __version__
from MAESILLib.config import Window
from MAESILLib.ct.body import body_mask
from MAESILLib.ct.volume import hu_to_unit
from MAESILLib.data.cache import Cache, CacheEntry
from MAESILLib.data.provenance import source_commit, trained_on
from MAESILLib.evaluation.figures import draw
from MAESILLib.evaluation.lpips import PerceptualDistance
from MAESILLib.evaluation.masks import with_masks
from MAESILLib.evaluation.tables import differences, summarise
from MAESILLib.mae.checkpoint import checkpoint_identity, load_checkpoint, read_info
from MAESILLib.mae.checkpoint_info import CheckpointInfo
from MAESILLib.mae.masking import MaskSpec
from MAESILLib.metrics.fills import fill_mean, fill_nearest
from MAESILLib.metrics.image import finite, psnr
from MAESILLib.reconstruct.plan import Plan
from MAESILLib.reconstruct.reconstruction import Reconstruction, reconstruct
from MAESILLib.reconstruct.scoring import in_window, measure, rounded
from MAESILLib.runtime.device import device_name, full_precision, memory_guard
from MAESILLib.runtime.errors import InputError
from MAESILLib.runtime.events import Reporter
from MAESILLib.runtime.files import sha256_of
from MAESILLib.runtime.stopping import NEVER, StopRequest

SCHEMA = "maesil-evaluation/2"
AUTOENCODING = "auto-encoding"
OUT_OF_MEMORY_HINT = "choose --device cpu, or close other programs"

PREFERRED = "dual 0.75"
"""The setting that is drawn, where it is measured; else the first one."""


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


def protocol(seed: int) -> dict[str, Plan]:
    """Return the settings that are measured: two strategies at three mask ratios, complete, auto-encoding."""
    settings = {}
    for strategy in ("dual", "uniform"):
        for share in (0.5, 0.75, 0.9):
            # both steps hide the same share; 0.75 is the dual mask .5/.5
            ratio = 1 - (1 - share) ** 0.5
            settings[f"{strategy} {share:g}"] = Plan(MaskSpec(strategy, ratio, ratio), seed=seed)
    settings["complete dual 0.75"] = Plan(MaskSpec("dual", 0.5, 0.5), "complete", seed=seed)
    settings[AUTOENCODING] = Plan(MaskSpec("none"), seed=seed)
    return settings


@dataclass(frozen=True)
class Measuring:
    """How a model is measured on volumes of a cache.

    Attributes:
        window_hu: window of the metrics, within the model's first; that one if None. Model and fills predict in the
            model's window, and what they predict is mapped.
        batch_size: most superpatches of a forward pass; metrics differ by rounding only, below 1e-3 dB.
        completed: let the completion predict the hidden patches; else the decoder.
        lpips: the perceptual distance, where its weights are at hand.
    """

    cache: Cache
    entries: tuple[CacheEntry, ...]
    device: torch.device
    window_hu: Window | None = None
    batch_size: int = 1
    completed: bool = True
    lpips: PerceptualDistance | None = None
    stop: StopRequest = NEVER

    def rows(
        self, model: Any, settings: dict[str, Plan]
    ) -> Iterator[tuple[dict[str, Any], np.ndarray, Reconstruction]]:
        """Yield the metrics of each volume and setting, the input (D, H, W) as intensities, and its reconstruction.

        Args:
            model: as :func:`MAESILLib.reconstruct.reconstruction.reconstruct` takes it.
        """
        own: Window = model.windows_hu[0]
        shown = self.window_hu or own
        for entry in self.entries:
            hu = np.asarray(self.cache.open(entry))
            unit, body = hu_to_unit(hu, own), body_mask(hu)
            for setting, plan in settings.items():
                self.stop.check()
                result = reconstruct(
                    model,
                    unit,
                    plan,
                    name=entry.name,
                    device=self.device,
                    batch_size=self.batch_size,
                    completed=self.completed,
                    stop=self.stop,
                )
                # scipy releases the interpreter lock, so the fills are made during the measuring
                with ThreadPoolExecutor(1) as pool:
                    trivial = pool.submit(_trivial, unit, result, plan, own, shown)
                    found = measure(
                        unit, result, plan, model.config.patch_size, own, shown_hu=shown, body=body, stop=self.stop
                    )
                metrics = found | trivial.result()
                if self.lpips is not None:
                    # of the composite where a share is hidden, else of the whole prediction
                    reference, made = (in_window(v, own, shown) for v in (unit, result.prediction))
                    if _is_masked(plan):
                        made = np.where(result.hidden, made, reference)
                    metrics["lpips"] = round(self.lpips.of_slices(reference, made), 5)
                where = {"volume": entry.name, "dataset": entry.dataset, "setting": setting}
                yield where | {"mask_ratio": round(result.mask_ratio, 5)} | metrics, unit, result


def evaluate(
    checkpoints: list[Path],
    measuring: Measuring,
    settings: dict[str, Plan],
    *,
    split: str,
    masks: Path | None = None,
    figures: Path | None = None,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Measure checkpoints.

    Args:
        split: what the volumes are of the cache; only named in the result.
        masks: a file of masks to measure on; it is written if it is not there.
        figures: folder in which every volume is drawn with one of the settings; None: nothing is drawn.

    Returns:
        what evaluation.json holds: settings, one row for each checkpoint, volume and setting, summaries, and what
        further checkpoints differ in from the first.

    Raises:
        InputError: nothing to measure, a checkpoint that needs another spacing than the cache has, or masks that do
            not fit.
    """
    cache, entries, device = measuring.cache, measuring.entries, measuring.device
    if not entries:
        raise InputError(f"{cache.folder} has no volume of that split", "choose another --split")
    reporter = reporter or Reporter()
    labels = label_checkpoints(checkpoints)
    infos = {path: read_info(path) for path in labels}
    wanted = {}
    for path, info in infos.items():
        if info.preprocessing.spacing_mm != cache.spacing_mm:
            raise InputError(
                f"{path} needs {info.preprocessing.spacing_mm} mm voxels, {cache.folder} has {cache.spacing_mm} mm",
                "prepare the data again with that --spacing",
            )
        wanted[path] = _settings_of(labels[path], info, settings, measuring, masks, reporter)
    names = [name for name in settings if any(name in own for own in wanted.values())]
    if not names:
        raise InputError("no checkpoint has a read-out, so nothing is left to measure", "choose other --settings")
    drawn = PREFERRED if PREFERRED in names else names[0]
    rows: list[dict[str, Any]] = []
    described = []
    total = len(entries) * sum(len(own) for own in wanted.values())
    with full_precision(), memory_guard(device, OUT_OF_MEMORY_HINT):
        for path, label in labels.items():
            model, info = load_checkpoint(path, device)
            seen = trained_on(info.training, entries)
            if seen:
                reporter.warning(
                    f"{label} was trained on {len(seen)} of these volumes or their patients, first {seen[0]}"
                )
            described.append({**checkpoint_identity(path), "name": label, "trained_on": seen})
            for row, unit, result in measuring.rows(model, wanted[path]):
                rows.append({"checkpoint": label} | row)
                if figures is not None and row["setting"] == drawn:
                    draw(figures, rows[-1], unit, result, model.windows_hu[0], cache.spacing_mm)
                reporter.progress("evaluate", len(rows) / total, f"{row['volume']} {row['setting']}")
    window = measuring.window_hu
    sizes = {(window or i.preprocessing.window_hu, i.model.patch_size, i.model.superpatch_size) for i in infos.values()}
    if len(sizes) > 1:
        reporter.warning(
            "the checkpoints differ in their window or the size of patches or superpatches, so in what is measured: "
            "no differences are given"
        )
    patients = {entry.name: entry.patient for entry in entries}
    return {
        "schema": SCHEMA,
        "library_version": __version__,
        "commit": source_commit(),
        "data": {"fingerprint": cache.fingerprint(), "split": split, "volumes": [e.name for e in entries]},
        "checkpoints": described,
        "completion": measuring.completed,
        "window_hu": list(window) if window else "the checkpoint's own",
        "spacing_mm": cache.spacing_mm,
        "device": device_name(device),
        "batch_size": measuring.batch_size,
        "precision": "fp32",
        "lpips": measuring.lpips is not None,
        "masks": None if masks is None else {"name": masks.name, "sha256": sha256_of(masks)},
        "settings": [
            {
                "name": name,
                "strategy": plan.mask.strategy,
                "plane_ratio": round(plan.mask.plane_ratio, 5),
                "axis_ratio": round(plan.mask.axis_ratio, 5),
                "coverage": plan.coverage,
                "seed": plan.seed if masks is None else None,
            }
            for name, plan in settings.items()
        ],
        "rows": rows,
        "summary": summarise(rows),
        "differences": differences(rows, patients) if len(sizes) == 1 else [],
        "drawn": drawn,
    }


def _settings_of(
    label: str,
    info: CheckpointInfo,
    settings: dict[str, Plan],
    measuring: Measuring,
    masks: Path | None,
    reporter: Reporter,
) -> dict[str, Plan]:
    """Return the settings that a checkpoint can be measured in, with the masks of the file, if there is one."""
    chosen = {name: plan for name, plan in settings.items() if name != AUTOENCODING or "readout" in info.parts}
    if len(chosen) < len(settings):
        reporter.warning(f"{label} has no read-out of visible patches, so it does not auto-encode")
    if masks is None:
        return chosen
    shapes = {entry.name: entry.shape_dhw for entry in measuring.entries}
    return with_masks(masks, chosen, shapes, info.model.superpatch_size, info.model.patch_size)


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


def _is_masked(plan: Plan) -> bool:
    return plan.coverage == "single" and plan.hides


def _trivial(
    unit: np.ndarray, result: Reconstruction, plan: Plan, own: Window, shown: Window
) -> dict[str, float | None]:
    """Return the metrics of the fills that cost little; none where nothing is hidden once."""
    if not _is_masked(plan):
        return {}
    hidden = result.hidden
    reference = in_window(unit, own, shown)
    metrics = {
        f"baseline_{name}_psnr_masked_db": psnr(reference, in_window(fill(unit, hidden), own, shown), hidden)
        for name, fill in (("mean", fill_mean), ("nearest", fill_nearest))
    }
    # undefined where nothing is hidden, infinite where the fill is exact
    return rounded({key: finite(value) for key, value in metrics.items()})
