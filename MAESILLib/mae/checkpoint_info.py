"""Checkpoint metadata, read from the header; needs neither torch nor safetensors.

The format: 8 bytes, the length of the header (little-endian); the header, JSON; the tensors' bytes
(https://github.com/huggingface/safetensors, section Format).
"""

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from MAESILLib import __version__
from MAESILLib.config import ModelConfig, Preprocessing, check_model, check_preprocessing, complete_from_dict
from MAESILLib.runtime.errors import InputError
from MAESILLib.runtime.files import parsed_json

FORMAT = "maesil-checkpoint/2"
KEY = "maesil"
PARTS = ("completion", "readout")
"""What a checkpoint may hold beside the masked autoencoder."""
SCALE = ".scale"
"""Suffix of the scales of a tensor stored as int8: one number for each row."""
TYPES = {"F32": 4, "F16": 2, "I8": 1}
"""Types of tensors that a checkpoint may hold, and the bytes of a number."""
LENGTH_BYTES = 8
LONGEST_HEADER = 100_000_000
"""The format's own limit."""
DAMAGED = "the file is incomplete or was changed; get it again"


def _is_section(value: Any) -> bool:
    return isinstance(value, dict)


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


DESCRIBED: dict[str, dict[str, Callable[[Any], bool]]] = {
    "": {
        **dict.fromkeys(("data", "train", "probe", "initialised_from"), _is_section),
        "samples": lambda value: type(value) is int and value >= 0,
    },
    "data": dict.fromkeys(("volumes", "licences", "sources_sha256", "voxels_sha256", "patients_sha256"), _are_names),
    "train": {"validation_share": lambda value: type(value) in (int, float) and 0 <= value <= 1},
}
"""What commands compute with of a description of training: kinds of values by section and key."""


@dataclass(frozen=True)
class CheckpointInfo:
    """Metadata of a checkpoint."""

    model: ModelConfig
    preprocessing: Preprocessing
    mask: dict[str, Any] = field(default_factory=dict)
    """The masks it was trained with."""
    training: dict[str, Any] = field(default_factory=dict)
    """Preset, steps, samples, data with licence, validation metrics; for reading, not for computing."""
    parts: tuple[str, ...] = ()
    """Of :data:`PARTS`, as read; those written are what the weights hold."""
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
            header = dict(parsed_json(file.read(length)))
        ends = [_end_of(tensor) for name, tensor in header.items() if name != "__metadata__"]
        if LENGTH_BYTES + length + max(ends, default=0) > size:
            raise ValueError(f"it ends after {size} of {LENGTH_BYTES + length + max(ends)} bytes")
    except (OSError, struct.error, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a readable checkpoint ({error})", DAMAGED) from None
    return header


def _end_of(tensor: Any) -> int:
    """Return where a tensor ends among the tensors' bytes.

    Raises:
        KeyError, TypeError, ValueError: its type, shape and place do not agree.
    """
    (begin, end), shape, width = tensor["data_offsets"], tensor["shape"], TYPES.get(tensor["dtype"])
    if not all(type(n) is int and n >= 0 for n in (begin, end, *shape)):
        raise ValueError("a shape or a place is no count")
    if width is not None and end - begin != width * math.prod(shape):
        raise ValueError("a tensor's shape and place do not agree")
    return int(end)


def read_info(path: Path | str, file_format: str = FORMAT) -> CheckpointInfo:
    """Read a checkpoint's metadata, without its weights.

    Raises:
        InputError: no such file, not a safetensors file, or not one of MAESIL.
    """
    metadata = read_header(path).get("__metadata__") or {}
    try:
        values = parsed_json(metadata[KEY])
        if values["format"] != file_format:
            hint = f"this version reads {file_format!r}; train it anew"
            raise InputError(f"{path} has format {values['format']!r}", hint)
        preprocessing = dict(values["preprocessing"])
        orientation = preprocessing.pop("orientation")
        if orientation != "LPS":
            raise InputError(f"{path} wants orientation {orientation!r}", "this version prepares LPS only")
        model = complete_from_dict(ModelConfig, values["model"], str(path))
        prepared = complete_from_dict(Preprocessing, preprocessing, str(path))
        check_model(model, str(path))
        check_preprocessing(prepared, str(path))
        parts = tuple(values["parts"])
        if not set(parts) <= set(PARTS):
            raise InputError(f"{path} has parts {parts}", f"this version reads {PARTS}")
        mask, training = dict(values["mask"]), dict(values["training"])
        _check_training(training, str(path))
        return CheckpointInfo(model, prepared, mask, training, parts, str(values["library_version"]))
    except (KeyError, TypeError, ValueError, OverflowError):
        raise InputError(
            f"{path} is a safetensors file, but not a MAESIL checkpoint",
            "choose a model.safetensors of maesil pretrain",
        ) from None


def _check_training(training: dict[str, Any], where: str) -> None:
    """Refuse a training that is described in other kinds of values than commands compute with.

    Raises:
        InputError: names the value.
    """
    for section, kinds in DESCRIBED.items():
        values = training.get(section, {}) if section else training
        for key, is_fit in kinds.items():
            if key in values and not is_fit(values[key]):
                name = ".".join(filter(None, ("training", section, key)))
                raise InputError(f"{where} gives {values[key]!r:.80} as its {name}", DAMAGED)
    if before := training.get("initialised_from", {}).get("training"):
        _check_training(dict(before), where)


def parameter_counts(path: Path | str) -> dict[str, int]:
    """Return the number of weights of each part of a checkpoint: encoder, decoder, and what reads them."""
    counts = dict.fromkeys(("encoder", "decoder", *PARTS), 0)
    for name, tensor in read_header(path).items():
        if name != "__metadata__" and not name.endswith(SCALE):
            part = name.removeprefix("core.").split(".")[0]
            counts[part] = counts.get(part, 0) + math.prod(tensor["shape"])
    return {part: count for part, count in counts.items() if count}


def samples_seen(training: dict[str, Any]) -> int:
    """Return how many crops a checkpoint was trained on, and those it was initialised from before it."""
    before = (training.get("initialised_from") or {}).get("training") or {}
    return int(training.get("samples") or 0) + (samples_seen(before) if before else 0)
