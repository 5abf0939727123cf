"""Training every method of the comparison by the same trainer on the same samples."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from MAESILLib.comparison.peers import PEERS, latent_of, make_peer
from MAESILLib.comparison.reference import COSINES
from MAESILLib.comparison.runs import MAESIL, check_budget, run, title_of
from MAESILLib.comparison.search import Search, search, with_rate
from MAESILLib.config import Config
from MAESILLib.data.cache import Cache
from MAESILLib.errors import InputError
from MAESILLib.events import Reporter
from MAESILLib.stopping import StopRequest
from MAESILLib.training.run_folder import MODEL, holds_state
from MAESILLib.training.state import read_state


@dataclass(frozen=True)
class Trained:
    """A method after its training.

    Attributes:
        name: of :data:`MAESILLib.comparison.runs.METHODS`.
        path: its checkpoint: the averaged weights of the last update, chosen by nothing; None where nothing is learnt.
        described: parameters, latent size, learning rate and how it was found, samples, seconds.
    """

    name: str
    path: Path | None
    described: dict[str, Any]


def train_all(
    config: Config,
    cache: Cache,
    folder: Path,
    methods: list[str],
    *,
    wanted: Search | None = None,
    device: torch.device,
    reporter: Reporter,
    stop: StopRequest,
) -> list[Trained]:
    """Train each method into ``folder``/METHOD, or go on where its run was cut short; what is done is taken.

    Args:
        wanted: learning rates to choose from, by trials in ``folder``/trials; None: that of the configuration.

    Raises:
        InputError: a run in the folder had another configuration or other data, or MONAI is missing.
        CancelledError: a stop was asked for; the run's state is saved.
    """
    for name in methods:
        # what is missing is said before hours of training another one
        if name in PEERS:
            make_peer(name)
        check_budget(name, config, folder / name)
        _check_rate(name, wanted, folder / name)
    trained = []
    for name in methods:
        stop.check()
        if name == COSINES:
            trained.append(Trained(name, None, _described(name, config)))
            continue
        own = config
        trials: list[dict[str, Any]] = []
        if wanted is not None:
            rate, trials = search(name, config, cache, folder / "trials", wanted, device, reporter, stop)
            own = with_rate(config, rate)
        if reporter.mode == "bar":
            reporter.text(f"{title_of(name)}: {config.train.steps} updates of {config.train.batch_size} superpatches")
        trainer = run(name, own, cache, folder / name, device, reporter, stop)
        progress = trainer.progress
        described = _described(name, config) | {
            "network": "MAESILLib" if name == MAESIL else PEERS[name].network,
            "parameters": sum(p.numel() for p in trainer.model.parameters()),
            "learning_rate": own.train.learning_rate,
            "trials": trials,
            "samples": progress.samples,
            "updates": progress.step,
            "training_seconds": round(progress.seconds),
        }
        trained.append(Trained(name, folder / name / MODEL, described))
    return trained


def _check_rate(name: str, wanted: Search | None, folder: Path) -> None:
    """Refuse a run whose learning rate the search cannot choose."""
    if wanted is None or not holds_state(folder):
        return
    rate = read_state(folder).values["config"]["train"]["learning_rate"]
    if rate not in wanted.rates:
        raise InputError(
            f"{folder} holds {title_of(name)} trained with the learning rate {rate:g}, which is not searched",
            "give the same --learning-rates, or choose another folder",
        )


def _described(name: str, config: Config) -> dict[str, Any]:
    """Return what is said of a method that learns nothing; of the others, what of it holds for them too."""
    latent = latent_of(name, config.model)
    return {
        "method": name,
        "title": title_of(name),
        "network": "DCT-II",
        "parameters": 0,
        "latent": str(latent),
        "latent_numbers": latent.numbers,
        "latent_bits": latent.bits,
        "learning_rate": None,
        "trials": [],
        "samples": 0,
        "updates": 0,
        "training_seconds": 0,
    }
