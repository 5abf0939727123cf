"""Training a peer with the trainer of MAESIL: the same samples in the same order, optimiser, schedule and averaging."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from MAESILLib.checkpoint_info import CheckpointInfo
from MAESILLib.comparison.peers import Peer, make_peer, peer_loss, save_peer
from MAESILLib.config import Config, MaskTraining
from MAESILLib.device import precision_context
from MAESILLib.training.kernels import Kernels
from MAESILLib.training.ranks import Ranks
from MAESILLib.training.validation import Preview, ValidationSuperpatch


class PeerTraining:
    """A :class:`MAESILLib.training.task.Task`: reconstruct what is seen.

    Args:
        name: of :data:`MAESILLib.comparison.peers.PEERS`.
    """

    kernels = Kernels(masked_loss=peer_loss)

    def __init__(self, name: str) -> None:
        self.name = name

    def build(self, config: Config) -> Peer:
        """Return the network."""
        return make_peer(self.name)

    def compiled(self, model: Peer, config: Config, size: int, bf16: bool) -> tuple[Kernels, str]:
        """Leave everything as it is: MONAI's networks are run as MONAI runs them."""
        return self.kernels, ""

    @torch.no_grad()
    def validate(
        self,
        model: Peer,
        superpatches: list[ValidationSuperpatch],
        device: torch.device,
        bf16: bool,
        ranks: Ranks,
    ) -> float:
        """Return the mean PSNR of every voxel."""
        total = 0.0
        for one in superpatches[ranks.rank :: ranks.size]:
            difference = (self._made(model, one, device, bf16) - one.image)[one.valid]
            total += -10 * math.log10(max(float(difference.double().square().mean()), 1e-12))
        return float(ranks.sum(torch.tensor(total, dtype=torch.float64))) / len(superpatches)

    @torch.no_grad()
    def preview(self, model: Peer, superpatch: ValidationSuperpatch, device: torch.device, bf16: bool) -> Preview:
        """Reconstruct the superpatch; nothing is hidden."""
        image = superpatch.image[0, 0].numpy()
        return Preview(image, image, self._made(model, superpatch, device, bf16)[0, 0].numpy())

    def save(self, path: Path, weights: dict[str, torch.Tensor], info: CheckpointInfo) -> None:
        """Write the network."""
        save_peer(path, self.name, weights, info)

    def _made(self, model: Peer, one: ValidationSuperpatch, device: torch.device, bf16: bool) -> torch.Tensor:
        with precision_context(device, bf16):
            made: Any = model(one.image.to(device))
        return made.image.clamp(0, 1).cpu()


def config_for_peer(config: Config) -> Config:
    """Return the configuration with nothing hidden; what is sampled and how it is optimised stays."""
    train = replace(config.train, visible_share=1.0, compile=False)
    return replace(config, mask=MaskTraining(("none",), (0.0,)), train=train)
