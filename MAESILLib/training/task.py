"""What a run trains: its network, its loss, how it is validated and saved.

The trainer knows samples, updates and states; a task knows what they are for. Baselines are trained by the same
trainer on the same samples (:mod:`MAESILLib.comparison`), so that what is compared had the same budget.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import nn

from MAESILLib.config import Config
from MAESILLib.mae.checkpoint import CheckpointInfo, save_checkpoint
from MAESILLib.mae.checkpoint_info import PARTS
from MAESILLib.mae.harmonic import biharmonic_fill, harmonic_fill
from MAESILLib.mae.loss import Loss, completion_loss, core_loss, latent_loss, mean_of_samples, patch_error
from MAESILLib.mae.masking import generator_for, hidden_tokens
from MAESILLib.mae.model import Prediction, spread, token_grid
from MAESILLib.mae.network import Network
from MAESILLib.runtime.device import precision_context
from MAESILLib.training.batch import Batch, intensities
from MAESILLib.training.validation import ValidationSuperpatch, attention_shares, patch_r2, validate

if TYPE_CHECKING:
    from MAESILLib.probe.reduced import ReducedPoints
    from MAESILLib.training.update import Update

HARMONIC_TOLERANCE, BIHARMONIC_TOLERANCE = 1e-2, 0.3
"""Of the fills in training, in intensities."""
TEACHER_BLOCKS = 4
"""Last blocks of the averaged encoder whose mean is predicted."""
LATENT_HEAD = "latent_head."


class Task(Protocol):
    """What a :class:`MAESILLib.training.trainer.Trainer` needs to know of what it trains.

    Attributes:
        name: a run is only resumed by the task that began it.
        metrics: names of the metrics of :meth:`loss`; ``psnr_masked_db`` in the log is made of the first, an error.
    """

    name: str
    metrics: tuple[str, ...]

    def build(self, config: Config) -> nn.Module:
        """Return the network, its weights drawn from torch's own generator."""

    def loss(self, update: Update, batch: Batch) -> Loss:
        """Run ``update.network`` on a batch and return the loss."""

    def validation_metrics(self, config: Config) -> tuple[str, ...]:
        """Return the names of what :meth:`validate` can give."""
        return ("psnr_masked_db",)

    def validate(self, update: Update, superpatches: list[ValidationSuperpatch]) -> dict[str, float]:
        """Return of the averaged network ``psnr_masked_db``, of which more is better, and perhaps other metrics."""
        return {"psnr_masked_db": validate(update.average, superpatches, update.device, update.bf16, update.ranks)}

    def save(self, path: Path, weights: dict[str, torch.Tensor], info: CheckpointInfo) -> None:
        """Write a checkpoint, whole or not at all."""


class Pretraining(Network):
    """The network in training: with a head that predicts the teacher's latents from the decoder's tokens."""

    def __init__(self, config: Config) -> None:
        parts = tuple(part for part in PARTS if getattr(config.train, part))
        super().__init__(config.model, config.preprocessing.windows_hu, parts)
        self.core.requires_grad_(config.train.core)
        self.latent_head = None
        if config.train.core and config.train.teacher_weight > 0:
            self.latent_head = nn.Linear(config.model.decoder_width, config.model.encoder_width)
            # torch's own generator has moved on by what the other parts drew
            nn.init.xavier_uniform_(self.latent_head.weight, generator=generator_for(config.train.seed, LATENT_HEAD))
            nn.init.zeros_(self.latent_head.bias)


def idle(module: nn.Module) -> torch.Tensor:
    """Return 0 with a gradient of 0 for every weight: ranks wait for each other's gradient of each of them."""
    return torch.stack([p.sum() for p in module.parameters()]).sum() * 0


