"""Validation with masks on, from fixed seeds, whether the encoder is used, and the preview picture.

What is measured is what the model is for: hidden patches it has not seen. The superpatches and their
masks depend on the data alone, so every run over a cache is measured on the same ones.
"""

import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from MAESILLib.config import Config, Preprocessing
from MAESILLib.data.cache import Cache, CacheEntry
from MAESILLib.data.foreground import FOREGROUND_HU
from MAESILLib.mae.harmonic import biharmonic_fill, harmonic_fill
from MAESILLib.mae.masking import MaskSpec, draw_visible, generator_for, hidden_tokens, visible_count
from MAESILLib.mae.model import Encoder, composite, patchify, spread, take_tokens, valid_voxels, windowed
from MAESILLib.mae.network import Network, Reconstructed
from MAESILLib.mae.superpatch import Superpatch, extract, partition, token_grid
from MAESILLib.runtime.device import precision_context
from MAESILLib.runtime.files import atomic_path, write_bytes
from MAESILLib.training.ranks import ALONE, Ranks

SEED = 1000
MASK = MaskSpec("dual", 0.5, 0.5)
RIDGE = 1e-3
"""Of the regression from standardised tokens, relative to their number."""


@dataclass(frozen=True)
class ValidationSuperpatch:
    """One superpatch with its mask.

    Attributes:
        image: (1, windows, D, H, W) in [0, 1].
        valid: (1, 1, D, H, W) bool, False in padding.
        visible: (1, N) int64.
        filled: (1, 1, D, H, W), the first window's visible voxels and the biharmonic fill of the hidden ones.
    """

    volume: str
    image: torch.Tensor
    valid: torch.Tensor
    visible: torch.Tensor
    filled: torch.Tensor


def validation_set(cache: Cache, entries: tuple[CacheEntry, ...], config: Config) -> list[ValidationSuperpatch]:
    """Choose superpatches spread evenly over the volumes, of each those with most foreground first."""
    queues = [_by_foreground(cache.open(entry), config) for entry in entries]
    chosen: list[tuple[CacheEntry, Superpatch]] = []
    for rank in range(max(len(queue) for queue in queues)):
        chosen += [(entry, queue[rank]) for entry, queue in zip(entries, queues, strict=True) if rank < len(queue)]
    count = config.train.validation_superpatches
    return [_superpatch(cache.open(entry), entry.name, box, config) for entry, box in chosen[:count]]


def _by_foreground(volume: np.ndarray, config: Config) -> list[Superpatch]:
    """Return the superpatches of a volume in which the mask hides something, by their share of foreground."""
    patch_size = config.model.patch_size
    boxes = partition(volume.shape, config.model.superpatch_size, patch_size)
    grids = [token_grid(box.size, patch_size) for box in boxes]
    usable = [box for box, grid in zip(boxes, grids, strict=True) if visible_count(grid, MASK) < math.prod(grid)]
    return sorted(usable, key=lambda box: -float((volume[box.in_volume(volume.shape)] > FOREGROUND_HU).mean()))


def _superpatch(volume: np.ndarray, name: str, box: Superpatch, config: Config) -> ValidationSuperpatch:
    hu = torch.from_numpy(extract(volume, box).astype(np.float32))[None, None]
    image = windowed(hu, config.preprocessing.windows_hu)
    grid = token_grid(box.size, config.model.patch_size)
    visible = draw_visible(grid, MASK, 1, generator_for(SEED, name, box.index))
    valid = valid_voxels(torch.tensor([[s.stop for s in box.in_box(volume.shape)]]), torch.Size(box.size))
    hidden = spread(hidden_tokens(visible, grid), config.model.patch_size)
    known = ~hidden & valid
    filled = biharmonic_fill(harmonic_fill(image[:, :1], known), known)
    return ValidationSuperpatch(name, image, valid, visible, filled)


@torch.no_grad()
def validate(
    model: Any, superpatches: list[ValidationSuperpatch], device: torch.device, bf16: bool, ranks: Ranks = ALONE
) -> float:
    """Return the mean over superpatches of the PSNR over hidden voxels, in dB; the ranks share them out."""
    total, patch_size = 0.0, model.config.patch_size
    for superpatch in superpatches[ranks.rank :: ranks.size]:
        made = _reconstruct(model, superpatch, device, bf16)
        hidden = made.hidden.cpu()
        target = take_tokens(patchify(superpatch.image[:, :1], patch_size), hidden).double()
        weight = take_tokens(patchify(superpatch.valid.double(), patch_size), hidden)
        error = (made.hidden_patches.cpu().double().clamp(0, 1) - target).square() * weight
        total += -10 * math.log10(max(float(error.sum() / weight.sum()), 1e-12))
    return float(ranks.sum(torch.tensor(total, dtype=torch.float64))) / len(superpatches)


