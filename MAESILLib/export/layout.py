"""How the encoder lies in a MONAI network: sizes, and which of its blocks stands where.

Needs neither torch nor MONAI.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from MAESILLib.config import ModelConfig, Triple
from MAESILLib.errors import InputError
from MAESILLib.export.description import EncoderInfo

UNETR_LAYERS = 12
"""Entries of ``vit.blocks`` in MONAI's UNETR, which reads its skips after the 4th, 7th and 10th."""
UNETR_PATCHES = (8, 16)
"""The patches from which its decoder can climb to the image: three doublings, and a fourth that may be left out."""
USUAL_SIZE = 96


@dataclass(frozen=True)
class VitLayout:
    """A MONAI ViT that holds the encoder.

    Attributes:
        image_size: voxels (D, H, W) of its images.
        patch_size: of its images; a multiple of the encoder's where these images are finer.
        layers: entries of its ``blocks``; those beyond the encoder's depth pass their input on.
    """

    model: ModelConfig
    image_size: Triple
    patch_size: Triple
    layers: int

    @property
    def factor(self) -> int:
        """How many voxels of its images stand for one of the encoder's, on each axis."""
        return self.patch_size[0] // self.model.patch_size[0]

    @property
    def grid(self) -> Triple:
        """The token grid (d, h, w)."""
        d, h, w = (n // p for n, p in zip(self.image_size, self.patch_size, strict=True))
        return d, h, w

    @property
    def places(self) -> tuple[int, ...]:
        """Where each of the encoder's blocks stands in ``blocks``: evenly spread."""
        depth = self.model.encoder_depth
        before = [math.floor(i * depth / self.layers + 0.5) for i in range(self.layers + 1)]
        return tuple(i for i in range(self.layers) if before[i + 1] > before[i])

    @property
    def arguments(self) -> dict[str, Any]:
        """Those of ``monai.networks.nets.ViT``, as plain JSON values; its blocks are those of the encoder alone."""
        return {
            "in_channels": 1,
            "img_size": list(self.image_size),
            "patch_size": list(self.patch_size),
            "num_layers": self.model.encoder_depth,
            **self.widths,
        }

    @property
    def widths(self) -> dict[str, Any]:
        """The arguments that ViT and UNETR share."""
        model = self.model
        return {
            "hidden_size": model.encoder_width,
            "mlp_dim": int(model.encoder_width * model.mlp_ratio),
            "num_heads": model.encoder_width // model.head_width,
            "proj_type": "conv",
            "qkv_bias": True,
        }

    def of_its_images(self, info: EncoderInfo) -> EncoderInfo:
        """Return ``info`` with the spacing, patch and size of this network's images."""
        spacing_mm = info.preprocessing.spacing_mm * info.patch_size[0] / self.patch_size[0]
        return replace(
            info,
            preprocessing=replace(info.preprocessing, spacing_mm=spacing_mm),
            patch_size=self.patch_size,
            image_size=self.image_size,
            layers=self.layers,
        )


def vit_layout(
    info: EncoderInfo, image_size: Sequence[int] | int | None, patch_size: int | None, layers: int | None
) -> VitLayout:
    """Return the layout that was asked for; None stands for that of an exported file, or else the usual.

    Raises:
        InputError: sizes that do not divide, a network with fewer blocks than the encoder, or one that the
            exported file was not made for.
    """
    model = info.model
    size = _as_triple(image_size)
    patch = None if patch_size is None else (patch_size,) * 3
    if info.image_size is not None:
        made_for = {"image_size": info.image_size, "patch_size": info.patch_size, "layers": info.layers}
        wanted = {"image_size": size, "patch_size": patch, "layers": layers}
        for name, value in made_for.items():
            if wanted[name] not in (None, value):
                raise InputError(
                    f"{info.path} was made for {name} {value}, not {wanted[name]}",
                    "export the checkpoint again, or load the checkpoint itself",
                )
        size, patch, layers = info.image_size, info.patch_size, info.layers
    patch = patch or model.patch_size
    factors = {p / own for p, own in zip(patch, model.patch_size, strict=True)}
    if len(factors) > 1 or not min(factors).is_integer() or min(factors) < 1:
        raise InputError(f"patch {patch} is no multiple of the encoder's {model.patch_size}", "choose another patch")
    layout = VitLayout(model, size or _usual_size(model, patch), patch, layers or model.encoder_depth)
    _check(layout)
    return layout


def unetr_layout(info: EncoderInfo, image_size: Sequence[int] | int | None, patch_size: int | None) -> VitLayout:
    """Return the layout of MONAI's UNETR; arguments as for :func:`vit_layout`.

    Raises:
        InputError: as :func:`vit_layout`; or the UNETR has no room for this encoder, or does not fit its patch.
    """
    layout = vit_layout(info, image_size, patch_size, UNETR_LAYERS)
    if len(set(layout.patch_size)) > 1 or layout.patch_size[0] not in UNETR_PATCHES:
        raise InputError(
            f"MONAI's UNETR cannot climb from patches of {layout.patch_size} to the image",
            "it takes patches of 8 or 16 voxels; use the ViT",
        )
    if min(layout.image_size) < 16:
        raise InputError(f"image size {layout.image_size} is too small", "MONAI's UNETR starts at 16 voxels")
    return layout


def _check(layout: VitLayout) -> None:
    size, patch = layout.image_size, layout.patch_size
    if any(not 0 < n <= 4096 or n % p for n, p in zip(size, patch, strict=True)):
        raise InputError(
            f"image size {size} is no multiple of the patch {patch}",
            f"choose multiples of {patch[0]}" if len(set(patch)) == 1 else "choose multiples of it",
        )
    if not layout.model.encoder_depth <= layout.layers <= 1024:
        raise InputError(
            f"the encoder has {layout.model.encoder_depth} blocks, which {layout.layers} cannot hold",
            "use the ViT with as many",
        )


def _usual_size(model: ModelConfig, patch: Triple) -> Triple:
    """Return 96 voxels, or fewer where the encoder was trained on less."""
    sizes = []
    for trained, own, p in zip(model.superpatch_size, model.patch_size, patch, strict=True):
        sizes.append(max(p, min(USUAL_SIZE, trained * p // own) // p * p))
    return sizes[0], sizes[1], sizes[2]


def _as_triple(size: Sequence[int] | int | None) -> Triple | None:
    if size is None:
        return None
    values = (size,) * 3 if isinstance(size, int) else tuple(int(n) for n in size)
    if len(values) != 3:
        raise InputError(f"image size {values} has {len(values)} sides", "give one number, or three (D, H, W)")
    return values[0], values[1], values[2]
