"""The learning rate of each method, chosen alike: the same rates, the same short trials, judged on training samples.

Networks differ in the learning rate that suits them, so one rate for all would favour the method it was found for.
Nothing held out is looked at.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from MAESILLib.comparison.runs import run, title_of
from MAESILLib.config import Config
from MAESILLib.data.cache import Cache
from MAESILLib.errors import DivergedError, InputError
from MAESILLib.events import Reporter
from MAESILLib.stopping import StopRequest
from MAESILLib.training.log import read_log


@dataclass(frozen=True)
class Search:
    """Which learning rates are tried.

    Attributes:
        rates: at least two.
        steps: updates of a trial, which has a whole schedule of its own.
    """

    rates: tuple[float, ...]
    steps: int


def search(
    name: str,
    config: Config,
    cache: Cache,
    folder: Path,
    wanted: Search,
    device: torch.device,
    reporter: Reporter,
    stop: StopRequest,
) -> tuple[float, list[dict[str, Any]]]:
    """Return the rate whose trial ended with the least loss, and what each came to.

    Args:
        folder: of the trials, one folder each; those that are done are taken.

    Raises:
        InputError: a trial in the folder was another one, or none had finite losses.
        CancelledError: a stop was asked for; the trial's state is saved.
    """
    losses: dict[float, float | None] = {}
    for rate in wanted.rates:
        own = folder / f"{name}-{rate!r}"
        try:
            trial = _short(with_rate(config, rate), wanted.steps)
            run(name, trial, cache, own, device, reporter, stop, option="--trial-steps")
            losses[rate] = _last_loss(own, wanted.steps)
        except DivergedError as error:
            reporter.warning(f"{title_of(name)} with the learning rate {rate:g}: {error.message}")
            losses[rate] = None
    if all(loss is None for loss in losses.values()):
        raise InputError(
            f"{title_of(name)}: no trial ended with finite losses", "give lower --learning-rates, or fp32 precision"
        )
    best = min((math.inf if loss is None else loss, rate) for rate, loss in losses.items())[1]
    if reporter.mode == "bar":
        told = ", ".join(f"{rate:g}: {'none' if loss is None else f'{loss:.5f}'}" for rate, loss in losses.items())
        reporter.text(f"{title_of(name)}: learning rate {best:g} (losses of the trials {told})")
    return best, [{"learning_rate": rate, "loss": loss} for rate, loss in losses.items()]


def with_rate(config: Config, rate: float) -> Config:
    """Return the configuration with another learning rate, which falls to what it fell to, or stays where it is."""
    final = min(config.train.final_learning_rate, rate)
    return replace(config, train=replace(config.train, learning_rate=rate, final_learning_rate=final))


def _short(config: Config, steps: int) -> Config:
    """Return the configuration of a trial: nothing held out is looked at, every loss is written down."""
    train = replace(config.train, steps=steps, log_every=1, validation_superpatches=0, preview_at=0)
    return replace(config, train=train)


def _last_loss(folder: Path, steps: int) -> float | None:
    """Return the mean loss of the second half of a trial's updates; None if one of them is not finite."""
    path = folder / "log.csv"
    losses = [row["loss"] for row in read_log(path)] if path.is_file() else []
    if len(losses) != steps:
        raise InputError(f"{path} does not hold the {steps} updates of a trial", f"remove {folder} and try again")
    last = losses[len(losses) // 2 :]
    finite = [loss for loss in last if isinstance(loss, float) and math.isfinite(loss)]
    return round(fmean(finite), 7) if len(finite) == len(last) else None
