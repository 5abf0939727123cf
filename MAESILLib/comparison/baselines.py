"""The methods that MAESIL is compared with: MONAI's AutoEncoder, AutoencoderKL and VQVAE in 3D, and a fixed transform.

They see the first HU window. Each network halves a volume twice; its code of 4x4x4 voxels has as many numbers as
MAESIL's has for as many voxels: ``encoder_width / 8`` where patches are 8x8x8. The VQ-VAE has one of 1024 entries
instead. AE and VQ-VAE have no normalisation, which over a whole crop would lose its HU. AutoencoderKL cannot be built
without: it normalises groups of channels over the image, so superpatches larger than the training crops may cost it
something.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import save
from torch import nn

from MAESILLib.config import Config, ModelConfig, Window, to_dict
from MAESILLib.mae.checkpoint_info import CheckpointInfo
from MAESILLib.mae.loss import Loss, dct_matrix, mean_of_samples
from MAESILLib.mae.masking import hidden_from_visible
from MAESILLib.mae.model import patchify, take_tokens, token_grid, unpatchify
from MAESILLib.mae.network import Reconstructed
from MAESILLib.runtime.device import precision_context
from MAESILLib.runtime.errors import InputError
from MAESILLib.runtime.files import atomic_path
from MAESILLib.training.batch import Batch, intensities
from MAESILLib.training.task import Task

if TYPE_CHECKING:
    from MAESILLib.training.update import Update

FORMAT, KEY = "maesil-baseline/1", "maesil-baseline"
CELL = 4
"""Voxels along each side of the cube that one position of a code stands for."""
CODES = 1024
LEAST_CHOSEN = 0.03
"""A codebook entry that is chosen less often than this share of the mean is replaced."""
BEGINS_CHOSEN = 0.06
"""The share that a new entry starts with: half of it is forgotten after 69 updates, in which it has to be chosen."""
KL_WEIGHT = 1e-6
"""Weight of the VAE's divergence, a mean over latent numbers, next to the mean squared error; of latent diffusion."""


class Baseline(nn.Module):
    """An autoencoder of the first HU window; :meth:`reconstruct` is that of MAESIL's network.

    Args:
        config: of MAESIL, whose superpatches and patches it is evaluated on.

    Attributes:
        codes: entries of the codebook; None where a code is of real numbers.
    """

    title = network_class = ""
    codes: int | None = None
    completion = None
    network: Any

    def __init__(self, config: ModelConfig, windows_hu: tuple[Window, ...]) -> None:
        super().__init__()
        self.config, self.windows_hu = config, windows_hu

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Reconstruct (B, 1, D, H, W) intensities in [0, 1], sides multiples of 4; the network sees them centred.

        Returns:
            the image, not clipped, and what the method adds to the loss, a scalar.
        """
        made, penalty = self.reconstructed(image * 2 - 1)
        return (made.float() + 1) / 2, penalty

    def reconstructed(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the network's image, and what the method adds to the loss."""
        raise NotImplementedError

    def reconstruct(
        self, image: torch.Tensor, visible: torch.Tensor, filled: torch.Tensor | None, *, completed: bool = True
    ) -> Reconstructed:
        """Auto-encode every patch, the hidden ones too: a baseline sees the whole image."""
        patches = patchify(self(image)[0], self.config.patch_size)
        hidden = hidden_from_visible(visible, patches.shape[1])
        return Reconstructed(hidden, take_tokens(patches, hidden), take_tokens(patches, visible))


