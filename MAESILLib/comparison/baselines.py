"""The networks that MAESIL is compared with: MONAI's AutoEncoder, AutoencoderKL and VQVAE in 3D.

Each halves a volume twice, so that its latent code has 40 numbers for 4x4x4 voxels: as many as the 320 of preset
small for 8x8x8. A code of the VQ-VAE is one of 1024 entries for 4x4x4 voxels instead. AE and VQ-VAE are built without
normalisation, which over a whole crop would lose its HU. AutoencoderKL cannot be: its groups of channels are normalised
over what it is given, so superpatches larger than the training's crops may cost it something.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import nn

from MAESILLib import __version__
from MAESILLib.checkpoint_info import CheckpointInfo, read_header
from MAESILLib.config import ModelConfig, to_dict
from MAESILLib.errors import InputError
from MAESILLib.files import atomic_path
from MAESILLib.training.loss import Loss

FORMAT, KEY = "maesil-peer/1", "maesil-peer"
HALVINGS = 2
LATENT_CHANNELS = 40
CODES = 1024
LEAST_CHOSEN = 0.03
"""An entry of the table that is chosen less often than this share of an even one is drawn anew."""
BEGINS_CHOSEN = 0.06
"""What it begins with: half of it is forgotten after 69 updates, in which it has to be chosen."""
KL_WEIGHT = 1e-6
"""Of a VAE's divergence, a mean over its latent numbers, beside the mean squared error: that of latent diffusion's."""


@dataclass(frozen=True)
class PeerOutput:
    """What a peer says.

    Attributes:
        image: (B, 1, D, H, W) reconstructed intensities, not clipped.
        penalty: what its method adds to the loss, a scalar.
    """

    image: torch.Tensor
    penalty: torch.Tensor


@dataclass(frozen=True)
class Latent:
    """The size of the code of one superpatch.

    Attributes:
        numbers: how many numbers it has.
        bits: of each number, where they are chosen from a table; None where they are real.
    """

    numbers: int
    bits: int | None

    def __str__(self) -> str:
        return f"{self.numbers:,} numbers" if self.bits is None else f"{self.numbers:,} codes of {self.bits} bits"


class Peer(nn.Module):
    """One of MONAI's networks, called as the masked autoencoder is; it sees the whole image.

    Intensities are centred for the network and its output is taken back, as MAESIL does.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor, *_: Any, **__: Any) -> PeerOutput:
        """Reconstruct (B, 1, D, H, W) intensities in [0, 1], sides multiples of 4; masks are not looked at."""
        made, penalty = self.reconstructed(image * 2 - 1)
        return PeerOutput((made.float() + 1) / 2, penalty)

    def reconstructed(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the network's image and what its method adds to the loss."""
        raise NotImplementedError


class AE(Peer):
    """Autoencoder: convolutions with residual units."""

    def reconstructed(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the image; nothing is added."""
        made = self.network(image)
        return made, made.new_zeros(())


class VAE(Peer):
    """Variational autoencoder (Kingma and Welling 2014): sampled in training, its mean decoded otherwise."""

    def reconstructed(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the image and the weighted divergence from the normal distribution."""
        network: Any = self.network
        mean, deviation = network.encode(image)
        made = network.decode(network.sampling(mean, deviation) if self.training else mean)
        mean, deviation = mean.float(), deviation.float()
        divergence = 0.5 * (mean.square() + deviation.square() - 2 * deviation.clamp_min(1e-12).log() - 1).mean()
        return made, KL_WEIGHT * divergence


class VQVAE(Peer):
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


def _autoencoder() -> nn.Module:
    from monai.networks.nets import AutoEncoder

    return AutoEncoder(3, 1, 1, channels=(32, 64, LATENT_CHANNELS), strides=(2, 2, 1), num_res_units=2, norm=None)


def _variational() -> nn.Module:
    from monai.networks.nets import AutoencoderKL

    return AutoencoderKL(
        3,
        num_res_blocks=1,
        channels=(16, 32, 64),
        attention_levels=(False, False, False),
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        with_encoder_nonlocal_attn=False,
        with_decoder_nonlocal_attn=False,
    )


def _quantised() -> nn.Module:
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
        embedding_dim=LATENT_CHANNELS,
        decay=0.99,
    )


@dataclass(frozen=True)
class Method:
    """A method of the comparison.

    Attributes:
        title: as tables write it.
        network: of MONAI, by its class.
        make: returns the network, weights drawn anew.
        wrap: its :class:`Peer`.
    """

    title: str
    network: str
    make: Callable[[], nn.Module]
    wrap: type[Peer]
    codes: int | None = None


PEERS = {
    "ae": Method("AE", "monai.networks.nets.AutoEncoder", _autoencoder, AE),
    "vae": Method("VAE", "monai.networks.nets.AutoencoderKL", _variational, VAE),
    "vqvae": Method("VQ-VAE", "monai.networks.nets.VQVAE", _quantised, VQVAE, CODES),
}


def make_peer(name: str) -> Peer:
    """Return a peer with weights drawn from torch's generator.

    Raises:
        InputError: there is no such method, or MONAI is not installed.
    """
    if name not in PEERS:
        raise InputError(f"unknown method '{name}'", f"choose from {', '.join(PEERS)}")
    method = PEERS[name]
    try:
        network = method.make()
    except ImportError as error:
        raise InputError(
            f"{method.title} is MONAI's, which is not here ({error})", "pip install 'maesil[compare]'"
        ) from None
    return method.wrap(network)


def latent_of(name: str, model: ModelConfig) -> Latent:
    """Return the size of the code of a superpatch: of a peer, of ``maesil``, or of ``cosines`` as many."""
    voxels = math.prod(model.superpatch_size)
    patch = math.prod(model.patch_size)
    if name in ("maesil", "cosines"):
        # a patch has no more cosines than voxels
        count = model.encoder_width if name == "maesil" else min(model.encoder_width, patch)
        return Latent(voxels // patch * count, None)
    cells = voxels // 2 ** (3 * HALVINGS)
    codes = PEERS[name].codes
    return Latent(cells * LATENT_CHANNELS, None) if codes is None else Latent(cells, int(math.log2(codes)))


def peer_loss(output: PeerOutput, target: torch.Tensor, valid: torch.Tensor | None, *_: Any, **__: Any) -> Loss:
    """Return the :class:`MAESILLib.training.loss.Loss` of a peer: squared error of every voxel, and its penalty.

    Padding does not count, and each sample's error is a mean over its own voxels, as in
    :func:`MAESILLib.training.loss.masked_loss`.
    """
    difference = output.image - target
    counted: torch.Tensor | int = difference[0].numel()
    if valid is not None:
        difference, counted = difference * valid, valid.sum((1, 2, 3, 4)).clamp_min(1)
    error = (difference.square().sum((1, 2, 3, 4)) / counted).mean()
    nothing = error.new_zeros(())
    return Loss(error + output.penalty, nothing, error.detach(), nothing)


def save_peer(path: Path | str, name: str, weights: dict[str, torch.Tensor], info: CheckpointInfo) -> None:
    """Write a peer's weights with what it is and was trained on, whole or not at all."""
    description = {
        "format": FORMAT,
        "method": name,
        "network": PEERS[name].network,
        "superpatch_size": list(info.model.superpatch_size),
        "preprocessing": {"orientation": "LPS", **to_dict(info.preprocessing)},
        "training": info.training,
        "library_version": __version__,
    }
    tensors = {key: value.detach().cpu().contiguous() for key, value in weights.items()}
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(tensors, metadata={KEY: json.dumps(description)}))


def load_peer(path: Path | str, device: torch.device | str = "cpu") -> tuple[Peer, dict[str, Any]]:
    """Build a peer and load its weights, ready to evaluate.

    Returns:
        the peer, and its description as :func:`save_peer` wrote it.

    Raises:
        InputError: not a peer's checkpoint, or one of another version of the network.
    """
    metadata = read_header(path).get("__metadata__") or {}
    try:
        description = json.loads(metadata[KEY])
        peer = make_peer(description["method"])
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{path} is not a checkpoint of maesil compare", "choose another file") from None
    try:
        peer.load_state_dict(load(Path(path).read_bytes()))
    except RuntimeError as error:
        line = str(error).splitlines()[0]
        raise InputError(
            f"{path} does not fit MONAI's network here ({line})", "compare again in another folder"
        ) from None
    return peer.to(device).eval(), description
