"""The pretrained encoder as a plain PyTorch module: intensities in, tokens or feature maps out.

All tokens are visible. Needs torch and safetensors, no MONAI.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from MAESILLib.checkpoint import load_checkpoint, load_weights, read_weights
from MAESILLib.config import Triple
from MAESILLib.errors import InputError
from MAESILLib.export.description import CHECKPOINT, LOAD, EncoderInfo, read_encoder_info
from MAESILLib.model import Encoder, patchify, positions_on
from MAESILLib.superpatch import token_grid


class PretrainedEncoder(nn.Module):
    """The encoder of a masked autoencoder, for whole images.

    Attributes:
        info: where it comes from: source, training data, licence.
        spacing_mm: isotropic voxel size of the images it was trained on.
        window_hu: the HU that are 0 and 1 in these images.
        orientation: D towards superior, H towards posterior, W towards left.
        patch_size: voxels (D, H, W) of a token; every side of an image is a multiple of it.
        trained_size: the largest images it saw, voxels (D, H, W); on larger ones positions are new to it.
        width: numbers of a token.
    """

    orientation = "LPS"

    def __init__(self, info: EncoderInfo, encoder: Encoder) -> None:
        super().__init__()
        self.info = info
        self.spacing_mm = info.preprocessing.spacing_mm
        self.window_hu = info.preprocessing.window_hu
        self.patch_size = info.model.patch_size
        self.trained_size = info.model.superpatch_size
        self.width = info.model.encoder_width
        self.encoder = encoder

    def intensities(self, hu: torch.Tensor | NDArray[Any]) -> torch.Tensor:
        """Map Hounsfield units of any shape to the float32 intensities in [0, 1] that :meth:`forward` takes."""
        low, high = self.window_hu
        return ((torch.as_tensor(hu).float() - low) / (high - low)).clamp(0, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Encode images.

        Args:
            image: (B, 1, D, H, W) intensities in [0, 1]; every side a multiple of the patch.

        Returns:
            (B, tokens, width), normalised; tokens in row-major order (d, h, w).

        Raises:
            InputError: an image of another shape.
        """
        *_, last = self._states(image)
        return last

    def feature_maps(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Return the tokens after each block as (B, width, d, h, w), the last ones normalised.

        Args:
            image: as for :meth:`forward`; d, h and w are its sides over those of the patch.

        Raises:
            InputError: an image of another shape.
        """
        grid = self._grid(image)
        return [state.transpose(1, 2).unflatten(2, grid) for state in self._states(image)]

    def _states(self, image: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield the tokens (B, tokens, width) after each block, the last ones normalised."""
        encoder, grid = self.encoder, self._grid(image)
        reach = token_grid(self.trained_size, self.patch_size)
        positions = positions_on(image.device, grid, self.width, (0, 0, 0), reach)
        x = encoder.patch_embedding(patchify(image, self.patch_size) * 2 - 1) + positions
        for block in encoder.blocks[:-1]:
            x = block(x)
            yield x
        yield encoder.norm(encoder.blocks[-1](x))

    def _grid(self, image: torch.Tensor) -> Triple:
        if image.ndim != 5 or image.shape[1] != 1:
            raise InputError(f"the image has shape {tuple(image.shape)}", "give (B, 1, D, H, W)")
        d, h, w = image.shape[2:]
        if any(n == 0 or n % p for n, p in zip((d, h, w), self.patch_size, strict=True)):
            raise InputError(
                f"the image has {d} x {h} x {w} voxels, no multiples of the patch {self.patch_size}",
                "crop or pad it",
            )
        return token_grid((d, h, w), self.patch_size)


def load_encoder(path: Path | str, device: torch.device | str = "cpu") -> PretrainedEncoder:
    """Load the encoder of a checkpoint, or one that ``maesil export --format torch`` has written, in fp32.

    Raises:
        InputError: no such file, another kind of file, or one that is incomplete.
    """
    info = read_encoder_info(path)
    if info.kind == CHECKPOINT:
        encoder = PretrainedEncoder(info, load_checkpoint(path)[0].encoder)
    elif info.kind == "torch":
        encoder = PretrainedEncoder(info, Encoder(info.model))
        load_weights(encoder, read_weights(path), path)
    else:
        raise InputError(f"{path} is an export for MONAI", LOAD[info.kind].format(name=Path(path).name))
    return encoder.to(device).eval()
