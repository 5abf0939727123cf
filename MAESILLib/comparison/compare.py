"""The comparison of the paper: every method trained on the same samples, measured on the same held-out volumes.

DIR/runs/METHOD/              the run of each method; one that was cut short goes on
DIR/runs/trials/              short ones, where learning rates are searched
DIR/figure-VOLUME.png, .pdf   input and reconstructions in three views, with error maps
DIR/comparison.json           rows, summaries, paired differences
DIR/comparison.csv, .md       the rows, and the tables
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from MAESILLib import __version__
from MAESILLib.comparison.figure import comparison_figure
from MAESILLib.comparison.measuring import AUTOENCODING, Measurer
from MAESILLib.comparison.runs import MAESIL, title_of
from MAESILLib.comparison.search import Search
from MAESILLib.comparison.table import differences, remove_former, summarise, write
from MAESILLib.comparison.training import Trained, train_all
from MAESILLib.config import Config, to_dict
from MAESILLib.data.cache import Cache, CacheEntry
from MAESILLib.device import device_name, full_precision
from MAESILLib.errors import InputError
from MAESILLib.evaluation.lpips import PerceptualDistance
from MAESILLib.evaluation.tables import number
from MAESILLib.events import Reporter
from MAESILLib.files import staged
from MAESILLib.provenance import source_commit
from MAESILLib.stopping import StopRequest
from MAESILLib.volume import unit_to_hu

SCHEMA = "maesil-comparison/1"


def compare(
    config: Config,
    cache: Cache,
    folder: Path,
    methods: list[str],
    *,
    search: Search | None = None,
    figures: list[str] | None = None,
    lpips: PerceptualDistance | None = None,
    device: torch.device | str = "cpu",
    reporter: Reporter | None = None,
    stop: StopRequest | None = None,
) -> tuple[dict[str, Any], list[Path]]:
    """Train, measure, draw and write; everything but the runs appears in ``folder`` at once.

    Args:
        config: network of MAESIL; samples, optimiser and schedule of every method.
        methods: of :data:`MAESILLib.comparison.runs.METHODS`.
        search: learning rates to choose from for each method; None: that of the configuration.
        figures: names of held-out volumes to draw; None: the first of each data set.
        lpips: the perceptual distance, where its weights are at hand.

    Returns:
        what comparison.json holds, and the files.

    Raises:
        InputError: nothing to measure on, an unknown volume, or a run with another configuration.
        CancelledError: a stop was asked for; the same call goes on.
    """
    reporter, stop, device = reporter or Reporter(), stop or StopRequest(), torch.device(device)
    entries = cache.select("val", config.train.validation_share)
    drawn = _chosen(entries, figures, cache)
    trained = train_all(
        config, cache, folder / "runs", methods, wanted=search, device=device, reporter=reporter, stop=stop
    )
    measurer = Measurer(config, cache, device, reporter, stop, lpips)
    with staged(folder, last="comparison.json") as staging:
        with full_precision():
            rows = measurer.rows(trained, entries)
            for entry in drawn:
                _draw(entry, trained, measurer, rows, staging)
        result = _result(config, cache, measurer, trained, rows, search) | {"figures": [entry.name for entry in drawn]}
        paths = [*sorted(staging.glob("figure-*")), *write(result, staging)]
        remove_former(folder)
    return result, [folder / path.name for path in paths]


def _result(
    config: Config,
    cache: Cache,
    measurer: Measurer,
    trained: list[Trained],
    rows: list[dict[str, Any]],
    search: Search | None,
) -> dict[str, Any]:
    train = config.train
    entries = cache.select("val", train.validation_share)
    return {
        "schema": SCHEMA,
        "library_version": __version__,
        "commit": source_commit(),
        "data": {
            "fingerprint": cache.fingerprint(),
            "training_volumes": len(cache.select("train", train.validation_share)),
            "volumes": [entry.name for entry in entries],
        },
        "budget": {
            "samples": train.steps * train.batch_size,
            "updates": train.steps,
            "batch_size": train.batch_size,
            "crop_size": "x".join(map(str, train.crop_size)),
            "search": None if search is None else {"rates": list(search.rates), "steps": search.steps},
            "seed": train.seed,
        },
        "config": to_dict(config),
        "spacing_mm": cache.spacing_mm,
        "window_hu": list(config.preprocessing.window_hu),
        "device": device_name(measurer.device),
        "lpips": measurer.lpips is not None,
        "methods": [one.described for one in trained],
        "rows": rows,
        "summary": summarise(rows),
        "differences": differences(rows),
    }


def _chosen(entries: tuple[CacheEntry, ...], names: list[str] | None, cache: Cache) -> list[CacheEntry]:
    if names is None:
        return list({entry.dataset: entry for entry in reversed(entries)}.values())[::-1]
    known = {entry.name: entry for entry in entries}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InputError(f"{cache.folder} holds out no volume '{unknown[0]}'", f"choose from {', '.join(known)}")
    return [known[name] for name in names]


def _draw(
    entry: CacheEntry, trained: list[Trained], measurer: Measurer, rows: list[dict[str, Any]], folder: Path
) -> None:
    """Draw MAESIL first, then the others that learn, all auto-encoding."""
    window = measurer.config.preprocessing.window_hu
    unit = measurer.read(entry)
    made, captions = {}, {}
    for one in sorted((t for t in trained if t.path), key=lambda t: t.name != MAESIL):
        prediction, _ = measurer.prediction(measurer.load(one), unit, entry.name, AUTOENCODING)
        made[title_of(one.name)] = unit_to_hu(prediction, window)
        row = next(r for r in rows if (r["method"], r["mode"], r["volume"]) == (one.name, AUTOENCODING, entry.name))
        captions[title_of(one.name)] = f"{number(row['psnr_db'])} dB, SSIM {number(row['ssim'], 3)}"
    paths = [folder / f"figure-{entry.name}.{suffix}" for suffix in ("png", "pdf")]
    spacing = measurer.cache.spacing_mm
    comparison_figure(
        paths,
        reference_hu=unit_to_hu(unit, window),
        reconstructions_hu=made,
        captions=captions,
        spacing_dhw=(spacing, spacing, spacing),
        window_hu=window,
        title=f"{entry.name}: auto-encoding, {measurer.config.train.steps * measurer.config.train.batch_size} "
        "training superpatches each",
    )
