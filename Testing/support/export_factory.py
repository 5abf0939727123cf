"""Checkpoints whose every weight matters, and nnU-Net as far as the exported trainer needs it."""

import dataclasses
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from MAESILLib.config import ModelConfig, Preprocessing
from MAESILLib.mae.checkpoint import CheckpointInfo, save_checkpoint
from MAESILLib.mae.network import Network

SIZE = (16, 32, 24)
"""Of images in tests: no two sides alike."""
CONFIG = ModelConfig(
    superpatch_size=(48, 48, 48),
    encoder_width=48,
    encoder_depth=5,
    head_width=24,
    decoder_width=24,
    decoder_depth=1,
    completion_channels=(4, 4),
)
WINDOWS = ((-900.0, 700.0), (-160.0, 240.0))
TRAINING = {
    "preset": "tiny",
    "steps": 7,
    "licence": "weights: Apache-2.0",
    "data": {"volumes": ["a", "b"], "licences": ["CC BY 4.0"]},
}


def make_lively(module: nn.Module) -> Any:
    """Give all weights, gains and biases values that differ from where training starts them."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in module.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            is_gain = "norm" in name and name.endswith("weight")
            fan_in = value[0].numel() if value.ndim > 1 else 20
            value.copy_(1 + 0.4 * noise if is_gain else noise * fan_in**-0.5)
    return module.eval()


def write_lively_checkpoint(path: Path, **changes: object) -> Path:
    config = dataclasses.replace(CONFIG, **changes)
    network = make_lively(Network(config, WINDOWS))
    info = CheckpointInfo(config, Preprocessing(1.5, WINDOWS), training=TRAINING, parts=("completion", "readout"))
    save_checkpoint(path, network.state_dict(), info)
    return path


def rewritten(path: Path, change: Callable[[dict[str, torch.Tensor], dict[str, Any]], object]) -> Path:
    """Change the tensors and the metadata of a safetensors file."""
    with safe_open(path, "pt") as file:
        metadata = json.loads(file.metadata()["maesil"])
    tensors = load_file(path)
    change(tensors, metadata)
    save_file(tensors, path, {"maesil": json.dumps(metadata)})
    return path


def raw_hu(size: tuple[int, int, int], batch: int = 1, seed: int = 0) -> torch.Tensor:
    """HU (B, D, H, W), some beyond all windows, that differ from patch to patch and inside of each."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, 1, *(n // 4 for n in size), generator=generator) * 2400 - 1200
    return torch.nn.functional.interpolate(coarse, size=size, mode="trilinear")[:, 0]


def exported_trainer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import the trainer of an export, with an empty class in place of nnU-Net's Primus trainer."""
    name = "nnunetv2.training.nnUNetTrainer.primus.primus_trainers"
    for end in [n for n, letter in enumerate(name) if letter == "."]:
        monkeypatch.setitem(sys.modules, name[:end], ModuleType(name[:end]))
    stand_in = ModuleType(name)
    stand_in.AbstractPrimus = type("AbstractPrimus", (), {})
    monkeypatch.setitem(sys.modules, name, stand_in)
    spec = importlib.util.spec_from_file_location("nnUNetTrainerMAESIL", folder / "nnUNetTrainerMAESIL.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def plans_of(**changes: object) -> tuple[SimpleNamespace, SimpleNamespace]:
    """nnU-Net's plans and configuration as far as the trainer reads them."""
    values: dict[str, object] = {
        "transpose_forward": [0, 1, 2],
        "spacing": [1.5, 1.5, 1.5],
        "normalization_schemes": ["NoNormalization"],
        "patch_size": list(SIZE),
    } | changes
    return SimpleNamespace(transpose_forward=values.pop("transpose_forward")), SimpleNamespace(**values)
