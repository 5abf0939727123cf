"""The frozen encoder of a checkpoint as the probe takes it: HU in, the tokens after each block out."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from MAESILLib.config import Window
from MAESILLib.mae.checkpoint import checkpoint_identity, load_checkpoint
from MAESILLib.mae.model import Encoder, windowed
from MAESILLib.probe.features import ENCODER, RANDOM, Feature, encoder_blocks
from MAESILLib.probe.points import SPACING_MM
from MAESILLib.probe.windows import PATCH
from MAESILLib.runtime.errors import InputError


class HUEncoder(nn.Module):
    """An encoder that sees every token: HU (B, D, H, W) -> after each block the tokens (B, tokens, width)."""

    def __init__(self, encoder: Encoder, windows_hu: tuple[Window, ...]) -> None:
        super().__init__()
        self.encoder, self.windows_hu = encoder, windows_hu

    def forward(self, hu: torch.Tensor) -> list[torch.Tensor]:
        states: list[torch.Tensor] = self.encoder(windowed(hu[:, None], self.windows_hu))
        return states


@dataclass(frozen=True, eq=False)
class FrozenEncoder:
    """The encoder of a checkpoint.

    Attributes:
        depth: number of blocks.
        source: name and SHA-256 of the checkpoint.
        training: what the checkpoint says of its training.
    """

    encode: nn.Module
    depth: int
    source: dict[str, str]
    training: dict[str, Any]

    def features(self, random: int) -> list[Feature]:
        """Return the encoder's tokens, and those of ``random`` encoders of the same shape with random weights."""
        blocks = encoder_blocks(self.depth)
        fresh = [Feature(f"{RANDOM} {seed}", with_random_weights(self.encode, seed), blocks) for seed in range(random)]
        return [Feature(ENCODER, self.encode, blocks), *fresh]


def load_frozen(path: Path, device: torch.device | str = "cpu") -> FrozenEncoder:
    """Load the encoder of a checkpoint, in fp32.

    Raises:
        InputError: no such checkpoint, or one for another spacing or patch size than the probe's.
    """
    model, info = load_checkpoint(path, device)
    prepared, shape = info.preprocessing, info.model
    if prepared.spacing_mm != SPACING_MM or shape.patch_size != (PATCH,) * 3:
        raise InputError(
            f"{path} takes voxels of {prepared.spacing_mm:g} mm and patches {shape.patch_size}",
            f"the probe's tokens are {PATCH} voxels of {SPACING_MM} mm on a side",
        )
    encode = HUEncoder(model.core.encoder, prepared.windows_hu)
    return FrozenEncoder(encode.eval(), shape.encoder_depth, checkpoint_identity(path), info.training)


def with_random_weights(encoder: nn.Module, seed: int) -> nn.Module:
    """Return the same architecture with every weight drawn anew: Glorot's uniform matrices, gains 1, biases 0."""
    generator = torch.Generator().manual_seed(seed)
    fresh = copy.deepcopy(encoder)
    for module in fresh.modules():
        for name, parameter in module.named_parameters(recurse=False):
            with torch.no_grad():
                if parameter.ndim == 2:
                    drawn = nn.init.xavier_uniform_(torch.empty(parameter.shape), generator=generator)
                    parameter.copy_(drawn)
                else:
                    parameter.fill_(1 if name == "weight" else 0)
    return fresh
