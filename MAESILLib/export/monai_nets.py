"""MONAI's ViT and UNETR with the pretrained encoder in them.

Both compute what the encoder computes, with MONAI's own classes and forward passes
(:mod:`MAESILLib.export.monai_blocks` says what is exchanged in them), and take a checkpoint or an exported file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from MAESILLib.checkpoint import load_weights, read_weights
from MAESILLib.errors import InputError
from MAESILLib.export.description import EncoderInfo, read_encoder_info
from MAESILLib.export.encoder import load_encoder
from MAESILLib.export.layout import VitLayout, unetr_layout, vit_layout
from MAESILLib.export.monai_blocks import UNUSED, adapt, vit_weights

PREFIX = "vit."
"""Of the encoder's weights in a UNETR; its other weights are not pretrained, and no file holds them."""


def monai_vit(
    path: Path | str,
    img_size: Sequence[int] | int | None = None,
    *,
    patch_size: int | None = None,
    layers: int | None = None,
    pretrained: bool = True,
) -> Any:
    """Return a ``monai.networks.nets.ViT`` that computes what the encoder computes.

    Its output is the normalised tokens (B, tokens, width) and the list of the tokens after each block, not normalised.

    Args:
        path: a checkpoint, or a file of ``maesil export``.
        img_size: (D, H, W) of its images, or one number for all; None: that of an exported file, or else 96.
        patch_size: voxels of a token; None: the encoder's own. A multiple takes images that much finer, and sees the
            mean of the voxels that share one of the encoder's.
        layers: entries of its ``blocks``; None: one for each of the encoder's. More are filled with
            ``nn.Identity``: 12 for the ``vit`` of a UNETR.
        pretrained: False: with MONAI's random weights, to compare with.

    Raises:
        InputError: MONAI is missing; no such file, another kind of file, or an incomplete one; or it cannot be
            built in this size.
    """
    info = read_encoder_info(path)
    layout = vit_layout(info, img_size, patch_size, layers)
    vit = _new_vit(layout)
    if pretrained:
        _load(vit, path, info, layout)
    return vit


def monai_unetr(
    path: Path | str,
    out_channels: int,
    img_size: Sequence[int] | int | None = None,
    feature_size: int = 16,
    *,
    patch_size: int | None = None,
    pretrained: bool = True,
) -> Any:
    """Return a ``monai.networks.nets.UNETR`` with the encoder as its ``vit``; the rest starts at random.

    With patches of 16 voxels it is UNETR as MONAI builds it around the ViT. With patches of 8 its ``decoder2`` does not
    double the resolution: three doublings lead from tokens to voxels, and skips lie at 1, 1/2 and 1/4 of the
    image's resolution.

    Args:
        path, img_size, pretrained: as for :func:`monai_vit`; 12 blocks.
        out_channels: classes, with background.
        feature_size: channels at full resolution.
        patch_size: 8 or 16; None: the encoder's own.

    Raises:
        InputError: as :func:`monai_vit`.
    """
    info = read_encoder_info(path)
    layout = unetr_layout(info, img_size, patch_size)
    vit = _new_vit(layout)
    from monai.networks.blocks import UnetrUpBlock
    from monai.networks.nets import UNETR

    net = UNETR(1, out_channels, layout.image_size, feature_size, **layout.widths)
    net.vit, net.patch_size, net.feat_size = vit, layout.patch_size, layout.grid
    net.proj_view_shape = [*layout.grid, net.hidden_size]
    if layout.patch_size[0] == 8:
        net.decoder2 = UnetrUpBlock(3, 2 * feature_size, feature_size, 3, 1, "instance", res_block=True)
    if pretrained:
        # last, as it draws random numbers: for one seed the rest is the same with and without
        _load(vit, path, info, layout)
    return net


def _new_vit(layout: VitLayout) -> Any:
    """Return the network of a layout with random weights."""
    try:
        import einops  # noqa: F401 (MONAI's attention needs it and says so late)
        from monai.networks.nets import ViT
    except ImportError as error:
        name = (error.name or "monai").partition(".")[0]
        raise InputError(f"{name} is not installed", "pip install 'maesil[compare]'") from None
    vit = ViT(**layout.arguments)
    adapt(vit, layout)
    return vit


def _load(vit: nn.Module, path: Path | str, info: EncoderInfo, layout: VitLayout) -> None:
    """Give an adapted ViT the weights of a checkpoint or an exported file."""
    if info.image_size is None:
        weights = vit_weights(load_encoder(path).encoder, layout)
    else:
        weights = {key.removeprefix(PREFIX): value for key, value in read_weights(path).items()}
    unused = {key: value for key, value in vit.state_dict().items() if UNUSED in key}
    load_weights(vit, weights | unused, path)
