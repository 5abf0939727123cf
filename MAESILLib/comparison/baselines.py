"""The networks that MAESIL is compared with: MONAI's AutoEncoder, AutoencoderKL and VQVAE in 3D.

They see the first HU window. Each halves a volume twice; for 4x4x4 voxels its code has as many numbers as MAESIL's has
for as many voxels: ``encoder_width / 8`` where patches are 8x8x8. The VQ-VAE has one of 1024 entries instead. AE and
VQ-VAE are built without normalisation, which over a whole crop would lose its HU. AutoencoderKL cannot be: its groups
of channels are normalised over the image, so superpatches larger than the training's crops may cost it something.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import nn

from MAESILLib import __version__
from MAESILLib.checkpoint_info import CheckpointInfo, read_header
from MAESILLib.config import ModelConfig, Preprocessing, Window, complete_from_dict, to_dict
from MAESILLib.errors import InputError
from MAESILLib.files import atomic_path
from MAESILLib.mae.dct import dct_matrix
from MAESILLib.mae.model import patchify, take_tokens, token_grid, unpatchify
from MAESILLib.mae.network import Reconstructed

FORMAT, KEY = "maesil-baseline/1", "maesil-baseline"
HALVINGS = 2
CELL = 2**HALVINGS
"""Voxels of a side that one place of a code stands for."""
CODES = 1024
LEAST_CHOSEN = 0.03
"""An entry of the table that is chosen less often than this share of an even one is drawn anew."""
BEGINS_CHOSEN = 0.06
"""What it begins with: half of it is forgotten after 69 updates, in which it has to be chosen."""
KL_WEIGHT = 1e-6
"""Of a VAE's divergence, a mean over its latent numbers, next to the mean squared error: that of latent diffusion's."""


@dataclass(frozen=True)
class BaselineOutput:
    """Output of a baseline.

    Attributes:
        image: (B, 1, D, H, W) reconstructed intensities, not clipped.
        penalty: what its method adds to the loss, a scalar.
    """

    image: torch.Tensor
    penalty: torch.Tensor


class Baseline(nn.Module):
    """An autoencoder of the first window of whole superpatches; :meth:`reconstruct` is that of MAESIL's network.

    Args:
        network: one of MONAI's.
        config: of MAESIL, whose superpatches and patches it is measured on.
        windows_hu: HU windows of the image, of which there is one.
    """

    completion = None

    def __init__(self, network: nn.Module, config: ModelConfig, windows_hu: tuple[Window, ...]) -> None:
        super().__init__()
        self.network, self.config, self.windows_hu = network, config, windows_hu

    def forward(self, image: torch.Tensor) -> BaselineOutput:
        """Reconstruct (B, 1, D, H, W) intensities in [0, 1], sides multiples of 4; the network sees them centred."""
        made, penalty = self.reconstructed(image * 2 - 1)
        return BaselineOutput((made.float() + 1) / 2, penalty)

    def reconstructed(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the network's image and what its method adds to the loss."""
        raise NotImplementedError

    def reconstruct(
        self, image: torch.Tensor, visible: torch.Tensor, filled: torch.Tensor | None, *, completed: bool = True
    ) -> Reconstructed:
        """Auto-encode the patches of an image of which nothing is hidden."""
        patches = patchify(self(image).image, self.config.patch_size)
        return Reconstructed(visible[:, :0], patches[:, :0], take_tokens(patches, visible))


