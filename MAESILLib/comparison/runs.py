"""One training of one method of the comparison, by the same trainer on the same samples."""

from __future__ import annotations

from pathlib import Path

import torch

from MAESILLib.comparison.peer_task import PeerTraining, config_for_peer
from MAESILLib.comparison.peers import PEERS
from MAESILLib.comparison.reference import COSINES
from MAESILLib.config import Config
from MAESILLib.data.cache import Cache
from MAESILLib.errors import CancelledError, InputError
from MAESILLib.events import Reporter
from MAESILLib.stopping import StopRequest
from MAESILLib.training.run_folder import holds_state
from MAESILLib.training.state import read_state
from MAESILLib.training.task import MASKED_AUTOENCODING, Task
from MAESILLib.training.trainer import Trainer

MAESIL = "maesil"
METHODS = (*PEERS, COSINES, MAESIL)
TITLES = {MAESIL: "MAESIL", COSINES: "cosines"} | {name: method.title for name, method in PEERS.items()}


def title_of(name: str) -> str:
    """Return a method's name as tables write it."""
    return TITLES[name]


def run(
    name: str,
    config: Config,
    cache: Cache,
    folder: Path,
    device: torch.device,
    reporter: Reporter,
    stop: StopRequest,
    option: str = "--steps",
) -> Trainer:
    """Train a method into ``folder``, or go on where its run was cut short; what is done is taken.

    Args:
        option: what gives the number of updates.

    Raises:
        InputError: the run in the folder had another configuration, other data or another number of updates.
        CancelledError: a stop was asked for; the run's state is saved.
    """
    check_budget(name, config, folder, option)
    task: Task = MASKED_AUTOENCODING if name == MAESIL else PeerTraining(name)
    own = config if name == MAESIL else config_for_peer(config)
    trainer = Trainer(
        own, cache, folder, device=device, resume=holds_state(folder), reporter=reporter, stop=stop, task=task
    )
    if trainer.progress.step < own.train.steps:
        try:
            trainer.run()
        except CancelledError as error:
            # the trainer speaks of an option of another command
            raise CancelledError(f"{title_of(name)} {error.message.split(';')[0]}; the same call goes on") from None
    else:
        trainer.write_weights()
    return trainer


def check_budget(name: str, config: Config, folder: Path, option: str = "--steps") -> None:
    """Refuse a run of another number of updates: a prolonged one has had two schedules, not the others' budget."""
    if not holds_state(folder):
        return
    steps = read_state(folder).values["config"]["train"]["steps"]
    if steps != config.train.steps:
        raise InputError(
            f"{folder} holds {title_of(name)} trained for {steps} updates, not {config.train.steps}",
            f"give the same {option}, or choose another folder",
        )
