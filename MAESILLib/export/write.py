"""Writing an export: the encoder's weights, and beside them in the file what a user has to know of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from MAESILLib.errors import InputError
from MAESILLib.export.description import CHECKPOINT, KINDS, EncoderInfo, metadata_of, read_encoder_info
from MAESILLib.export.encoder import load_encoder
from MAESILLib.export.layout import VitLayout, unetr_layout, vit_layout
from MAESILLib.export.monai_blocks import CHANGES, UNUSED
from MAESILLib.export.monai_nets import PREFIX, monai_vit
from MAESILLib.files import atomic_path

SUFFIX = ".safetensors"


def check_output(output: Path, checkpoint: Path) -> None:
    """Refuse a name that an export cannot have, before the work that it is for.

    Raises:
        InputError: it has another suffix, is a folder, or is the checkpoint.
    """
    if output.suffix != SUFFIX:
        raise InputError(f"{output} does not end with {SUFFIX}", f"name it {output.with_suffix(SUFFIX).name}")
    if output.is_dir():
        raise InputError(f"{output} is a folder", "choose another name")
    if output.exists() and checkpoint.exists() and output.samefile(checkpoint):
        raise InputError(f"{output} is the checkpoint itself", "choose another name")


def export_encoder(
    checkpoint: Path | str,
    kind: str,
    output: Path | str,
    image_size: Sequence[int] | None = None,
    patch_size: int | None = None,
) -> EncoderInfo:
    """Write the encoder of a checkpoint to ``output``, whole or not at all; an older file is replaced.

    Args:
        kind: ``torch``, the encoder by itself; ``vit`` or ``unetr``, as MONAI's networks have it.
        image_size: (D, H, W) of the images of a MONAI network.
        patch_size: 8 or 16, of a UNETR; None: the encoder's own.

    Returns:
        what the file says of itself.

    Raises:
        InputError: the checkpoint or ``output`` cannot be used, MONAI is missing, or the sizes do not fit.
        DiskFullError: the disk is full.
    """
    output = Path(output)
    check_output(output, Path(checkpoint))
    if kind not in KINDS:
        raise InputError(f"unknown format '{kind}'", f"choose one of {', '.join(KINDS)}")
    if kind != "unetr" and patch_size is not None:
        raise InputError(f"format {kind} has no other patch than the encoder's", "leave the patch out")
    if kind == "torch" and image_size is not None:
        raise InputError("format torch takes images of any size", "leave the size out")
    source = read_encoder_info(checkpoint)
    if source.kind != CHECKPOINT:
        raise InputError(f"{checkpoint} is an export already", f"export its checkpoint {source.source.get('name')}")
    if kind == "torch":
        encoder = load_encoder(checkpoint)
        architecture: dict[str, Any] = {"class": "MAESILLib.export.encoder.PretrainedEncoder"}
        info, weights = replace(source, kind=kind, architecture=architecture), encoder.state_dict()
    else:
        info, weights = _for_monai(source, kind, image_size, patch_size)
    tensors = {key: value.detach().contiguous() for key, value in weights.items()}
    with atomic_path(output) as temporary:
        temporary.write_bytes(save(tensors, metadata_of(info, output.name)))
    return replace(info, path=str(output))


def _for_monai(
    source: EncoderInfo, kind: str, image_size: Sequence[int] | None, patch_size: int | None
) -> tuple[EncoderInfo, dict[str, torch.Tensor]]:
    """Return description and weights of a MONAI network."""
    is_unetr = kind == "unetr"
    layout = unetr_layout(source, image_size, patch_size) if is_unetr else vit_layout(source, image_size, None, None)
    vit = monai_vit(source.path, layout.image_size, patch_size=layout.patch_size[0], layers=layout.layers)
    prefix = PREFIX if is_unetr else ""
    weights = {prefix + key: value for key, value in vit.state_dict().items() if UNUSED not in key}
    info = replace(layout.of_its_images(source), kind=kind, architecture=_architecture(kind, layout))
    return info, weights


def _architecture(kind: str, layout: VitLayout) -> dict[str, Any]:
    """Say how to build the network without this library."""
    if kind == "vit":
        return {"class": "monai.networks.nets.ViT", "arguments": layout.arguments, "changes": list(CHANGES)}
    empty = sorted(set(range(layout.layers)) - set(layout.places))
    changes = [f"vit.{change}" for change in CHANGES]
    changes.append(f"vit.blocks[i] = torch.nn.Identity() for i in {empty}")
    if layout.patch_size[0] == 8:
        changes.append("vit with patch_size 8; feat_size and proj_view_shape of its token grid")
        changes.append("decoder2 = UnetrUpBlock(..., upsample_kernel_size=1)")
    arguments = {"in_channels": 1, "img_size": list(layout.image_size), **layout.widths}
    return {"class": "monai.networks.nets.UNETR", "arguments": arguments, "changes": changes}
