"""What a run trains: its network, its loss, how it is judged and how it is kept.

The trainer knows samples, updates and states; a task knows what they are for. Other networks are trained by the
same trainer on the same samples (:mod:`MAESILLib.comparison`), so that what is compared had the same budget.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from MAESILLib.checkpoint import CheckpointInfo, save_checkpoint
from MAESILLib.config import Config
from MAESILLib.model import MaskedAutoencoder
from MAESILLib.training.kernels import EAGER, Kernels, compiled
from MAESILLib.training.ranks import Ranks
from MAESILLib.training.validation import Preview, ValidationSuperpatch, preview, validate


class Task(Protocol):
    """What a :class:`MAESILLib.training.trainer.Trainer` needs to know of what it trains."""

    @property
    def name(self) -> str:
        """A run is only resumed by the task that began it."""

    @property
    def kernels(self) -> Kernels:
        """The functions of a step; the loss takes what the network gives."""

    def build(self, config: Config) -> nn.Module:
        """Return the network, its weights drawn from torch's own generator.

        It is called with an image (B, 1, D, H, W), visible tokens (B, N) and the keywords ``valid``, ``queried``
        and ``offset`` of :meth:`MAESILLib.model.MaskedAutoencoder.forward`.
        """

    def compiled(self, model: Any, config: Config, size: int, bf16: bool) -> tuple[Kernels, str]:
        """Compile in place, as :func:`MAESILLib.training.kernels.compiled`."""

    def validate(
        self, model: Any, superpatches: list[ValidationSuperpatch], device: torch.device, bf16: bool, ranks: Ranks
    ) -> float:
        """Return a PSNR in dB; more is better."""

    def preview(self, model: Any, superpatch: ValidationSuperpatch, device: torch.device, bf16: bool) -> Preview:
        """Return what previews show of a superpatch."""

    def save(self, path: Path, weights: dict[str, torch.Tensor], info: CheckpointInfo) -> None:
        """Write a checkpoint, whole or not at all."""


class MaskedAutoencoding:
    """Pretraining a superpatch masked autoencoder: what ``maesil pretrain`` does."""

    name = "maesil"
    kernels = EAGER

    def build(self, config: Config) -> MaskedAutoencoder:
        """Return the network."""
        return MaskedAutoencoder(config.model)

    def compiled(self, model: MaskedAutoencoder, config: Config, size: int, bf16: bool) -> tuple[Kernels, str]:
        """Compile the blocks, the prior and the functions of a step."""
        return compiled(model, config, size, bf16)

    def validate(
        self,
        model: MaskedAutoencoder,
        superpatches: list[ValidationSuperpatch],
        device: torch.device,
        bf16: bool,
        ranks: Ranks,
    ) -> float:
        """Return the mean PSNR of hidden voxels."""
        return validate(model, superpatches, device, bf16, ranks)

    def preview(
        self, model: MaskedAutoencoder, superpatch: ValidationSuperpatch, device: torch.device, bf16: bool
    ) -> Preview:
        """Complete the superpatch."""
        return preview(model, superpatch, device, bf16)

    def save(self, path: Path, weights: dict[str, torch.Tensor], info: CheckpointInfo) -> None:
        """Write encoder and decoder."""
        save_checkpoint(path, weights, info)


MASKED_AUTOENCODING = MaskedAutoencoding()
