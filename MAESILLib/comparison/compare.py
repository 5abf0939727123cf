"""The comparison of the paper: every method trained on the same samples, measured on the same held-out volumes.

DIR/runs/METHOD/          the run of each method; one that was cut short is resumed
DIR/figure-VOLUME.png     input and reconstructions in three views, with error maps
DIR/comparison.json       rows, summaries, paired differences
DIR/comparison.csv, .md   the rows, and the tables
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from MAESILLib import __version__
from MAESILLib.checkpoint import load_checkpoint
from MAESILLib.comparison.baselines import BASELINES, COSINES, MAESIL, TITLES, LowestCosines, code_of, load_baseline
from MAESILLib.comparison.figure import comparison_figure, views_of
from MAESILLib.comparison.table import differences_of, markdown, summary_of
from MAESILLib.comparison.training import UNTRAINED, check_run, config_of, train
from MAESILLib.config import Config, Triple, Window, to_dict
from MAESILLib.data.cache import Cache, CacheEntry
from MAESILLib.device import device_name, full_precision, memory_guard
from MAESILLib.errors import InputError
from MAESILLib.evaluation.evaluate import AUTOENCODING, OUT_OF_MEMORY_HINT, Measuring, Setting, protocol
from MAESILLib.evaluation.tables import number, write
from MAESILLib.events import Reporter
from MAESILLib.figure import body_centre
from MAESILLib.files import read_json, staged
from MAESILLib.provenance import source_commit
from MAESILLib.reconstruction import Reconstruction
from MAESILLib.training.batch import crop_size_of_step, samples_of_update
from MAESILLib.training.run_folder import MODEL
from MAESILLib.volume import unit_to_hu

SCHEMA = "maesil-comparison/2"
SETTINGS = (AUTOENCODING, "complete dual 0.75", "dual 0.75")


@dataclass
class Pictures:
    """The views of the volumes that are drawn, method by method."""

    volumes: list[str]
    columns: dict[str, dict[str, list[np.ndarray]]] = field(default_factory=dict)
    centres: dict[str, Triple] = field(default_factory=dict)

    def add(
        self,
        title: str,
        volume: str,
        setting: str,
        unit: np.ndarray,
        result: Reconstruction,
        window_hu: Window,
        metrics: dict[str, Any],
    ) -> None:
        """Keep the views of an auto-encoded volume; arguments as :data:`MAESILLib.evaluation.evaluate.Draw`."""
        if setting != AUTOENCODING or volume not in self.volumes:
            return
        if volume not in self.columns:
            reference = unit_to_hu(unit, window_hu)
            self.centres[volume] = body_centre(reference)
            self.columns[volume] = {"Input": views_of(reference, self.centres[volume])}
        head = f"{title}\n{number(metrics['psnr_autoencoding_db'])} dB"
        self.columns[volume][head] = views_of(unit_to_hu(result.prediction, window_hu), self.centres[volume])


def compare(
    config: Config,
    folder: Path,
    methods: list[str],
    measuring: Measuring,
    *,
    rates: dict[str, float],
    drawn: list[str] | None = None,
    reporter: Reporter,
) -> tuple[dict[str, Any], list[Path]]:
    """Train, measure, draw and write; everything but the runs appears in ``folder`` at once.

    Args:
        config: network of MAESIL; samples, optimiser and schedule of every method.
        methods: of :data:`MAESILLib.comparison.baselines.METHODS`.
        measuring: on the held-out volumes of the cache that is trained on.
        rates: learning rates of methods that have their own.
        drawn: names of held-out volumes to draw; None: the first of each data set.

    Returns:
        what comparison.json holds, and the files.

    Raises:
        InputError: nothing to measure on, an unknown volume, or a run with another configuration.
        CancelledError: a stop was asked for; the same call resumes.
    """
    cache = measuring.cache
    if not measuring.entries:
        raise InputError(f"{cache.folder} holds no volume to measure on", "prepare CTs of more patients")
    pictures = Pictures(_chosen(measuring.entries, drawn, cache))
    configs = {name: config_of(name, config, rates) for name in methods}
    runs = folder / "runs"
    learning = [name for name in methods if name != COSINES]
    for name in learning:
        check_run(name, configs[name], cache, runs / name)
    training = {
        name: train(name, configs[name], cache, runs / name, measuring.device, reporter, measuring.stop)
        for name in learning
    }
    rows: list[dict[str, Any]] = []
    described = []
    total = len(measuring.entries) * sum(len(_settings(name)) for name in methods)
    with staged(folder, last="comparison.json") as staging:
        with full_precision(), memory_guard(measuring.device, OUT_OF_MEMORY_HINT):
            for name in methods:
                model = _load(name, config, runs / name / MODEL, measuring)
                described.append(_described(name, config, model) | training.get(name, UNTRAINED))
                draw = None if name == COSINES else partial(pictures.add, TITLES[name])
                for row in measuring.rows(model, _settings(name), draw):
                    rows.append({"method": TITLES[name]} | row)
                    reporter.progress("measure", len(rows) / total, f"{TITLES[name]} {row['volume']}")
        result = _result(config, measuring, described, rows) | {"figures": list(pictures.columns)}
        paths = [_draw(volume, pictures, config, staging) for volume in pictures.columns]
        paths += write(result, staging, "comparison", markdown(result))
        _remove_former(folder)
    return result, [folder / path.name for path in paths]


def _result(
    config: Config, measuring: Measuring, described: list[dict[str, Any]], rows: list[dict[str, Any]]
) -> dict[str, Any]:
    cache, train = measuring.cache, config.train
    patients = {entry.name: entry.patient for entry in measuring.entries}
    return {
        "schema": SCHEMA,
        "library_version": __version__,
        "commit": source_commit(),
        "data": {
            "fingerprint": cache.fingerprint(),
            "training_volumes": len(cache.select("train", train.validation_share)),
            "volumes": list(patients),
        },
        "budget": {"updates": train.steps, "crops": _crops(config), "seed": train.seed},
        "config": to_dict(config),
        "spacing_mm": cache.spacing_mm,
        "window_hu": list(config.preprocessing.window_hu),
        "device": device_name(measuring.device),
        "lpips": measuring.lpips is not None,
        "methods": described,
        "rows": rows,
        "summary": summary_of(rows),
        "differences": differences_of(rows, patients),
    }


def _settings(name: str) -> list[Setting]:
    """Return what a method is measured in: the others see the whole input, so auto-encoding alone compares."""
    chosen = SETTINGS if name == MAESIL else (AUTOENCODING,)
    return sorted((s for s in protocol(0) if s.name in chosen), key=lambda s: chosen.index(s.name))


def _load(name: str, config: Config, path: Path, measuring: Measuring) -> Any:
    """Return a method's network: the averaged weights of its last update, chosen by nothing."""
    if name == COSINES:
        return LowestCosines(config.model, config.preprocessing.windows_hu[:1]).to(measuring.device).eval()
    return load_checkpoint(path, measuring.device)[0] if name == MAESIL else load_baseline(path, measuring.device)