class AE(Baseline):
    """Autoencoder: convolutions with residual units."""

    title, network_class = "AE", "monai.networks.nets.AutoEncoder"

    def __init__(self, config: ModelConfig, windows_hu: tuple[Window, ...]) -> None:
        from monai.networks.nets import AutoEncoder

        super().__init__(config, windows_hu)
        channels = (32, 64, latent_channels(config))
        self.network = AutoEncoder(3, 1, 1, channels=channels, strides=(2, 2, 1), num_res_units=2, norm=None)

    def reconstructed(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the image; nothing is added."""
        made = self.network(image)
        return made, made.new_zeros(())


class VAE(Baseline):
    """Variational autoencoder (Kingma and Welling 2014): sampled in training, its mean decoded otherwise."""

    title, network_class = "VAE", "monai.networks.nets.AutoencoderKL"

    def __init__(self, config: ModelConfig, windows_hu: tuple[Window, ...]) -> None:
        from monai.networks.nets import AutoencoderKL

        super().__init__(config, windows_hu)
        self.network = AutoencoderKL(
            3,
            num_res_blocks=1,
            channels=(16, 32, 64),
            attention_levels=(False, False, False),
            latent_channels=latent_channels(config),
            norm_num_groups=8,
            with_encoder_nonlocal_attn=False,
            with_decoder_nonlocal_attn=False,
        )

    def reconstructed(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the image and the weighted divergence from the normal distribution."""
        mean, deviation = self.network.encode(image)
        made = self.network.decode(self.network.sampling(mean, deviation) if self.training else mean)
        mean, deviation = mean.float(), deviation.float()
        divergence = 0.5 * (mean.square() + deviation.square() - 2 * deviation.clamp_min(1e-12).log() - 1).mean()
        return made, KL_WEIGHT * divergence


class VQVAE(Baseline):
    """Vector-quantised autoencoder (van den Oord et al. 2017), its codebook a running mean.

    Entries that are hardly chosen become codes of the batch (Dhariwal et al. 2020, Jukebox), at first all of them.
    MONAI draws the codebook from a normal distribution: most entries then lie far from every code, are never chosen,
    and the network learns a constant.
    """

    title, network_class, codes = "VQ-VAE", "monai.networks.nets.VQVAE", CODES

    def __init__(self, config: ModelConfig, windows_hu: tuple[Window, ...]) -> None:
        from monai.networks import nets

        super().__init__(config, windows_hu)
        # stride, kernel, dilation, padding of each halving
        self.network = nets.VQVAE(
            3,
            1,
            1,
            channels=(32, 64),
            num_res_layers=2,
            num_res_channels=(32, 64),
            downsample_parameters=((2, 4, 1, 1),) * 2,
            upsample_parameters=((2, 4, 1, 1, 0),) * 2,
            num_embeddings=CODES,
            embedding_dim=latent_channels(config),
            decay=0.99,
        )

    def reconstructed(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the image and the commitment loss."""
        code = self.network.encode(image)
        # MONAI finds the nearest entry in fp32 on a card alone
        with torch.autocast(image.device.type, enabled=False):
            code = code.float()
            if self.training:
                self._revive(code.detach())
            chosen, commitment = self.network.quantize(code)
        return self.network.decode(chosen), commitment

    @torch.no_grad()
    def _revive(self, code: torch.Tensor) -> None:
        table = self.network.quantizer.quantizer
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

    title, network_class = "cosines", "DCT-II"

    def __init__(self, config: ModelConfig, windows_hu: tuple[Window, ...]) -> None:
        super().__init__(config, windows_hu)
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


COSINES, MAESIL = "cosines", "maesil"
BASELINES: dict[str, type[Baseline]] = {"ae": AE, "vae": VAE, "vqvae": VQVAE, COSINES: LowestCosines}
TITLES = {name: baseline.title for name, baseline in BASELINES.items()} | {MAESIL: "MAESIL"}


def make_baseline(name: str, config: ModelConfig, windows_hu: tuple[Window, ...]) -> Baseline:
    """Return a baseline, its weights drawn from torch's generator.

    Raises:
        InputError: the patch size is not a multiple of a code's cell, or MONAI is not installed.
    """
    try:
        return BASELINES[name](config, windows_hu)
    except ImportError as error:
        raise InputError(
            f"{TITLES[name]} needs MONAI, which cannot be imported ({error})", "pip install 'maesil[compare]'"
        ) from None


def latent_channels(config: ModelConfig) -> int:
    """Return the numbers of a code of 4x4x4 voxels: as many as MAESIL has for as many.

    Raises:
        InputError: the patch size is not a multiple of 4.
    """
    if any(side % CELL for side in config.patch_size):
        raise InputError(
            f"model.patch_size {config.patch_size} is not a multiple of {CELL}, as AE, VAE and VQ-VAE need",
            "choose another patch size, or compare other methods",
        )
    return max(1, round(config.encoder_width * CELL**3 / math.prod(config.patch_size)))


def code_of(name: str, config: ModelConfig) -> tuple[int, int | None]:
    """Return the size of a method's code of one patch.

    Returns:
        how many numbers it has, and the bits of each if they are indices of codebook entries; None if they are real.
    """
    voxels = math.prod(config.patch_size)
    if name == MAESIL:
        return config.encoder_width, None
    if name == COSINES:
        # a patch has no more cosines than voxels
        return min(config.encoder_width, voxels), None
    cells, codes = voxels // CELL**3, BASELINES[name].codes
    return (cells * latent_channels(config), None) if codes is None else (cells, int(math.log2(codes)))


class BaselineTraining(Task):
    """Training a baseline to auto-encode crops. It is validated on what is hidden from MAESIL, and sees that too."""

    metrics = ("visible_mse",)

    def __init__(self, name: str) -> None:
        self.name = name

    def build(self, config: Config) -> Baseline:
        """Return the network."""
        return make_baseline(self.name, config.model, config.preprocessing.windows_hu)

    def loss(self, update: Update, batch: Batch) -> Loss:
        """Return the squared error of every voxel plus the method's penalty."""
        image, target, valid = intensities(batch, update.config.preprocessing.windows_hu, update.device)
        with precision_context(update.device, update.bf16):
            made, penalty = update.network(image)
        difference = made - target if valid is None else (made - target) * valid
        error = mean_of_samples(difference.square(), valid)
        return Loss(error + penalty, None, {"visible_mse": error.detach()})

    def save(self, path: Path, weights: dict[str, torch.Tensor], info: CheckpointInfo) -> None:
        """Write the weights with their description, whole or not at all."""
        described = {"format": FORMAT, "method": self.name, "network": BASELINES[self.name].network_class}
        metadata = {KEY: json.dumps(described | to_dict(info))}
        with atomic_path(path) as temporary:
            temporary.write_bytes(save({key: value.contiguous() for key, value in weights.items()}, metadata))
