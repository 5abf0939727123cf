"""The comparison of the paper: every method trained on the same samples, evaluated on the same held-out volumes.

DIR/runs/METHOD/                 the training run of a method: resumed if it was interrupted, reused if it is complete
DIR/figures/METHOD/VOLUME.png    input, reconstruction and error
DIR/comparison.json, .csv, .md   metrics of every volume, their means, paired differences

Optimiser, schedule with its cool-down and averaging of the weights are the same; a method may have a learning rate of
its own.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from MAESILLib import __version__
from MAESILLib.comparison.baselines import COSINES, MAESIL, TITLES, BaselineTraining, code_of, make_baseline
from MAESILLib.comparison.table import markdown, summaries
from MAESILLib.config import FREE_KEYS, Config, MaskTraining, to_dict
from MAESILLib.data.cache import Cache
from MAESILLib.data.provenance import source_commit
from MAESILLib.evaluation.evaluate import AUTOENCODING, OUT_OF_MEMORY_HINT, Measuring, protocol
from MAESILLib.evaluation.figures import draw, remove_former
from MAESILLib.evaluation.tables import write
from MAESILLib.mae.checkpoint import load_checkpoint
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
        methods: of :data:`MAESILLib.comparison.baselines.TITLES`.
        measuring: on the held-out volumes of the cache that is trained on.
        rates: learning rates of methods that have their own.

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

    Returns:
        what it was trained with.

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
        network.load_state_dict(load_file(run / MODEL))
    return network.to(device).eval()


def _describe(name: str, config: Config, model: Any) -> dict[str, Any]:
    numbers, bits = code_of(name, config.model)
    return {
        "method": name,
        "title": TITLES[name],
        "network": "MAESILLib" if name == MAESIL else model.network_class,
        "parameters": sum(p.numel() for p in model.parameters()),
        "code": f"{numbers} numbers" if bits is None else f"{numbers} codes of {bits} bits",
        "code_numbers": numbers,
        "code_bits": bits,
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
