"""Training every method of the comparison by the same trainer on the same samples."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from MAESILLib.comparison.peer_task import PeerTraining, config_for_peer
from MAESILLib.comparison.peers import PEERS, latent_of, make_peer
from MAESILLib.config import Config
from MAESILLib.data.cache import Cache
from MAESILLib.errors import InputError
from MAESILLib.events import Reporter
from MAESILLib.stopping import StopRequest
from MAESILLib.training.run_folder import MODEL, holds_state
from MAESILLib.training.state import read_state
from MAESILLib.training.task import MASKED_AUTOENCODING, Task
from MAESILLib.training.trainer import Trainer

MAESIL = "maesil"
METHODS = (*PEERS, MAESIL)


@dataclass(frozen=True)
class Trained:
    """A method after its training.

    Attributes:
        name: of :data:`METHODS`.
        path: its checkpoint: the averaged weights of the last update, chosen by nothing.
        described: parameters, latent size, samples, seconds; what tables say of it.
    """

    name: str
    path: Path
    described: dict[str, Any]


def title_of(name: str) -> str:
    """Return a method's name as tables write it."""
    return "MAESIL" if name == MAESIL else PEERS[name].title


def train_all(
    config: Config,
    cache: Cache,
    folder: Path,
    methods: list[str],
    *,
    device: torch.device,
    reporter: Reporter,
    stop: StopRequest,
) -> list[Trained]:
    """Train each method into ``folder``/METHOD, or go on where its run was cut short; what is done is taken.

    Raises:
        InputError: a run in the folder had another configuration or other data, or MONAI is missing.
        CancelledError: a stop was asked for; the run's state is saved.
    """
    for name in methods:
        # what is missing is said before hours of training another one
        if name != MAESIL:
            make_peer(name)
    trained = []
    for name in methods:
        stop.check()
        if reporter.mode == "bar":
            reporter.text(f"{title_of(name)}: {config.train.steps} updates of {config.train.batch_size} superpatches")
        trained.append(_train(name, config, cache, folder / name, device, reporter, stop))
    return trained


def _train(
    name: str, config: Config, cache: Cache, folder: Path, device: torch.device, reporter: Reporter, stop: StopRequest
) -> Trained:
    _check_budget(name, config, folder)
    task: Task = MASKED_AUTOENCODING if name == MAESIL else PeerTraining(name)
    own = config if name == MAESIL else config_for_peer(config)
    trainer = Trainer(
        own, cache, folder, device=device, resume=holds_state(folder), reporter=reporter, stop=stop, task=task
    )
    if trainer.progress.step < own.train.steps:
        trainer.run()
    else:
        trainer.write_weights()
    latent = latent_of(name, config.model)
    described = {
        "method": name,
        "title": title_of(name),
        "network": "MAESILLib" if name == MAESIL else PEERS[name].network,
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "latent": str(latent),
        "latent_numbers": latent.numbers,
        "latent_bits": latent.bits,
        "samples": trainer.progress.samples,
        "updates": trainer.progress.step,
        "training_seconds": round(trainer.progress.seconds),
    }
    return Trained(name, folder / MODEL, described)


def _check_budget(name: str, config: Config, folder: Path) -> None:
    """Refuse a run of another number of updates: a prolonged one has had two schedules, not the others' budget."""
    if not holds_state(folder):
        return
    steps = read_state(folder).values["config"]["train"]["steps"]
    if steps != config.train.steps:
        raise InputError(
            f"{folder} holds {title_of(name)} trained for {steps} updates, not {config.train.steps}",
            "give the same --steps, or choose another folder",
        )
