"""Checkpoints: one safetensors file with encoder, decoder, what reads them, and metadata.

safetensors holds numbers and text only: opening a stranger's file cannot run code.
"""

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from MAESILLib.config import to_dict
from MAESILLib.mae.checkpoint_info import DAMAGED, FORMAT, KEY, PARTS, SCALE, CheckpointInfo, read_info
from MAESILLib.mae.network import Network
from MAESILLib.runtime.errors import InputError
from MAESILLib.runtime.files import sha256_of, write_bytes

FLOATS = (torch.float32, torch.float16)


def save_checkpoint(
    path: Path | str, weights: dict[str, torch.Tensor], info: CheckpointInfo, *, as_int8: bool = False
) -> None:
    """Write weights and metadata to ``path``, whole or not at all.

    Args:
        weights: the ``state_dict()`` of a :class:`MAESILLib.mae.network.Network`.
        as_int8: matrices and kernels as rows of int8 with one fp32 scale each, the rest as fp16; else all as fp32.
    """
    metadata = {
        "format": FORMAT,
        "model": to_dict(info.model),
        "preprocessing": {"orientation": "LPS", **to_dict(info.preprocessing)},
        "parts": [part for part in PARTS if any(name.startswith(part + ".") for name in weights)],
        "mask": info.mask,
        "training": info.training,
        "library_version": info.library_version,
    }
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in weights.items():
        tensors |= _stored(name, tensor.detach().to("cpu", torch.float32), as_int8)
    # save_file would make a file that nobody else may read, whatever the umask
    write_bytes(path, save(tensors, metadata={KEY: json.dumps(metadata)}))


def _stored(name: str, tensor: torch.Tensor, as_int8: bool) -> dict[str, torch.Tensor]:
    """Return a tensor as it is stored: itself, or rows of int8 with their scales (rows,)."""
    if as_int8 and tensor.dim() > 1 and len(tensor) > 1:
        scale = tensor.flatten(1).abs().amax(1).clamp_min(1e-12) / 127
        rows = (tensor.flatten(1) / scale[:, None]).round().to(torch.int8)
        return {name: rows.view(tensor.shape), name + SCALE: scale}
    return {name: tensor.to(torch.float16 if as_int8 else torch.float32).contiguous()}


def load_checkpoint(path: Path | str, device: torch.device | str = "cpu") -> tuple[Network, CheckpointInfo]:
    """Build the network and load its weights, in fp32, ready to evaluate.

    Raises:
        InputError: as :func:`read_info`; or a tensor is missing, surplus or of another shape.
    """
    info = read_info(path)
    # without memory: what the metadata state may be larger than any machine
    with torch.device("meta"):
        model = Network(info.model, info.preprocessing.windows_hu, info.parts)
    load_weights(model, read_weights(path), path)
    return model.to(device).eval(), info


def read_weights(path: Path | str) -> dict[str, torch.Tensor]:
    """Read the tensors of a checkpoint, in fp32.

    Raises:
        InputError: not a safetensors file, or a tensor of another type.
    """
    try:
        stored = load_file(path)
    except (SafetensorError, OSError) as error:
        line = str(error).splitlines()[0]
        raise InputError(f"{path} is not a readable checkpoint ({line})", DAMAGED) from None
    scales = {name + SCALE for name, tensor in stored.items() if tensor.dtype == torch.int8}
    return {name: _read(name, stored, path) for name in stored.keys() - scales}


def _read(name: str, stored: dict[str, torch.Tensor], path: Path | str) -> torch.Tensor:
    tensor, scale = stored[name], stored.get(name + SCALE)
    if tensor.dtype in FLOATS:
        return tensor.float()
    is_int8 = tensor.dtype == torch.int8 and tensor.dim() > 1
    if not is_int8 or scale is None or scale.dtype != torch.float32 or scale.shape != tensor.shape[:1]:
        raise InputError(f"{path}: '{name}' is neither fp32 nor fp16 nor int8 with an fp32 scale for each row", DAMAGED)
    return tensor * scale.view(-1, *[1] * (tensor.dim() - 1))


def load_weights(module: nn.Module, weights: dict[str, torch.Tensor], path: Path | str) -> None:
    """Give ``module`` the weights found in the file ``path``, all of them and no others.

    Raises:
        InputError: a tensor is missing, surplus, of another shape or not finite.
    """
    expected = {k: v.shape for k, v in module.state_dict().items()}
    wrong = sorted(set(expected) ^ set(weights)) or sorted(k for k in weights if weights[k].shape != expected[k])
    if wrong:
        raise InputError(
            f"{path}: state dict mismatch: {len(wrong)} tensors are missing, unexpected or of another shape, "
            f"first '{wrong[0]}'",
            DAMAGED,
        )
    if endless := [name for name, tensor in weights.items() if not tensor.isfinite().all()]:
        raise InputError(f"{path}: '{endless[0]}' holds numbers that are not finite", DAMAGED)
    module.load_state_dict(weights, assign=next(iter(module.parameters())).is_meta)


def checkpoint_identity(path: Path | str) -> dict[str, str]:
    """Return the name and SHA-256 under which results refer to a checkpoint.

    ``weights_sha256`` is of the weights alone: it stays when figures that were measured are written to the metadata.
    """
    with open(path, "rb") as file:
        # a safetensors file begins with the size of its header
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        weights = hashlib.file_digest(file, "sha256").hexdigest()
    return {"name": Path(path).name, "sha256": sha256_of(path), "weights_sha256": weights}