@torch.no_grad()
def attention_shares(encoder: Encoder, image: torch.Tensor) -> list[float]:
    """Return for each block the mean length of what attention adds to a token, relative to the token's.

    Near 0 a block mixes nothing; random weights have a third to a half.

    Args:
        image: (B, windows, D, H, W) in [0, 1].
    """
    lengths: list[torch.Tensor] = []
    handles = [b.register_forward_pre_hook(lambda _, x: lengths.append(x[0].norm(dim=-1))) for b in encoder.blocks]
    handles += [
        b.get_submodule("attn").register_forward_hook(lambda _, __, y: lengths.append(y.norm(dim=-1)))
        for b in encoder.blocks
    ]
    try:
        # inside of a compiled block no hook is called
        with torch.compiler.set_stance("force_eager"):
            encoder(image)
    finally:
        for handle in handles:
            handle.remove()
    return [float((added / token).mean()) for token, added in zip(lengths[::2], lengths[1::2], strict=True)]


@torch.no_grad()
def patch_r2(encoder: Encoder, image: torch.Tensor, valid: torch.Tensor) -> float:
    """Return how much of its own patch a token tells, by ridge regression: R2 over voxels of the first window.

    Every second token of the image fits the regression, the others are measured.

    Args:
        image: (1, windows, D, H, W) in [0, 1].
        valid: (1, 1, D, H, W) bool, False in padding; tokens with padding are left out.
    """
    patch_size = encoder.config.patch_size
    whole = patchify(valid.float(), patch_size)[0].mean(1) == 1
    tokens = encoder(image)[-1][0][whole].double()
    patches = patchify(image[:, :1], patch_size)[0][whole].double()
    fit, test = slice(0, None, 2), slice(1, None, 2)
    x = (tokens - tokens[fit].mean(0)) / tokens[fit].std(0).clamp_min(1e-6)
    mean = patches[fit].mean(0)
    gram = x[fit].T @ x[fit]
    ridge = RIDGE * len(x[fit]) * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    weight = torch.linalg.solve(gram + ridge, x[fit].T @ (patches[fit] - mean))
    error = patches[test] - mean - x[test] @ weight
    return float(1 - error.square().sum() / (patches[test] - mean).square().sum())


@torch.no_grad()
def preview(
    model: Any, superpatch: ValidationSuperpatch, device: torch.device, bf16: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a superpatch, the same with hidden patches at 0, and with them predicted; (D, H, W) in [0, 1], LPS."""
    made = _reconstruct(model, superpatch, device, bf16)
    image = superpatch.image[:, :1]
    patches = made.hidden_patches.float().cpu().clamp(0, 1)
    masked, whole = (
        composite(image, made.hidden.cpu(), p, model.config.patch_size)[0, 0].numpy()
        for p in (torch.zeros_like(patches), patches)
    )
    return image[0, 0].numpy(), masked, whole


def write_preview_picture(path: Path, image: np.ndarray, masked: np.ndarray, composite: np.ndarray) -> None:
    """Write a picture: rows axial, coronal, sagittal; columns input, masked, composite, error.

    The error is drawn around mid-grey, black and white at -300 and +300 HU of the wide window.
    """
    volumes = (image, masked, composite, 0.5 + (composite - image) / 0.3)
    rows = [np.concatenate([_middle(volume, axis) for volume in volumes], 1) for axis in range(3)]
    width = max(row.shape[1] for row in rows)
    picture = np.concatenate([np.pad(row, ((0, 0), (0, width - row.shape[1]))) for row in rows])
    write_bytes(path, _grey_png(picture))


def write_preview_volume(
    path: Path, image: np.ndarray, masked: np.ndarray, composite: np.ndarray, preprocessing: Preprocessing
) -> None:
    """Write masked, reconstruction and error in HU, int16, with ``spacing_mm``, as one .npz for a viewer."""
    low, high = preprocessing.window_hu
    arrays = {
        "masked": low + masked * (high - low),
        "reconstruction": low + composite * (high - low),
        "error": (composite - image) * (high - low),
    }
    whole = {kind: np.rint(array).astype(np.int16) for kind, array in arrays.items()}
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **whole, spacing_mm=np.float64(preprocessing.spacing_mm))


def _grey_png(picture: np.ndarray) -> bytes:
    """Return (H, W) intensities in [0, 1] as an 8-bit PNG, by the standard library alone: training nodes are bare.

    Format: PNG specification (ISO/IEC 15948), colour type 0, filter 0 on every row.
    """
    grey = np.clip(np.rint(np.asarray(picture, np.float32) * 255), 0, 255).astype(np.uint8)
    height, width = grey.shape
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(np.pad(grey, ((0, 0), (1, 0))).tobytes(), 6)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b""))
    )


def _middle(volume: np.ndarray, axis: int) -> np.ndarray:
    view = volume.take(volume.shape[axis] // 2, axis)
    # superior is up in the coronal and the sagittal view
    return view if axis == 0 else view[::-1]


def _reconstruct(model: Network, superpatch: ValidationSuperpatch, device: torch.device, bf16: bool) -> Reconstructed:
    with precision_context(device, bf16):
        image, filled = superpatch.image.to(device), superpatch.filled.to(device)
        return model.reconstruct(image, superpatch.visible.to(device), filled)
