"""The pretrained encoder as a PyTorch module for whole images: intensities to tokens or feature maps."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import nn

from MAESILLib.export.description import CHECKPOINT, EncoderInfo, load_line, metadata_of, read_encoder_info
from MAESILLib.mae.checkpoint import load_checkpoint, load_weights, read_weights
from MAESILLib.mae.model import Encoder, token_grid, windowed
from MAESILLib.runtime.errors import InputError
from MAESILLib.runtime.files import write_bytes

SUFFIX = ".safetensors"


class PretrainedEncoder(nn.Module):
    """The encoder of a masked autoencoder, for whole images, all tokens visible.

    Attributes:
        info: source, training data, licence.
        spacing_mm: isotropic voxel size of the images it was trained on.
        windows_hu: HU windows, one channel each.
        orientation: D towards superior, H towards posterior, W towards left.
        patch_size: voxels (D, H, W) of a token; every side of an image is a multiple of it.
        trained_size: the largest images it saw, voxels (D, H, W).
        width: of a token.
    """

    orientation = "LPS"

    def __init__(self, info: EncoderInfo, encoder: Encoder) -> None:
        super().__init__()
        self.info = info
        self.spacing_mm = info.preprocessing.spacing_mm
        self.windows_hu = info.preprocessing.windows_hu
        self.patch_size = info.model.patch_size
        self.trained_size = info.model.superpatch_size
        self.width = info.model.encoder_width
        self.encoder = encoder

    def intensities(self, hu: torch.Tensor | NDArray[Any]) -> torch.Tensor:
        """Map HU (..., D, H, W) to the float32 intensities (..., windows, D, H, W) in [0, 1] of :meth:`forward`."""
        return windowed(torch.as_tensor(hu).float().unsqueeze(-4), self.windows_hu)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Encode images.

        Args:
            image: (B, windows, D, H, W) in [0, 1]; every side a multiple of the patch.

        Returns:
            (B, tokens, width), normalised; tokens in row-major order (d, h, w).

        Raises:
            InputError: an image of another shape.
        """
        return self._outputs(image)[-1]

    def feature_maps(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Return the output (B, width, d, h, w) of each block, that of the last one normalised.

        Args:
            image: as for :meth:`forward`; d, h and w are its sides over those of the patch.

        Raises:
            InputError: an image of another shape.
        """
        outputs = self._outputs(image)
        return [output.transpose(1, 2).unflatten(2, token_grid(image, self.patch_size)) for output in outputs]

    def _outputs(self, image: torch.Tensor) -> list[torch.Tensor]:
        windows = len(self.windows_hu)
        if image.ndim != 5 or image.shape[1] != windows:
            raise InputError(f"the image has shape {tuple(image.shape)}", f"give (B, {windows}, D, H, W)")
        sides = tuple(image.shape[2:])
        if any(n == 0 or n % p for n, p in zip(sides, self.patch_size, strict=True)):
            raise InputError(f"the image has {sides} voxels, not multiples of {self.patch_size}", "crop or pad it")
        return self.encoder(image)


def load_encoder(path: Path | str, device: torch.device | str = "cpu") -> PretrainedEncoder:
    """Load the encoder of a checkpoint, or one that ``maesil export --format torch`` has written, in fp32.

    Raises:
        InputError: no such file, another kind of file, or an incomplete one.
    """
    info = read_encoder_info(path)
    if info.kind == CHECKPOINT:
        encoder = PretrainedEncoder(info, load_checkpoint(path)[0].core.encoder)
    elif info.kind == "torch":
        with torch.device("meta"):
            encoder = PretrainedEncoder(info, Encoder(info.model, len(info.preprocessing.windows_hu)))
        load_weights(encoder, read_weights(path), path)
    else:
        raise InputError(f"{path} is an export for {info.kind}", load_line(info.kind, Path(path)))
    return encoder.to(device).eval()


def load_source(checkpoint: Path, output: Path) -> PretrainedEncoder:
    """Load the encoder of a checkpoint that is to be exported to the file ``output``.

    Raises:
        InputError: as :func:`load_encoder`; or it is an export; or ``output`` has another suffix, is a folder or the
            checkpoint.
    """
    if output.suffix != SUFFIX:
        raise InputError(f"{output} does not end with {SUFFIX}", f"name it {output.with_suffix(SUFFIX).name}")
    if output.is_dir():
        raise InputError(f"{output} is a folder", "choose another name")
    if output.exists() and checkpoint.exists() and output.samefile(checkpoint):
        raise InputError(f"{output} is the checkpoint itself", "choose another name")
    info = read_encoder_info(checkpoint)
    if info.kind != CHECKPOINT:
        raise InputError(f"{checkpoint} is an export already", f"export its checkpoint {info.source.get('name')}")
    return load_encoder(checkpoint)


def write_export(output: Path, kind: str, weights: dict[str, torch.Tensor], source: EncoderInfo) -> EncoderInfo:
    """Write an export to ``output``, whole or not at all, and return its metadata; an older file is replaced."""
    info = replace(source, kind=kind, path=str(output))
    tensors = {name: tensor.detach().contiguous() for name, tensor in weights.items()}
    write_bytes(output, save(tensors, metadata_of(info, output)))
    return info


def export_torch(checkpoint: Path, output: Path) -> EncoderInfo:
    """Write the encoder of a checkpoint as a file that :func:`load_encoder` reads.

    Raises:
        InputError: the checkpoint or ``output`` cannot be used.
    """
    encoder = load_source(checkpoint, output)
    return write_export(output, "torch", encoder.state_dict(), encoder.info)
