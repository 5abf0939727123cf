"""What a file with an encoder says of itself, be it a checkpoint or an export; needs neither torch nor MONAI.

An export is a safetensors file of the encoder's weights with a JSON description in its metadata.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from MAESILLib import __version__
from MAESILLib.checkpoint_info import KEY, read_header, read_info
from MAESILLib.config import (
    ModelConfig,
    Preprocessing,
    Triple,
    check_model,
    check_preprocessing,
    complete_from_dict,
    to_dict,
)
from MAESILLib.errors import InputError
from MAESILLib.files import sha256_of

FORMAT = "maesil-export/1"
KINDS = ("torch", "vit", "unetr")
CHECKPOINT = "checkpoint"
LOAD = {
    "torch": "from MAESILLib.export.encoder import load_encoder; encoder = load_encoder('{name}')",
    "vit": "from MAESILLib.export.monai_nets import monai_vit; vit = monai_vit('{name}')",
    "unetr": "from MAESILLib.export.monai_nets import monai_unetr; net = monai_unetr('{name}', out_channels=2)",
}
"""How a file of each kind is loaded, in one line of Python."""


@dataclass(frozen=True)
class EncoderInfo:
    """What a file says of the encoder in it.

    Attributes:
        path: the file.
        kind: ``checkpoint``, or one of :data:`KINDS`.
        model: of the checkpoint.
        preprocessing: of the images that the network in this file takes.
        patch_size: of these images, voxels (D, H, W).
        image_size: the one that a MONAI network in this file was made for, voxels (D, H, W); None: takes any.
        layers: entries of that network's ``blocks``; None: it is no MONAI network.
        source: name and SHA-256 of the checkpoint.
        training: what the checkpoint says of its training, with data and licence.
        architecture: the network's class, its arguments and what is changed in it; for reading.
    """

    path: str
    kind: str
    model: ModelConfig
    preprocessing: Preprocessing
    patch_size: Triple
    source: dict[str, str]
    image_size: Triple | None = None
    layers: int | None = None
    training: dict[str, Any] = field(default_factory=dict)
    architecture: dict[str, Any] = field(default_factory=dict)
    library_version: str = __version__

    @property
    def licence(self) -> str:
        """What the checkpoint says of its licence, or of that of its training data."""
        of_data = ", ".join(self.training.get("data", {}).get("licences", ()))
        return str(self.training.get("licence") or (of_data and f"training data: {of_data}") or "not stated")


def is_export(path: Path | str) -> bool:
    """Say whether a safetensors file calls itself an export.

    Raises:
        InputError: no such file, or not a safetensors file.
    """
    return _description(path).get("format") == FORMAT


def read_encoder_info(path: Path | str) -> EncoderInfo:
    """Read what a checkpoint or an export says of its encoder, without the weights.

    Raises:
        InputError: no such file, another kind of file, or a description that makes no sense.
    """
    values = _description(path)
    if not values:
        raise InputError(
            f"{path} is a safetensors file, but neither a MAESIL checkpoint nor an export of one",
            "choose a model.safetensors of maesil pretrain or a file of maesil export",
        )
    if values.get("format") == FORMAT:
        return _export_info(values, path)
    info = read_info(path)
    source = {"name": Path(path).name, "sha256": sha256_of(path)}
    return EncoderInfo(
        str(path),
        CHECKPOINT,
        info.model,
        info.preprocessing,
        info.model.patch_size,
        source,
        training=info.training,
        library_version=info.library_version,
    )


def describe(path: Path | str) -> dict[str, Any]:
    """Return all that an export says of itself, in plain JSON values.

    Raises:
        InputError: as :func:`read_encoder_info`.
    """
    read_encoder_info(path)
    return _description(path)


def metadata_of(info: EncoderInfo, name: str) -> dict[str, str]:
    """Return the metadata of an export's file of this ``name``."""
    low, high = info.preprocessing.window_hu
    description = {
        "format": FORMAT,
        "kind": info.kind,
        "architecture": info.architecture,
        "load": LOAD[info.kind].format(name=name),
        "preprocessing": {"orientation": "LPS", **to_dict(info.preprocessing)},
        "input": f"(B, 1, D, H, W), HU clipped to [{low:g}, {high:g}] and mapped to [0, 1]; "
        "D towards superior, H towards posterior, W towards left",
        "patch_size": list(info.patch_size),
        "image_size": None if info.image_size is None else list(info.image_size),
        "layers": info.layers,
        "licence": info.licence,
        "source": info.source,
        "model": to_dict(info.model),
        "training": info.training,
        "library_version": info.library_version,
    }
    return {KEY: json.dumps(description)}


def _description(path: Path | str) -> dict[str, Any]:
    metadata = read_header(path).get("__metadata__")
    try:
        values = json.loads(metadata[KEY]) if metadata else {}
    except (KeyError, TypeError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _export_info(values: dict[str, Any], path: Path | str) -> EncoderInfo:
    where = str(path)
    try:
        kind, layers, size = values["kind"], values["layers"], values["image_size"]
        preprocessing = dict(values["preprocessing"])
        orientation = preprocessing.pop("orientation")
        if kind not in KINDS or orientation != "LPS":
            raise InputError(
                f"{path} is of kind {kind!r} and orientation {orientation!r}",
                f"this version reads {', '.join(KINDS)}, all in LPS",
            )
        info = EncoderInfo(
            where,
            kind,
            complete_from_dict(ModelConfig, values["model"], where),
            complete_from_dict(Preprocessing, preprocessing, where),
            _triple(values["patch_size"]),
            dict(values["source"]),
            None if kind == "torch" else _triple(size),
            None if kind == "torch" else int(layers),
            dict(values["training"]),
            dict(values["architecture"]),
            str(values["library_version"]),
        )
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{path} describes its encoder in a way that makes no sense", "export it again") from None
    check_model(info.model, where)
    check_preprocessing(info.preprocessing, where)
    return info


def _triple(values: Any) -> Triple:
    d, h, w = (int(v) for v in values)
    if not all(1 <= v <= 4096 for v in (d, h, w)):
        raise ValueError("sizes lie between 1 and 4096")
    return d, h, w
