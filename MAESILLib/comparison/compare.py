"""The comparison of the paper: every method trained on the same samples, evaluated on the same held-out volumes.

DIR/runs/METHOD/                 the training run of a method: resumed if it was interrupted, reused if it is complete
DIR/figures/METHOD/VOLUME.png    input, reconstruction and error
DIR/comparison.json, .csv, .md   metrics of every volume, their means, paired differences

Optimiser, schedule with its cool-down and averaging of the weights are the same; a method may have a learning rate of
its own.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from MAESILLib import __version__
from MAESILLib.comparison.baselines import COSINES, MAESIL, TITLES, BaselineTraining, code_of, make_baseline
from MAESILLib.config import FREE_KEYS, Config, MaskTraining, to_dict
from MAESILLib.data.cache import Cache
from MAESILLib.data.provenance import source_commit
from MAESILLib.evaluation.evaluate import AUTOENCODING, OUT_OF_MEMORY_HINT, Measuring, protocol
from MAESILLib.evaluation.figures import draw, remove_former
from MAESILLib.evaluation.tables import WITHOUT_LPIPS, differences, differences_table, summarise, write
from MAESILLib.mae.checkpoint import load_checkpoint, load_weights, read_weights
from MAESILLib.metrics.catalogue import CATALOGUE, markdown_table, metric_key
from MAESILLib.runtime.device import device_name, full_precision, memory_guard
from MAESILLib.runtime.errors import CancelledError, InputError
from MAESILLib.runtime.events import Reporter
from MAESILLib.runtime.files import staged
from MAESILLib.training.run_folder import MODEL, holds_state
from MAESILLib.training.state import check_same_run, read_state
from MAESILLib.training.task import MASKED_AUTOENCODING, Task
from MAESILLib.training.trainer import Trainer

SCHEMA = "maesil-comparison/2"
NAME = "comparison"
UNTRAINED = {"learning_rate": None, "precision": None, "samples": 0, "updates": 0, "training_seconds": 0}
ALL = "all volumes"
PSNR, SSIM, MAE = (metric_key(metric, "autoencoding") for metric in ("psnr", "ssim", "mae"))
COSINES_NOTE = " cosines: each patch by as many of its lowest cosines as MAESIL has numbers for it; nothing is learnt."


def compare(
    config: Config,
    folder: Path,
    methods: list[str],
    measuring: Measuring,
    *,
    rates: dict[str, float],
    with_figures: bool,
    reporter: Reporter,
) -> tuple[dict[str, Any], list[Path]]:
    """Train, evaluate and write; everything but the runs appears in ``folder`` at once.

    Args:
        config: network of MAESIL; samples, optimiser and schedule of every method.
        measuring: on the held-out volumes of the cache that is trained on.

    Returns:
        what comparison.json holds, and the files.

    Raises:
        InputError: no held-out volume, or as :func:`check_run`.
        CancelledError: a stop was requested; the same call resumes.
    """
    cache, device = measuring.cache, measuring.device
    if not measuring.entries:
        raise InputError(f"{cache.folder} holds out no volume to evaluate on", "prepare CTs of more patients")
    configs = {name: config_of(name, config, rates) for name in methods}
    runs = {name: folder / "runs" / name for name in methods}
    learning = [name for name in methods if name != COSINES]
    # MONAI takes seconds to import
    with measuring.stop.until_first_check():
        for name in learning:
            check_run(name, configs[name], cache, runs[name])
    training = {name: train(name, configs[name], measuring, runs[name], reporter) for name in learning}
    autoencoding = {AUTOENCODING: protocol(0)[AUTOENCODING]}
    rows: list[dict[str, Any]] = []
    described = []
    with staged(folder, last=f"{NAME}.json") as staging:
        with full_precision(), memory_guard(device, OUT_OF_MEMORY_HINT):
            for name in methods:
                model = _load(name, configs[name], runs[name], device)
                described.append(_describe(name, config, model) | training.get(name, UNTRAINED))
                for row, unit, made in measuring.rows(model, autoencoding):
                    rows.append({"method": TITLES[name]} | row)
                    if with_figures:
                        draw(staging, rows[-1], unit, made, model.windows_hu[0], cache.spacing_mm)
                    done = len(rows) / (len(methods) * len(measuring.entries))
                    reporter.progress("measure", done, f"{TITLES[name]} {row['volume']}")
        result = _result(config, measuring, described, rows)
        written = [*sorted(staging.rglob("*.png")), *write(result, staging, NAME, markdown(result))]
        remove_former(folder, NAME)
    return result, [folder / path.relative_to(staging) for path in written]


def config_of(name: str, config: Config, rates: dict[str, float]) -> Config:
    """Return a method's configuration: its learning rate; of a baseline, the first window alone and nothing hidden."""
    config = replace(config, train=replace(config.train, learning_rate=rates.get(name, config.train.learning_rate)))
    if name == MAESIL:
        return config
    preprocessing = replace(config.preprocessing, windows_hu=config.preprocessing.windows_hu[:1])
    return replace(config, preprocessing=preprocessing, mask=MaskTraining(("none",), (0.0,)))


