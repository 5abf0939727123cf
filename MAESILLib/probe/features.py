"""What tokens are described by: a frozen encoder, the same with random weights, or features without training."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from MAESILLib.config import Window
from MAESILLib.mae.checkpoint import CheckpointInfo, load_checkpoint
from MAESILLib.mae.loss import dct_matrix
from MAESILLib.mae.model import Encoder, patchify, windowed
from MAESILLib.mae.superpatch import Shape
from MAESILLib.probe.windows import PATCH, SPACING_MM, cut
from MAESILLib.runtime.errors import InputError
from MAESILLib.runtime.events import Reporter
from MAESILLib.runtime.stopping import StopRequest

Encode = Callable[[torch.Tensor], list[torch.Tensor]]
"""HU (B, D, H, W) float -> after each block the tokens (B, tokens, width), in row-major order."""
Array = NDArray[np.float32]
Key = tuple[str, int]
"""A feature's name and a block, from 1."""

ENCODER, RANDOM, RAW, HAND_MADE, POSITION = "encoder", "random weights", "raw patch", "hand-made", "position"
BANDS_HU = (-1100, -950, -700, -200, -120, -50, 0, 30, 60, 90, 130, 200, 400, 3000)
AROUND = (3, 7, 17)
"""Tokens on a side of the cubes over which hand-made features average HU bands."""
COSINES = 4
"""Lowest cosines of each axis."""


@dataclass(frozen=True)
class Tools:
    """What describes tokens, by name, and where it runs."""

    features: dict[str, Encode]
    device: torch.device
    reporter: Reporter
    stop: StopRequest


def raw_patch(hu: torch.Tensor) -> list[torch.Tensor]:
    """Describe a token by its 512 intensities, [-1000, 1000] HU mapped to [0, 1]."""
    return [((patchify(hu[:, None], (PATCH,) * 3) + 1000) / 2000).clamp(0, 1)]