class AE(Baseline):
    """Autoencoder: convolutions with residual units."""

    def reconstructed(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the image; nothing is added."""
        made = self.network(image)
        return made, made.new_zeros(())


class VAE(Baseline):
    """Variational autoencoder (Kingma and Welling 2014): sampled in training, its mean decoded otherwise."""

    def reconstructed(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the image and the weighted divergence from the normal distribution."""
        network: Any = self.network
        mean, deviation = network.encode(image)
        made = network.decode(network.sampling(mean, deviation) if self.training else mean)
        mean, deviation = mean.float(), deviation.float()
        divergence = 0.5 * (mean.square() + deviation.square() - 2 * deviation.clamp_min(1e-12).log() - 1).mean()
        return made, KL_WEIGHT * divergence


class VQVAE(Baseline):
    """Vector-quantised autoencoder (van den Oord et al. 2017), its table a running mean.

    Entries that are hardly chosen become codes of the batch (Dhariwal et al. 2020, Jukebox), at first all of them.
    MONAI draws the table from a normal distribution: most entries then lie far from every code, are never chosen, and
    the network learns a constant.
    """

    def reconstructed(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the image and the commitment loss."""
        network: Any = self.network
        code = network.encode(image)
        # MONAI finds the nearest entry in fp32 on a card alone
        with torch.autocast(image.device.type, enabled=False):
            code = code.float()
            if self.training:
                self._revive(code.detach())
            chosen, commitment = network.quantize(code)
        return network.decode(chosen), commitment

    @torch.no_grad()
    def _revive(self, code: torch.Tensor) -> None:
        table: Any = self.network.quantizer.quantizer  # type: ignore[union-attr]
        cells = code.movedim(1, -1).flatten(0, -2)
        even = len(cells) / table.num_embeddings
        dead = table.ema_cluster_size < LEAST_CHOSEN * even
        new = cells[torch.randint(len(cells), (table.num_embeddings,), device=cells.device)]
        count = BEGINS_CHOSEN * even
        for entries, values in (
            (table.embedding.weight, new),
            (table.ema_w, new * count),
            (table.ema_cluster_size[:, None], torch.full_like(new[:, :1], count)),
        ):
            entries.copy_(torch.where(dead[:, None], values, entries))


class LowestCosines(Baseline):
    """The reference that learns nothing: each patch by its lowest cosines (DCT-II), as many as MAESIL has numbers."""

    def __init__(self, config: ModelConfig, windows_hu: tuple[Window, ...]) -> None:
        super().__init__(nn.Identity(), config, windows_hu)
        axes = [dct_matrix(n).numpy() for n in config.patch_size]
        basis = np.einsum("ad,bh,cw->abcdhw", *axes).reshape(math.prod(config.patch_size), -1)
        squares = sum(f**2 for f in np.meshgrid(*(np.arange(n) / n for n in config.patch_size), indexing="ij"))
        kept = basis[np.argsort(squares, axis=None, kind="stable")[: config.encoder_width]]
        self.register_buffer("projection", torch.from_numpy(kept.T @ kept).float())

    def reconstructed(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the image with the higher cosines of each patch left out."""
        patch_size = self.config.patch_size
        patches = patchify(image, patch_size) @ torch.as_tensor(self.projection)
        return unpatchify(patches, token_grid(image, patch_size), patch_size), image.new_zeros(())


def _autoencoder(channels: int) -> nn.Module:
    from monai.networks.nets import AutoEncoder

    return AutoEncoder(3, 1, 1, channels=(32, 64, channels), strides=(2, 2, 1), num_res_units=2, norm=None)


def _variational(channels: int) -> nn.Module:
    from monai.networks.nets import AutoencoderKL

    return AutoencoderKL(
        3,
        num_res_blocks=1,
        channels=(16, 32, 64),
        attention_levels=(False, False, False),
        latent_channels=channels,
        norm_num_groups=8,
        with_encoder_nonlocal_attn=False,
        with_decoder_nonlocal_attn=False,
    )


def _quantised(channels: int) -> nn.Module:
    from monai.networks import nets

    # stride, kernel, dilation, padding of each halving
    return nets.VQVAE(
        3,
        1,
        1,
        channels=(32, 64),
        num_res_layers=2,
        num_res_channels=(32, 64),
        downsample_parameters=((2, 4, 1, 1),) * HALVINGS,
        upsample_parameters=((2, 4, 1, 1, 0),) * HALVINGS,
        num_embeddings=CODES,
        embedding_dim=channels,
        decay=0.99,
    )


@dataclass(frozen=True)
class Method:
    """A baseline.

    Attributes:
        title: in tables.
        network: class of MONAI.
        make: returns the network for a number of latent channels, weights drawn anew.
        wrap: its :class:`Baseline`.
        codes: entries of its table; None where a code is of real numbers.
    """

    title: str
    network: str
    make: Callable[[int], nn.Module]
    wrap: type[Baseline]
    codes: int | None = None


BASELINES = {
    "ae": Method("AE", "monai.networks.nets.AutoEncoder", _autoencoder, AE),
    "vae": Method("VAE", "monai.networks.nets.AutoencoderKL", _variational, VAE),
    "vqvae": Method("VQ-VAE", "monai.networks.nets.VQVAE", _quantised, VQVAE, CODES),
}
COSINES, MAESIL = "cosines", "maesil"
METHODS = (*BASELINES, COSINES, MAESIL)
TITLES = {name: method.title for name, method in BASELINES.items()} | {COSINES: "cosines", MAESIL: "MAESIL"}


def make_baseline(name: str, config: ModelConfig, windows_hu: tuple[Window, ...]) -> Baseline:
    """Return a baseline with weights drawn from torch's generator.

    Raises:
        InputError: a patch that a code's places do not divide, or MONAI is not installed.
    """
    method = BASELINES[name]
    if any(side % CELL for side in config.patch_size):
        raise InputError(
            f"model.patch_size {config.patch_size} is not a multiple of {CELL}, as {method.title} needs",
            "choose another patch, or compare other methods",
        )
    try:
        network = method.make(latent_channels(config))
    except ImportError as error:
        raise InputError(
            f"{method.title} is MONAI's, which is not here ({error})", "pip install 'maesil[compare]'"
        ) from None
    return method.wrap(network, config, windows_hu)


def latent_channels(config: ModelConfig) -> int:
    """Return the numbers of a code for 4x4x4 voxels: as many as MAESIL has for as many."""
    return max(1, round(config.encoder_width * CELL**3 / math.prod(config.patch_size)))


@dataclass(frozen=True)
class Code:
    """The code of one patch.

    Attributes:
        numbers: how many numbers it has.
        bits: of each number, where they are chosen from a table; None where they are real.
    """

    numbers: int
    bits: int | None = None

    def __str__(self) -> str:
        return f"{self.numbers} numbers" if self.bits is None else f"{self.numbers} codes of {self.bits} bits"


def code_of(name: str, config: ModelConfig) -> Code:
    """Return the size of a method's code of one patch."""
    voxels = math.prod(config.patch_size)
    if name == MAESIL:
        return Code(config.encoder_width)
    if name == COSINES:
        # a patch has no more cosines than voxels
        return Code(min(config.encoder_width, voxels))
    cells, codes = voxels // CELL**3, BASELINES[name].codes
    return Code(cells * latent_channels(config)) if codes is None else Code(cells, int(math.log2(codes)))


def save_baseline(path: Path | str, name: str, weights: dict[str, torch.Tensor], info: CheckpointInfo) -> None:
    """Write a baseline's weights with its description, whole or not at all."""
    description = {
        "format": FORMAT,
        "method": name,
        "network": BASELINES[name].network,
        "model": to_dict(info.model),
        "preprocessing": to_dict(info.preprocessing),
        "training": info.training,
        "library_version": __version__,
    }
    tensors = {key: value.detach().cpu().contiguous() for key, value in weights.items()}
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(tensors, metadata={KEY: json.dumps(description)}))


def load_baseline(path: Path | str, device: torch.device | str = "cpu") -> Baseline:
    """Build a baseline and load its weights, ready to evaluate.

    Raises:
        InputError: not a baseline's checkpoint, or one of another version of the network.
    """
    metadata = read_header(path).get("__metadata__") or {}
    try:
        description = json.loads(metadata[KEY])
        model = complete_from_dict(ModelConfig, description["model"], str(path))
        preprocessing = complete_from_dict(Preprocessing, description["preprocessing"], str(path))
        baseline = make_baseline(description["method"], model, preprocessing.windows_hu)
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{path} is not a checkpoint of maesil compare", "choose another file") from None
    try:
        baseline.load_state_dict(load(Path(path).read_bytes()))
    except RuntimeError as error:
        line = str(error).splitlines()[0]
        raise InputError(
            f"{path} does not fit MONAI's network here ({line})", "compare again in another folder"
        ) from None
    return baseline.to(device).eval()
