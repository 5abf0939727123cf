"""What a run trains: its network, its loss, how it is validated and saved.

The trainer knows samples, updates and states; a task knows what they are for. Baselines are trained by the same
trainer on the same samples (:mod:`MAESILLib.comparison`), so that what is compared had the same budget.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn
from torch.func import functional_call

from MAESILLib.checkpoint import CheckpointInfo, save_checkpoint
from MAESILLib.checkpoint_info import PARTS
from MAESILLib.config import Config
from MAESILLib.device import precision_context
from MAESILLib.harmonic import harmonic_fill
from MAESILLib.mae.blocks import Block
from MAESILLib.mae.model import spread
from MAESILLib.mae.network import Network
from MAESILLib.masking import hidden_tokens
from MAESILLib.training.batch import Batch, intensities
from MAESILLib.training.loss import Loss, completion_loss, core_loss, latent_loss, mean_of_samples, patch_error
from MAESILLib.training.ranks import Ranks
from MAESILLib.training.validation import Preview, ValidationSuperpatch, preview, validate

if TYPE_CHECKING:
    from MAESILLib.training.update import Update

FILL_TOLERANCE = 1e-2
"""Of the harmonic fill in training, in intensities."""
TEACHER_BLOCKS = 4
"""Last blocks of the averaged encoder whose mean is predicted."""
LATENT_HEAD = "latent_head."


class Task(Protocol):
    """What a :class:`MAESILLib.training.trainer.Trainer` needs to know of what it trains."""

    @property
    def name(self) -> str:
        """A run is only resumed by the task that began it."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics of :meth:`loss`; ``psnr_masked_db`` in the log is made of the first, an error."""

    def build(self, config: Config) -> nn.Module:
        """Return the network, its weights drawn from torch's own generator."""

    def loss(self, update: Update, batch: Batch) -> Loss:
        """Run ``update.network`` on a batch and return the loss."""

    def validate(
        self, model: Any, superpatches: list[ValidationSuperpatch], device: torch.device, bf16: bool, ranks: Ranks
    ) -> float:
        """Return a PSNR in dB; more is better."""

    def preview(self, model: Any, superpatch: ValidationSuperpatch, device: torch.device, bf16: bool) -> Preview:
        """Return what previews show of a superpatch."""

    def save(self, path: Path, weights: dict[str, torch.Tensor], info: CheckpointInfo) -> None:
        """Write a checkpoint, whole or not at all."""


class Pretraining(Network):
    """The network in training: with a head that predicts the teacher's latents from the decoder's tokens."""

    def __init__(self, config: Config) -> None:
        parts = tuple(part for part in PARTS if getattr(config.train, part))
        super().__init__(config.model, config.preprocessing.windows_hu, parts)
        self.parts = parts
        self.latent_head = (
            nn.Linear(config.model.decoder_width, config.model.encoder_width)
            if config.train.teacher_weight > 0
            else None
        )
        if config.train.compile:
            for module in self.modules():
                if isinstance(module, Block):
                    module.compile()


class MaskedAutoencoding:
    """Pretraining a superpatch masked autoencoder: what ``maesil pretrain`` does."""

    name = "maesil"
    metrics = ("masked_mse", "completed_mse", "visible_mse", "latent_loss")

    def build(self, config: Config) -> Pretraining:
        """Return the network."""
        return Pretraining(config)

    def loss(self, update: Update, batch: Batch) -> Loss:
        """Return the losses of core, completion and read-out; metrics of parts that are not there are 0."""
        config, model, device = update.config, update.model, update.device
        train, patch_size = config.train, config.model.patch_size
        image, target, valid = intensities(batch, config.preprocessing.windows_hu, device)
        visible = batch.visible.to(device, non_blocking=True)
        decoded = batch.decoded.to(device, non_blocking=True)
        completed, filled, hidden = 0, None, None
        if train.completion:
            completed = min(train.completion_crops, len(image))
            hidden = spread(hidden_tokens(visible[:completed], batch.grid(patch_size)), patch_size)
            known = ~hidden if valid is None else ~hidden & valid[:completed]
            filled = harmonic_fill(image[:completed, :1], known, FILL_TOLERANCE)
        with precision_context(device, update.bf16):
            prediction, completion, readout = update.network(image, visible, decoded, filled, batch.offset)
        core, masked = core_loss(prediction, target, valid, patch_size, train.band_slope)
        metrics = dict.fromkeys(self.metrics, core.new_zeros(())) | {"masked_mse": masked}
        if train.teacher_weight > 0:
            # the last crops: the first ones are completed
            taught = slice(-train.teacher_crops, None)
            with torch.no_grad(), precision_context(device, update.bf16):
                seen = image[taught]
                everything = torch.arange(batch.tokens(patch_size), device=device).expand(len(seen), -1)
                encoder: nn.Module = model.core.encoder  # type: ignore[assignment,union-attr]
                teacher = functional_call(
                    encoder, update.average.under("core.encoder."), (seen, everything, batch.offset)
                )
            with precision_context(device, update.bf16):
                latents = model.latent_head(prediction.tokens[taught])  # type: ignore[operator]
            latent = latent_loss(latents, teacher[-TEACHER_BLOCKS:], decoded[taught])
            core, metrics["latent_loss"] = core + train.teacher_weight * latent, latent.detach()
        readers = []
        if completion is not None and hidden is not None:
            part = None if valid is None else valid[:completed]
            loss, metrics["completed_mse"] = completion_loss(
                completion, target[:completed, :1], hidden, part, train.completion_gradient_weight
            )
            readers.append(loss)
        if readout is not None:
            error, weight = patch_error(readout, visible, target[:, :1], valid, patch_size)
            loss = mean_of_samples(error.square(), weight)
            readers.append(loss)
            metrics["visible_mse"] = loss.detach()
        return Loss(core, torch.stack(readers).sum() if readers else None, metrics)

    def validate(
        self,
        model: Pretraining,
        superpatches: list[ValidationSuperpatch],
        device: torch.device,
        bf16: bool,
        ranks: Ranks,
    ) -> float:
        """Return the mean PSNR of hidden voxels."""
        return validate(model, superpatches, device, bf16, ranks)

    def preview(
        self, model: Pretraining, superpatch: ValidationSuperpatch, device: torch.device, bf16: bool
    ) -> Preview:
        """Complete the superpatch."""
        return preview(model, superpatch, device, bf16)

    def save(self, path: Path, weights: dict[str, torch.Tensor], info: CheckpointInfo) -> None:
        """Write everything but the teacher's head, which has no use after training."""
        kept = {name: w for name, w in weights.items() if not name.startswith(LATENT_HEAD)}
        parts = tuple(part for part in PARTS if any(name.startswith(part + ".") for name in kept))
        save_checkpoint(path, kept, replace(info, parts=parts))


MASKED_AUTOENCODING = MaskedAutoencoding()
