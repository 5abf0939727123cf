"""Metadata of an encoder, in a checkpoint or an export; needs no torch.

An export is a safetensors file of the encoder's weights. Its metadata are the checkpoint's, with the format, the kind
of export, the checkpoint's name and SHA-256, and how to load it.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from MAESILLib.config import to_dict
from MAESILLib.mae.checkpoint_info import KEY, CheckpointInfo, read_header, read_info
from MAESILLib.runtime.errors import InputError
from MAESILLib.runtime.files import parsed_json, sha256_of

FORMAT = "maesil-export/2"
CHECKPOINT = "checkpoint"
LOAD = {
    "torch": "from MAESILLib.export.encoder import load_encoder; encoder = load_encoder('{path}')",
    "nnunet": "nnUNet_extTrainer='{folder}' nnUNetv2_train DATASET 3d_fullres FOLD -p PLANS -tr nnUNetTrainerMAESIL",
}
"""How each kind of export is loaded, in one line."""
KINDS = tuple(LOAD)


@dataclass(frozen=True)
class EncoderInfo(CheckpointInfo):
    """Metadata of an encoder, with those of its checkpoint.

    Attributes:
        path: the file.
        kind: ``checkpoint``, or one of :data:`KINDS`.
        source: name and SHA-256 of the checkpoint.
    """

    path: str = ""
    kind: str = CHECKPOINT
    source: dict[str, str] = field(default_factory=dict)


def read_encoder_info(path: Path | str) -> EncoderInfo:
    """Read the metadata of the encoder in a checkpoint or an export, without the weights.

    Raises:
        InputError: no such file, another kind of file, or invalid metadata.
    """
    values = describe(path)
    if values.get("format") != FORMAT:
        identity = {"name": Path(path).name, "sha256": sha256_of(path)}
        return EncoderInfo(**vars(read_info(path)), path=str(path), source=identity)
    info, kind, source = read_info(path, FORMAT), values.get("kind"), values.get("source")
    if kind not in KINDS or not isinstance(source, dict):
        raise InputError(f"{path} has invalid metadata", "export it again")
    return EncoderInfo(**vars(info), path=str(path), kind=kind, source=source)


def describe(path: Path | str) -> dict[str, Any]:
    """Return the metadata of a checkpoint or an export as plain JSON values; empty for other safetensors files.

    Raises:
        InputError: no such file, or not a safetensors file.
    """
    metadata = read_header(path).get("__metadata__")
    try:
        values = parsed_json(metadata[KEY]) if metadata else {}
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
    of_data = ", ".join(info.training.get("data", {}).get("licences", ()))
    values = {
        "format": FORMAT,
        "kind": info.kind,
        "load": load_line(info.kind, Path(path.name)),
        "input": f"(B, {len(info.preprocessing.windows_hu)}, D, H, W), HU windows {windows} clipped and mapped to "
        f"[{lowest}, 1]; D towards superior, H towards posterior, W towards left",
        "licence": str(info.training.get("licence") or (of_data and f"training data: {of_data}") or "not stated"),
        "source": info.source,
        "model": to_dict(info.model),
        "preprocessing": {"orientation": "LPS", **to_dict(info.preprocessing)},
        "parts": [],
        "mask": {},
        "training": info.training,
        "library_version": info.library_version,
    }
    return {KEY: json.dumps(values)}