def check_run(name: str, config: Config, cache: Cache, run: Path) -> None:
    """Refuse what cannot be trained or resumed, before hours of training of another method.

    Raises:
        InputError: MONAI is missing, or ``run`` was trained with another configuration, other data or for another
            number of updates: a prolonged run has had two schedules.
    """
    if name != MAESIL:
        make_baseline(name, config.model, config.preprocessing.windows_hu)
    if holds_state(run):
        free = FREE_KEYS - {("train", "steps")}
        check_same_run(read_state(run).values, name, config, cache.fingerprint(), run, free)


def train(name: str, config: Config, measuring: Measuring, run: Path, reporter: Reporter) -> dict[str, Any]:
    """Train a method into the folder ``run``, or resume or reuse what is there.

    Raises:
        CancelledError: a stop was requested; the state is saved.
    """
    task: Task = MASKED_AUTOENCODING if name == MAESIL else BaselineTraining(name)
    options: dict[str, Any] = {"device": measuring.device, "reporter": reporter, "stop": measuring.stop}
    trainer = Trainer(config, measuring.cache, run, resume=holds_state(run), task=task, **options)
    if trainer.progress.step == config.train.steps:
        # a crash may have come between the state and the checkpoint
        trainer.save_weights(MODEL)
    else:
        try:
            trainer.run()
        except CancelledError as error:
            # the trainer names an option of another command
            reason = error.message.split(";")[0]
            raise CancelledError(f"{TITLES[name]} {reason}; repeat the same command to resume") from None
    return {
        "learning_rate": config.train.learning_rate,
        "precision": trainer.precision,
        "samples": trainer.progress.samples,
        "updates": trainer.progress.step,
        "training_seconds": round(trainer.progress.seconds),
    }


def _load(name: str, config: Config, run: Path, device: torch.device) -> Any:
    """Return a method's network with the averaged weights of the last update, which no validation has chosen."""
    if name == MAESIL:
        return load_checkpoint(run / MODEL, device)[0]
    network = make_baseline(name, config.model, config.preprocessing.windows_hu)
    if name != COSINES:
        load_weights(network, read_weights(run / MODEL), run / MODEL)
    return network.to(device).eval()


def _describe(name: str, config: Config, model: Any) -> dict[str, Any]:
    numbers, bits = code_of(name, config.model)
    return {
        "method": name,
        "title": TITLES[name],
        "network": "MAESILLib" if name == MAESIL else model.network_class,
        "parameters": sum(p.numel() for p in model.parameters()),
        "code": f"{numbers} numbers" if bits is None else f"{numbers} codes of {bits} bits",
    }


def _result(
    config: Config, measuring: Measuring, described: list[dict[str, Any]], rows: list[dict[str, Any]]
) -> dict[str, Any]:
    cache, budget = measuring.cache, config.train
    usual, cooled = ("x".join(map(str, size)) for size in (budget.crop_size, budget.cooldown_crop_size))
    crops = f"batch size {budget.batch_size}, crops of {usual}, in the cool-down of {cooled} too"
    patients = {entry.name: entry.patient for entry in measuring.entries}
    return {
        "schema": SCHEMA,
        "library_version": __version__,
        "commit": source_commit(),
        "data": {
            "fingerprint": cache.fingerprint(),
            "training_volumes": len(cache.select("train", budget.validation_share)),
            "volumes": list(patients),
        },
        "budget": {"updates": budget.steps, "crops": crops, "seed": budget.seed},
        "config": to_dict(config),
        "spacing_mm": cache.spacing_mm,
        "window_hu": list(config.preprocessing.window_hu),
        "device": device_name(measuring.device),
        "lpips": measuring.lpips is not None,
        "methods": described,
        "rows": rows,
        **summaries(rows, patients),
    }