def hand_made(hu: torch.Tensor) -> list[torch.Tensor]:
    """Describe a token by its 64 lowest cosines, its shares of 13 HU bands, and their means over 3, 7, 17 tokens.

    Beyond the window's border the means repeat its outermost tokens.
    """
    # of the orthonormal cosine transform, type II
    axis = dct_matrix(PATCH)[:COSINES].T.to(hu)
    low = raw_patch(hu)[0] @ torch.einsum("xi,yj,zk->xyzijk", axis, axis, axis).reshape(PATCH**3, COSINES**3)
    patches = patchify(hu[:, None], (PATCH,) * 3)
    above = torch.stack([(patches >= edge).float().mean(2) for edge in BANDS_HU], 2)
    shares = above[..., :-1] - above[..., 1:]
    grid = shares.unflatten(1, [n // PATCH for n in hu.shape[1:]])
    around = []
    for side in AROUND:
        d, h, w = (_box(n, side).to(hu) for n in grid.shape[1:4])
        around.append(torch.einsum("bdhwc,xd,yh,zw->bxyzc", grid, d, h, w).flatten(1, 3))
    return [torch.cat([low, shares, *around], 2)]


def position(start: NDArray[np.int64], place: NDArray[np.int64], shape: Shape, size: int) -> Array:
    """Describe tokens by nothing but where they lie, in the volume and in the window.

    Args:
        start: (K, 3) first voxel of the window of each token.
        place: (K, 3) on the window's token grid.

    Returns:
        (K, 128): products of the four lowest cosines of each axis, of the place as a share (0 to 1) of the volume,
        then of the window; a linear map of them can follow anatomy that a map of three numbers could not.
    """
    centre = start + PATCH * place + PATCH / 2
    described = []
    for share in (np.clip(centre / np.array(shape), 0, 1), (place + 0.5) / (size // PATCH)):
        d, h, w = np.moveaxis(np.cos(np.pi * np.arange(COSINES) * share[..., None]), 1, 0)
        described.append(np.einsum("ki,kj,kl->kijl", d, h, w).reshape(len(share), -1))
    return np.hstack(described).astype(np.float32)


class HUEncoder(nn.Module):
    """An encoder that sees every token: HU (B, D, H, W) -> after each block the tokens (B, tokens, width)."""

    def __init__(self, encoder: Encoder, windows_hu: tuple[Window, ...]) -> None:
        super().__init__()
        self.encoder, self.windows_hu = encoder, windows_hu

    def forward(self, hu: torch.Tensor) -> list[torch.Tensor]:
        return self.encoder(windowed(hu[:, None], self.windows_hu))


def load_frozen(path: Path, device: torch.device | str = "cpu") -> tuple[HUEncoder, CheckpointInfo]:
    """Load the encoder of a checkpoint, in fp32, and the checkpoint's description.

    Raises:
        InputError: no such checkpoint, or one for another spacing or patch size than the probe's.
    """
    model, info = load_checkpoint(path, device)
    prepared, shape = info.preprocessing, info.model
    if prepared.spacing_mm != SPACING_MM or shape.patch_size != (PATCH,) * 3:
        raise InputError(
            f"{path} takes voxels of {prepared.spacing_mm:g} mm and patches {shape.patch_size}",
            f"the probe's tokens are {PATCH} voxels of {SPACING_MM} mm on a side",
        )
    return HUEncoder(model.core.encoder, prepared.windows_hu).eval(), info


@torch.no_grad()
def with_random_weights(encoder: nn.Module, seed: int) -> nn.Module:
    """Return the same architecture with every weight drawn anew: Glorot's uniform matrices, gains 1, biases 0."""
    generator = torch.Generator().manual_seed(seed)
    fresh = copy.deepcopy(encoder)
    for name, parameter in fresh.named_parameters():
        if parameter.ndim == 2:
            parameter.copy_(nn.init.xavier_uniform_(torch.empty(parameter.shape), generator=generator))
        else:
            parameter.fill_(1 if name.endswith("weight") else 0)
    return fresh


def compared(encode: HUEncoder, random: int) -> dict[str, Encode]:
    """Return the encoder, ``random`` encoders of the same shape with random weights, and features without training."""
    fresh = {f"{RANDOM} {seed}": with_random_weights(encode, seed) for seed in range(random)}
    return {ENCODER: encode, **fresh, HAND_MADE: hand_made, RAW: raw_patch}


def describe(
    tools: Tools,
    volume: NDArray[np.int16],
    starts: NDArray[np.int64],
    size: int,
    window: NDArray[np.int64],
    place: NDArray[np.int64],
) -> dict[Key, Array]:
    """Describe K tokens in a batch of windows of a volume by every feature and block, and by position.

    Args:
        volume: (D, H, W) HU.
        starts: (B, 3) where the windows begin.
        window: (K,) index of each token's window.
        place: (K, 3) of the token on the window's token grid.

    Returns:
        for each feature and each of its blocks (K, F).
    """
    cubes = np.stack([cut(volume, start, size) for start in starts])
    found: dict[Key, Array] = {}
    for name, encode in tools.features.items():
        tokens = tokens_of(encode, cubes, window, place, tools.device)
        found |= {(name, block): x for block, x in tokens.items()}
    return {**found, (POSITION, 1): position(starts[window], place, volume.shape, size)}


@torch.inference_mode()
def tokens_of(
    encode: Encode,
    hu: NDArray[np.int16],
    window: NDArray[np.int64],
    place: NDArray[np.int64],
    device: torch.device | str,
) -> dict[int, Array]:
    """Return the tokens (K, width) in windows (B, D, H, W) after each block that is tried, numbered from 1.

    Other arguments as for :func:`describe`.
    """
    states = encode(torch.from_numpy(hu).to(device).float())
    index = np.ravel_multi_index(tuple(place.T), tuple(n // PATCH for n in hu.shape[1:]))
    rows = torch.from_numpy(window).to(device), torch.from_numpy(index).to(device)
    return {block: states[block - 1][rows].float().cpu().numpy() for block in blocks_of(len(states))}


def blocks_of(depth: int) -> list[int]:
    """Return the blocks that are tried: at half and at three quarters of the depth, and the last."""
    return sorted({max(1, depth // 2), max(1, 3 * depth // 4), depth})


def _box(size: int, side: int) -> torch.Tensor:
    """Return the matrix (size, size) of a running mean over ``side`` values, edges repeated."""
    matrix = torch.zeros(size, size)
    for offset in range(-(side // 2), side // 2 + 1):
        matrix[torch.arange(size), (torch.arange(size) + offset).clamp(0, size - 1)] += 1 / side
    return matrix