class MaskedAutoencoding(Task):
    """Pretraining a superpatch masked autoencoder: what ``maesil pretrain`` does.

    Args:
        points: labelled points to probe the encoder on with each validation, in at most 5 % of the time.
    """

    def __init__(self, points: ReducedPoints | None = None) -> None:
        self.points = points
        self._next_probe = 0.0

    name = "maesil"
    metrics = ("masked_mse", "completed_mse", "visible_mse", "latent_loss")

    def validation_metrics(self, config: Config) -> tuple[str, ...]:
        shares = (f"attention_share_{block}" for block in range(1, config.model.encoder_depth + 1))
        return ("psnr_masked_db", "patch_r2", "probe_auroc", "probe_auroc_soft", *shares)

    def build(self, config: Config) -> Pretraining:
        return Pretraining(config)

    def loss(self, update: Update, batch: Batch) -> Loss:
        """Return the losses of core, completion and read-out; metrics of parts that are not there are 0."""
        config, device = update.config, update.device
        train, patch_size = config.train, config.model.patch_size
        model: Pretraining = update.model  # type: ignore[assignment]
        image, target, valid = intensities(batch, config.preprocessing.windows_hu, device)
        visible, decoded = (x.to(device, non_blocking=True) for x in (batch.visible, batch.decoded))
        crops = batch.completed.crops
        counted = spread(hidden_tokens(visible[crops], token_grid(batch.hu, patch_size)), patch_size)
        known = ~counted
        if valid is not None:
            counted, known = counted & valid[crops], known & valid[crops]
        filled = None
        if model.completion is not None and batch.completed:
            harmonic = harmonic_fill(image[crops, :1], known, HARMONIC_TOLERANCE)
            filled = biharmonic_fill(harmonic, known, BIHARMONIC_TOLERANCE)
        with precision_context(device, update.bf16):
            prediction, completed, readout = update.network(image, visible, decoded, filled, crops, batch.offset)
        core, masked = core_loss(prediction, target, valid, patch_size, train.band_slope)
        metrics = dict.fromkeys(self.metrics, core.new_zeros(())) | {"masked_mse": masked}
        if model.latent_head is not None:
            latent = self._latent_loss(update, batch, image, prediction)
            core, metrics["latent_loss"] = core + train.teacher_weight * latent, latent.detach()
        readers = []
        if completed is not None:
            loss, squared = completion_loss(completed, target[crops, :1], counted, train.completion_gradient_weight)
            readers.append(batch.completed.weight * loss)
            metrics["completed_mse"] = batch.completed.weight * squared
        elif model.completion is not None:
            readers.append(idle(model.completion))
        if readout is not None:
            error, weight = patch_error(readout, visible, target[:, :1], valid, patch_size)
            readers.append(mean_of_samples(error.square(), weight))
            metrics["visible_mse"] = readers[-1].detach()
        return Loss(core, torch.stack(readers).sum() if readers else None, metrics)

    def _latent_loss(self, update: Update, batch: Batch, image: torch.Tensor, prediction: Prediction) -> torch.Tensor:
        """Compare predicted latents of the taught crops with those of the averaged encoder, which sees them whole."""
        model: Pretraining = update.model  # type: ignore[assignment]
        assert model.latent_head is not None
        if not batch.taught:
            return idle(model.latent_head)
        crops = batch.taught.crops
        average: Pretraining = update.average  # type: ignore[assignment]
        with precision_context(update.device, update.bf16):
            with torch.no_grad():
                teacher = average.core.encoder(image[crops], None, batch.offset)[-TEACHER_BLOCKS:]
            predicted = model.latent_head(prediction.tokens[crops])
        return batch.taught.weight * latent_loss(predicted, teacher, prediction.decoded[crops])

    def validate(self, update: Update, superpatches: list[ValidationSuperpatch]) -> dict[str, float]:
        """Return the mean PSNR of hidden voxels, and on the first rank what tells how the encoder does."""
        found = super().validate(update, superpatches)
        if not update.ranks.is_main:
            return found
        model: Pretraining = update.average  # type: ignore[assignment]
        encoder, one = model.core.encoder, superpatches[0]
        image, valid = one.image.to(update.device), one.valid.to(update.device)
        shares = attention_shares(encoder, image)
        found |= {f"attention_share_{block}": share for block, share in enumerate(shares, start=1)}
        found["patch_r2"] = patch_r2(encoder, image, valid)
        if self.points is not None and time.monotonic() >= self._next_probe:
            # it needs SimpleITK, which a node that trains may lack
            from MAESILLib.probe.features import HUEncoder
            from MAESILLib.probe.reduced import reduced_probe

            begin = time.monotonic()
            probed = reduced_probe(HUEncoder(encoder, model.windows_hu), self.points, device=update.device)
            found |= {f"probe_{name}": value for name, value in probed.items()}
            self._next_probe = time.monotonic() + 19 * (time.monotonic() - begin)
        return found

    def save(self, path: Path, weights: dict[str, torch.Tensor], info: CheckpointInfo) -> None:
        """Write everything but the teacher's head, which has no use after training."""
        kept = {name: w for name, w in weights.items() if not name.startswith(LATENT_HEAD)}
        parts = tuple(part for part in PARTS if any(name.startswith(part + ".") for name in kept))
        save_checkpoint(path, kept, replace(info, parts=parts))


MASKED_AUTOENCODING = MaskedAutoencoding()