def summaries(rows: list[dict[str, Any]], patients: dict[str, str]) -> dict[str, list[dict[str, Any]]]:
    """Return what tables are made of, for each data set and for all volumes.

    Returns:
        ``summary``: mean and deviation over volumes of each method; ``differences``: each other method minus MAESIL,
        paired by volume.
    """
    rows = [*rows, *(row | {"dataset": ALL} for row in rows)]
    maesil_first = sorted(rows, key=lambda row: row["method"] != TITLES[MAESIL])
    has_maesil = maesil_first[0]["method"] == TITLES[MAESIL]
    return {
        "summary": summarise(rows, ("dataset", "method", "setting")),
        "differences": differences(maesil_first, patients, "method", ("dataset", "setting")) if has_maesil else [],
    }


def markdown(result: dict[str, Any]) -> str:
    """Return the tables of a comparison."""
    budget, data, (low, high) = result["budget"], result["data"], result["window_hu"]
    lines = [
        *verdict(result["summary"]),
        f"Every method that learns: {budget['updates']} updates, {budget['crops']}, seed {budget['seed']}, from the "
        f"{data['training_volumes']} training volumes of data {data['fingerprint']}; evaluated on "
        f"{len(data['volumes'])} volumes of other patients, {result['spacing_mm']:g} mm, window {low:g} to {high:g} HU."
        f" Library {result['library_version']}" + (f", commit {result['commit']}." if result["commit"] else "."),
        "",
        *_methods_table(result),
        "",
        "Auto-encoding, mean (sd) over volumes: every method sees the whole input."
        + (COSINES_NOTE if any(method["method"] == COSINES for method in result["methods"]) else ""),
    ]
    if result["differences"]:
        lines += ["", *differences_table(result["differences"], ("method", "minus", "dataset")), ""]
        lines.append(
            "Mean over patients, 95 % interval by bootstrap over patients (none for a single patient), and on how many "
            "volumes the method is higher than MAESIL."
        )
    return "\n".join(lines if result["lpips"] else [*lines, "", WITHOUT_LPIPS]) + "\n"


def verdict(summary: list[dict[str, Any]]) -> list[str]:
    """Return a sentence on whether MAESIL loses over all volumes; none where nothing is compared with it."""
    means = {
        # no finite value: nothing was lost
        line["method"]: [math.inf if line.get(key) is None else line[key] for key in (PSNR, SSIM)]
        for line in summary
        if line["dataset"] == ALL
    }
    if TITLES[MAESIL] not in means or len(means) == 1:
        return []
    told = {name: f"{psnr:.2f} dB, SSIM {ssim:.4f}" for name, (psnr, ssim) in means.items()}
    own, own_told = means.pop(TITLES[MAESIL]), told[TITLES[MAESIL]]
    above = [f"{name} ({told[name]})" for name, mean in means.items() if mean[0] > own[0] or mean[1] > own[1]]
    if above:
        return [f"MAESIL loses in auto-encoding: {', '.join(above)} against its {own_told}, over all volumes.", ""]
    return [f"MAESIL is ahead in auto-encoding ({own_told}), of {', '.join(means)}, over all volumes.", ""]


def _methods_table(result: dict[str, Any]) -> list[str]:
    """Return methods and their metrics over all volumes."""
    keys = [PSNR, SSIM, *(["lpips"] if result["lpips"] else []), MAE]
    titles = [CATALOGUE[key].title if key == "lpips" else CATALOGUE[key].heading for key in keys]
    patch = "x".join(map(str, result["config"]["model"]["patch_size"]))
    header = ["method", "parameters", f"code of a patch ({patch} voxels)", "learning rate", "training"]
    rows = []
    overall = (line for line in result["summary"] if line["dataset"] == ALL)
    for method, line in zip(result["methods"], overall, strict=True):
        parameters = f"{method['parameters'] / 1e6:.2f} M" if method["parameters"] else "none"
        rate = "" if method["learning_rate"] is None else f"{method['learning_rate']:g}"
        training = f"{method['training_seconds']} s, {method['precision']}" if method["updates"] else "none"
        means = [_mean_sd(line, key) for key in keys]
        rows.append([method["title"], parameters, method["code"], rate, training, *means])
    return markdown_table([*header, *titles], rows)


def _mean_sd(line: dict[str, Any], key: str) -> str:
    """Return the mean of a metric in a summary, and its deviation if there is one."""
    mean, sd = (CATALOGUE[key].number(line.get(name)) for name in (key, f"{key}_sd"))
    return f"{mean} ({sd})" if sd else mean
