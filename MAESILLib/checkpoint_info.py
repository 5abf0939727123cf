"""What a checkpoint says of itself, read from its header; needs neither torch nor safetensors.

The format: 8 bytes, the length of the header (little-endian); the header, JSON; the tensors' bytes
(https://github.com/huggingface/safetensors, section Format).
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from MAESILLib import __version__
from MAESILLib.config import (
    ModelConfig,
    Preprocessing,
    check_model,
    check_preprocessing,
    model_from_dict,
    preprocessing_from_dict,
)
from MAESILLib.errors import InputError

FORMAT = "maesil-checkpoint/1"
KEY = "maesil"
LENGTH_BYTES = 8
LONGEST_HEADER = 100_000_000
"""The format's own limit."""


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint says of itself."""

    model: ModelConfig
    preprocessing: Preprocessing
    mask: dict[str, Any] = field(default_factory=dict)
    """The masks it was trained with."""
    training: dict[str, Any] = field(default_factory=dict)
    """Preset, steps, samples, data with licence, validation figures; for reading, not for computing."""
    library_version: str = __version__


def read_header(path: Path | str) -> dict[str, Any]:
    """Return the header of a safetensors file: its tensors' types, shapes and places, and ``__metadata__``.

    Raises:
        InputError: no such file, another kind of file, or one cut short.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no such checkpoint: {path}", "check the path")
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(LENGTH_BYTES))
            if length > min(LONGEST_HEADER, size):
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(length))
        ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
        if LENGTH_BYTES + length + max(ends, default=0) > size:
            raise ValueError(f"it ends after {size} of {LENGTH_BYTES + length + max(ends)} bytes")
    except (OSError, struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is not a readable checkpoint ({error})", "it is damaged or of another kind; get it again"
        ) from None
    return dict(header)


def read_info(path: Path | str) -> CheckpointInfo:
    """Read what a checkpoint says of itself, without its weights.

    Raises:
        InputError: no such file, not a safetensors file, or not one of MAESIL.
    """
    metadata = read_header(path).get("__metadata__") or {}
    try:
        values = json.loads(metadata[KEY])
        if values["format"] != FORMAT:
            raise InputError(f"{path} has format {values['format']!r}", f"this version reads {FORMAT!r}")
        preprocessing = dict(values["preprocessing"])
        orientation = preprocessing.pop("orientation")
        if orientation != "LPS":
            raise InputError(f"{path} wants orientation {orientation!r}", "this version prepares LPS only")
        model = model_from_dict(values["model"], str(path))
        prepared = preprocessing_from_dict(preprocessing, str(path))
        check_model(model, str(path))
        check_preprocessing(prepared, str(path))
        return CheckpointInfo(model, prepared, values["mask"], values["training"], values["library_version"])
    except (KeyError, TypeError, ValueError):
        raise InputError(
            f"{path} is a safetensors file, but not a MAESIL checkpoint",
            "choose a model.safetensors of maesil pretrain",
        ) from None


def parameter_count(path: Path | str) -> int:
    """Return the number of weights in a checkpoint."""
    header = read_header(path)
    return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
