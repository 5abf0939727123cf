"""Checkpoints whose every weight matters, and what the network itself computes of an image."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from MAESILLib.checkpoint import CheckpointInfo, save_checkpoint
from MAESILLib.config import ModelConfig, Preprocessing
from MAESILLib.model import MaskedAutoencoder

SIZE = (16, 32, 24)
"""Of images in tests: no two sides alike."""
CONFIG = ModelConfig(
    superpatch_size=(48, 48, 48),
    encoder_width=48,
    encoder_depth=5,
    decoder_width=32,
    decoder_depth=1,
    head_width=16,
    mlp_ratio=2.0,
    local_channels=(4, 4),
)
TRAINING = {
    "preset": "tiny",
    "steps": 7,
    "licence": "weights: Apache-2.0",
    "data": {"volumes": ["a", "b"], "licences": ["CC BY 4.0"]},
}


def write_lively_checkpoint(path: Path, **changes: object) -> Path:
    """Write a checkpoint with gains, biases and weights that all differ from where training starts them."""
    config = dataclasses.replace(CONFIG, **changes)
    generator = torch.Generator().manual_seed(1)
    weights = {}
    for name, value in MaskedAutoencoder(config).state_dict().items():
        noise = torch.randn(value.shape, generator=generator)
        is_gain = "norm" in name and name.endswith("weight")
        fan_in = value.shape[1] if value.ndim > 1 else 20
        weights[name] = 1 + 0.4 * noise if is_gain else noise * fan_in**-0.5
    info = CheckpointInfo(config, Preprocessing(1.5, (-900.0, 700.0)), training=TRAINING)
    save_checkpoint(path, weights, info)
    return path


def states_of(model: MaskedAutoencoder, image: torch.Tensor) -> list[torch.Tensor]:
    """What the network computes with every token visible: the tokens after each block, and the normalised ones."""
    found: list[torch.Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda _module, _inputs, output: found.append(output))
        for layer in (*model.encoder.blocks, model.encoder.norm)
    ]
    tokens = image[0, 0].numel() // 8**3
    with torch.no_grad():
        model(image, torch.arange(tokens).expand(len(image), -1))
    for hook in hooks:
        hook.remove()
    return found


def smooth_image(size: tuple[int, int, int], batch: int = 1, seed: int = 0) -> torch.Tensor:
    """Intensities (B, 1, D, H, W) in [0, 1] that differ from patch to patch and inside of each."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, 1, *(n // 4 for n in size), generator=generator)
    return torch.nn.functional.interpolate(coarse, size=size, mode="trilinear")
