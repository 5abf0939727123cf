"""Checkpoints: one safetensors file with encoder, decoder and everything needed to use them.

safetensors holds numbers and text only: opening a stranger's file cannot run code.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from MAESILLib.checkpoint_info import FORMAT, KEY, CheckpointInfo, read_info
from MAESILLib.config import to_dict
from MAESILLib.errors import InputError
from MAESILLib.files import atomic_path, sha256_of
from MAESILLib.model import MaskedAutoencoder

__all__ = [
    "DTYPES",
    "CheckpointInfo",
    "checkpoint_identity",
    "load_checkpoint",
    "load_weights",
    "read_info",
    "read_weights",
    "save_checkpoint",
]

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def save_checkpoint(
    path: Path | str, weights: dict[str, torch.Tensor], info: CheckpointInfo, dtype: str = "fp32"
) -> None:
    """Write encoder and decoder to ``path``, whole or not at all.

    Args:
        weights: the model's ``state_dict()``.
        dtype: fp32, fp16 or bf16, of the stored weights.
    """
    if dtype not in DTYPES:
        raise InputError(f"unknown weight type '{dtype}'", f"choose one of {', '.join(DTYPES)}")
    tensors = {k: v.detach().to("cpu", DTYPES[dtype]).contiguous() for k, v in weights.items()}
    description = {
        "format": FORMAT,
        "model": to_dict(info.model),
        "preprocessing": {"orientation": "LPS", **to_dict(info.preprocessing)},
        "mask": info.mask,
        "training": info.training,
        "library_version": info.library_version,
    }
    with atomic_path(path) as temporary:
        # save_file would make a file that nobody else may read, whatever the umask
        temporary.write_bytes(save(tensors, metadata={KEY: json.dumps(description)}))


def load_checkpoint(path: Path | str, device: torch.device | str = "cpu") -> tuple[MaskedAutoencoder, CheckpointInfo]:
    """Build the network and load its weights, in fp32, ready to evaluate.

    Raises:
        InputError: as :func:`read_info`; or a tensor is missing, surplus or of another shape.
    """
    info = read_info(path)
    model = MaskedAutoencoder(info.model)
    load_weights(model, read_weights(path), path)
    return model.to(device).eval(), info


def read_weights(path: Path | str) -> dict[str, torch.Tensor]:
    """Read the tensors of a safetensors file, in fp32.

    Raises:
        InputError: no such file, or not a safetensors file.
    """
    with _open(path) as file:
        return {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118 (not a dict)


def load_weights(module: nn.Module, weights: dict[str, torch.Tensor], path: Path | str) -> None:
    """Give ``module`` the weights found in the file ``path``, all of them and no others.

    Raises:
        InputError: a tensor is missing, surplus or of another shape.
    """
    expected = {k: v.shape for k, v in module.state_dict().items()}
    wrong = sorted(set(expected) ^ set(weights)) or sorted(k for k in weights if weights[k].shape != expected[k])
    if wrong:
        raise InputError(
            f"{path} does not fit its own description: {len(wrong)} tensors differ, first '{wrong[0]}'",
            "the file is incomplete or was changed; get it again",
        )
    module.load_state_dict(weights)


def checkpoint_identity(path: Path | str) -> dict[str, str]:
    """Return the name and SHA-256 under which results refer to a checkpoint."""
    return {"name": Path(path).name, "sha256": sha256_of(path)}


def _open(path: Path | str) -> Any:
    if not Path(path).is_file():
        raise InputError(f"no such checkpoint: {path}", "check the path")
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        line = str(error).splitlines()[0]
        raise InputError(
            f"{path} is not a readable checkpoint ({line})", "it is damaged or of another kind; get it again"
        ) from None
