"""Training a method of the comparison: every one by MAESIL's trainer, on the same samples in the same order.

Optimiser, schedule with its cool-down and averaging of the weights are the same; a method may have a learning rate of
its own.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from MAESILLib.checkpoint_info import CheckpointInfo
from MAESILLib.comparison.baselines import BASELINES, MAESIL, TITLES, Baseline, make_baseline, save_baseline
from MAESILLib.config import FREE_KEYS, Config, MaskTraining
from MAESILLib.data.cache import Cache
from MAESILLib.device import precision_context
from MAESILLib.errors import CancelledError, InputError
from MAESILLib.events import Reporter
from MAESILLib.stopping import StopRequest
from MAESILLib.training.batch import Batch, intensities
from MAESILLib.training.loss import Loss, mean_of_samples
from MAESILLib.training.ranks import Ranks
from MAESILLib.training.run_folder import holds_state
from MAESILLib.training.state import check_same_run, read_state
from MAESILLib.training.task import MASKED_AUTOENCODING, Task
from MAESILLib.training.trainer import Trainer
from MAESILLib.training.validation import Preview, ValidationSuperpatch

if TYPE_CHECKING:
    from MAESILLib.training.update import Update


class BaselineTraining:
    """A :class:`MAESILLib.training.task.Task`: reconstruct what is seen.

    Args:
        name: of :data:`MAESILLib.comparison.baselines.BASELINES`.
    """

    metrics = ("visible_mse",)

    def __init__(self, name: str) -> None:
        self.name = name

    def build(self, config: Config) -> Baseline:
        """Return the network."""
        return make_baseline(self.name, config.model, config.preprocessing.windows_hu)

    def loss(self, update: Update, batch: Batch) -> Loss:
        """Return the squared error of every voxel and the method's penalty."""
        image, target, valid = intensities(batch, update.config.preprocessing.windows_hu, update.device)
        with precision_context(update.device, update.bf16):
            output = update.network(image)
        difference = output.image - target if valid is None else (output.image - target) * valid
        error = mean_of_samples(difference.square(), valid)
        return Loss(error + output.penalty, None, {"visible_mse": error.detach()})

    def validation_metrics(self, config: Config) -> tuple[str, ...]:
        """Return the name of the only one; nothing is masked, so it is of every voxel."""
        return ("psnr_masked_db",)

    @torch.no_grad()
    def validate(
        self,
        model: Baseline,
        superpatches: list[ValidationSuperpatch],
        device: torch.device,
        bf16: bool,
        ranks: Ranks,
    ) -> dict[str, float]:
        """Return the mean PSNR of every voxel."""
        total = 0.0
        for one in superpatches[ranks.rank :: ranks.size]:
            difference = (_made(model, one, device, bf16) - one.image)[one.valid]
            total += -10 * math.log10(max(float(difference.double().square().mean()), 1e-12))
        mean = float(ranks.sum(torch.tensor(total, dtype=torch.float64))) / len(superpatches)
        return {"psnr_masked_db": mean}

    @torch.no_grad()
    def preview(self, model: Baseline, superpatch: ValidationSuperpatch, device: torch.device, bf16: bool) -> Preview:
        """Reconstruct the superpatch; nothing is hidden."""
        image = superpatch.image[0, 0].numpy()
        return Preview(image, image, _made(model, superpatch, device, bf16)[0, 0].numpy())

    def save(self, path: Path, weights: dict[str, torch.Tensor], info: CheckpointInfo) -> None:
        """Write the network."""
        save_baseline(path, self.name, weights, info)


def _made(model: Baseline, one: ValidationSuperpatch, device: torch.device, bf16: bool) -> torch.Tensor:
    with precision_context(device, bf16):
        made: torch.Tensor = model(one.image.to(device)).image
    return made.clamp(0, 1).cpu()


def config_of(name: str, config: Config, rates: dict[str, float]) -> Config:
    """Return a method's configuration: its learning rate; of a baseline, the first window alone and nothing hidden."""
    train = replace(config.train, learning_rate=rates.get(name, config.train.learning_rate))
    if name == MAESIL:
        return replace(config, train=train)
    windows = config.preprocessing.windows_hu[:1]
    preprocessing = replace(config.preprocessing, windows_hu=windows)
    return replace(config, preprocessing=preprocessing, mask=MaskTraining(("none",), (0.0,)), train=train)


def check_run(name: str, config: Config, cache: Cache, folder: Path) -> None:
    """Refuse what cannot be trained or resumed, before hours of training of another method.

    Raises:
        InputError: MONAI is missing, or the run in ``folder`` had another configuration, other data or another number
            of updates: one that was prolonged has had two schedules.
    """
    if name in BASELINES:
        make_baseline(name, config.model, config.preprocessing.windows_hu)
    if not holds_state(folder):
        return
    state = read_state(folder).values
    check_same_run(state, name, config, cache.fingerprint(), folder, FREE_KEYS)
    steps = state["config"]["train"]["steps"]
    if steps != config.train.steps:
        raise InputError(
            f"{folder} holds {TITLES[name]} trained for {steps} updates, not {config.train.steps}",
            "give the same --steps, or choose another folder",
        )


def train(
    name: str,
    config: Config,
    cache: Cache,
    folder: Path,
    device: torch.device,
    reporter: Reporter,
    stop: StopRequest,
) -> dict[str, Any]:
    """Train a method into ``folder``, or resume where its run was cut short; a finished one is taken.

    Returns:
        what it was trained with.

    Raises:
        InputError: as :func:`check_run`.
        CancelledError: a stop was asked for; the run's state is saved.
    """
    task: Task = MASKED_AUTOENCODING if name == MAESIL else BaselineTraining(name)
    trainer = Trainer(
        config, cache, folder, device=device, resume=holds_state(folder), reporter=reporter, stop=stop, task=task
    )
    if trainer.progress.step == config.train.steps:
        # a crash may have come between the state and the checkpoint
        trainer.write_weights()
    else:
        try:
            trainer.run()
        except CancelledError as error:
            # the trainer names an option of another command
            told = f"{TITLES[name]} {error.message.split(';')[0]}; repeat the same command to resume"
            raise CancelledError(told) from None
    return {
        "learning_rate": config.train.learning_rate,
        "precision": trainer.precision,
        "samples": trainer.progress.samples,
        "updates": trainer.progress.step,
        "training_seconds": round(trainer.progress.seconds),
    }


UNTRAINED = {"learning_rate": None, "precision": None, "samples": 0, "updates": 0, "training_seconds": 0}
"""What a method that learns nothing was trained with."""
