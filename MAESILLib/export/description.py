"""Metadata of an encoder, in a checkpoint or an export; needs no torch.

An export is a safetensors file of the encoder's weights. Its metadata are the checkpoint's, with the format, the kind
of export, the checkpoint's name and SHA-256, and how to load it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from MAESILLib import __version__
from MAESILLib.config import ModelConfig, Preprocessing, to_dict
from MAESILLib.mae.checkpoint_info import KEY, read_header, read_info
from MAESILLib.runtime.errors import InputError
from MAESILLib.runtime.files import sha256_of

FORMAT = "maesil-export/2"
CHECKPOINT = "checkpoint"
LOAD = {
    "torch": "from MAESILLib.export.encoder import load_encoder; encoder = load_encoder('{path}')",
    "nnunet": "nnUNet_extTrainer='{folder}' nnUNetv2_train DATASET 3d_fullres FOLD -p PLANS -tr nnUNetTrainerMAESIL",
}
"""How each kind of export is loaded, in one line."""
KINDS = tuple(LOAD)


@dataclass(frozen=True)
class EncoderInfo:
    """Metadata of an encoder.

    Attributes:
        path: the file.
        kind: ``checkpoint``, or one of :data:`KINDS`.
        source: name and SHA-256 of the checkpoint.
        training: the checkpoint's training, with data and licence.
    """

    path: str
    kind: str
    model: ModelConfig
    preprocessing: Preprocessing
    source: dict[str, str]
    training: dict[str, Any] = field(default_factory=dict)
    library_version: str = __version__

    @property
    def licence(self) -> str:
        """Licence of the weights, or else of their training data."""
        of_data = ", ".join(self.training.get("data", {}).get("licences", ()))
        return str(self.training.get("licence") or (of_data and f"training data: {of_data}") or "not stated")


def is_export(path: Path | str) -> bool:
    """Return whether a safetensors file is an export.

    Raises:
        InputError: no such file, or not a safetensors file.
    """
    return describe(path).get("format") == FORMAT


def read_encoder_info(path: Path | str) -> EncoderInfo:
    """Read the metadata of the encoder in a checkpoint or an export, without the weights.

    Raises:
        InputError: no such file, another kind of file, or invalid metadata.
    """
    values = describe(path)
    kind, source = CHECKPOINT, values.get("source")
    if values.get("format") == FORMAT:
        info, kind = read_info(path, (FORMAT,)), str(values.get("kind"))
        if kind not in KINDS or not isinstance(source, dict):
            raise InputError(f"{path} has invalid metadata", "export it again")
    else:
        info, source = read_info(path), {"name": Path(path).name, "sha256": sha256_of(path)}
    return EncoderInfo(str(path), kind, info.model, info.preprocessing, source, info.training, info.library_version)


def describe(path: Path | str) -> dict[str, Any]:
    """Return the metadata of a checkpoint or an export as plain JSON values; empty for other safetensors files.

    Raises:
        InputError: no such file, or not a safetensors file.
    """
    metadata = read_header(path).get("__metadata__")
    try:
        values = json.loads(metadata[KEY]) if metadata else {}
    except (KeyError, TypeError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def load_line(kind: str, path: Path) -> str:
    """Return the line that loads an export at ``path``."""
    return LOAD[kind].format(path=path, folder=path.parent)


def metadata_of(info: EncoderInfo, path: Path) -> dict[str, str]:
    """Return the metadata of an export that is written to ``path``."""
    windows = ", ".join(f"[{low:g}, {high:g}]" for low, high in info.preprocessing.windows_hu)
    lowest = -1 if info.kind == "nnunet" else 0
    values = {
        "format": FORMAT,
        "kind": info.kind,
        "load": load_line(info.kind, Path(path.name)),
        "input": f"(B, {len(info.preprocessing.windows_hu)}, D, H, W), HU windows {windows} clipped and mapped to "
        f"[{lowest}, 1]; D towards superior, H towards posterior, W towards left",
        "licence": info.licence,
        "source": info.source,
        "model": to_dict(info.model),
        "preprocessing": {"orientation": "LPS", **to_dict(info.preprocessing)},
        "parts": [],
        "mask": {},
        "training": info.training,
        "library_version": info.library_version,
    }
    return {KEY: json.dumps(values)}