def _described(name: str, config: Config, model: Any) -> dict[str, Any]:
    code = code_of(name, config.model)
    networks = {MAESIL: "MAESILLib", COSINES: "DCT-II"}
    return {
        "method": name,
        "title": TITLES[name],
        "network": networks.get(name) or BASELINES[name].network,
        "parameters": sum(p.numel() for p in model.parameters()),
        "code": str(code),
        "code_numbers": code.numbers,
        "code_bits": code.bits,
    }


def _crops(config: Config) -> str:
    """Return the crops of an update in words, those of the cool-down too."""
    train = config.train
    told = {}
    # every second update of the cool-down has crops of its own
    for step in (0, train.cooldown_from + 1):
        count, size = len(samples_of_update(config, step)), "x".join(map(str, crop_size_of_step(config, step)))
        told[step] = f"{count} crop{'' if count == 1 else 's'} of {size}"
    usual, cooled = told.values()
    if cooled == usual or train.cooldown_from + 1 >= train.steps:
        return usual
    return f"{usual} ({cooled} in every second one of the last {train.cooldown_share:.0%})"


def _chosen(entries: tuple[CacheEntry, ...], names: list[str] | None, cache: Cache) -> list[str]:
    if names is None:
        return list({entry.dataset: entry.name for entry in reversed(entries)}.values())[::-1]
    known = [entry.name for entry in entries]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InputError(f"{cache.folder} holds out no volume '{unknown[0]}'", f"choose from {', '.join(known)}")
    return names


def _draw(volume: str, pictures: Pictures, config: Config, folder: Path) -> Path:
    path = folder / f"figure-{volume}.png"
    comparison_figure(
        path,
        pictures.columns[volume],
        window_hu=config.preprocessing.window_hu,
        title=f"{volume}: auto-encoding after {config.train.steps} updates each",
    )
    return path


def _remove_former(folder: Path) -> None:
    """Remove the figures that an earlier comparison in ``folder`` names: they do not belong to the new tables."""
    try:
        names = [str(name) for name in read_json(folder / "comparison.json")["figures"]]
    except (InputError, KeyError, TypeError):
        return
    for name in names:
        (folder / f"figure-{name}.png").unlink(missing_ok=True)
