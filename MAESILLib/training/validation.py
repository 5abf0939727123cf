"""Validation with masks on, from fixed seeds, and the preview picture.

What is measured is what the model is for: hidden patches it has not seen. The superpatches and their
masks depend on the data alone, so every run over a cache is measured on the same ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from MAESILLib.config import Config, Preprocessing
from MAESILLib.data.cache import Cache, CacheEntry
from MAESILLib.data.foreground import FOREGROUND_HU
from MAESILLib.mae.harmonic import biharmonic_fill, harmonic_fill
from MAESILLib.mae.masking import MaskSpec, draw_visible, generator_for, hidden_tokens, visible_count
from MAESILLib.mae.model import composite, patchify, spread, take_tokens, valid_voxels, windowed
from MAESILLib.mae.network import Network, Reconstructed
from MAESILLib.mae.superpatch import Superpatch, extract, partition, token_grid
from MAESILLib.runtime.device import precision_context
from MAESILLib.runtime.files import atomic_path
from MAESILLib.training.png import write_grey_png
from MAESILLib.training.ranks import ALONE, Ranks

SEED = 1000
MASK = MaskSpec("dual", 0.5, 0.5)


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
    shape = (volume.shape[0], volume.shape[1], volume.shape[2])
    boxes = partition(shape, config.model.superpatch_size, config.model.patch_size)
    shares = {box.index: float((volume[box.in_volume(shape)] > FOREGROUND_HU).mean()) for box in boxes}
    usable = [box for box in boxes if _hides_something(token_grid(box.size, config.model.patch_size))]
    return sorted(usable, key=lambda box: -shares[box.index])


def _hides_something(grid: tuple[int, int, int]) -> bool:
    return visible_count(grid, MASK) < grid[0] * grid[1] * grid[2]


def _superpatch(volume: np.ndarray, name: str, box: Superpatch, config: Config) -> ValidationSuperpatch:
    shape = (volume.shape[0], volume.shape[1], volume.shape[2])
    hu = torch.from_numpy(extract(volume, box).astype(np.float32))[None, None]
    image = windowed(hu, config.preprocessing.windows_hu)
    grid = token_grid(box.size, config.model.patch_size)
    visible = draw_visible(grid, MASK, 1, generator_for(SEED, name, box.index))
    valid = valid_voxels(torch.tensor([[s.stop for s in box.in_box(shape)]]), torch.Size(box.size))
    hidden = spread(hidden_tokens(visible, grid), config.model.patch_size)
    known = ~hidden & valid
    filled = biharmonic_fill(harmonic_fill(image[:, :1], known), known)
    return ValidationSuperpatch(name, image, valid, visible, filled)


@torch.no_grad()
def validate(
    model: Network,
    superpatches: list[ValidationSuperpatch],
    device: torch.device,
    bf16: bool,
    ranks: Ranks = ALONE,
) -> float:
    """Return the mean over superpatches of the PSNR over hidden voxels, in dB; the ranks share them out."""
    total = 0.0
    for superpatch in superpatches[ranks.rank :: ranks.size]:
        total += _psnr_masked(model, superpatch, _reconstruct(model, superpatch, device, bf16))
    return float(ranks.sum(torch.tensor(total, dtype=torch.float64))) / len(superpatches)


@dataclass(frozen=True)
class Preview:
    """A validation superpatch as the model sees and completes it; arrays (D, H, W) in [0, 1], LPS order.

    Attributes:
        image: the input.
        masked: hidden patches at 0.
        composite: hidden patches predicted.
    """

    image: np.ndarray
    masked: np.ndarray
    composite: np.ndarray


@torch.no_grad()
def preview(model: Network, superpatch: ValidationSuperpatch, device: torch.device, bf16: bool) -> Preview:
    """Complete one superpatch."""
    made = _reconstruct(model, superpatch, device, bf16)
    image = superpatch.image[:, :1]
    patches = made.hidden_patches.float().cpu().clamp(0, 1)
    masked, whole = (
        composite(image, made.hidden.cpu(), p, model.config.patch_size)[0, 0].numpy()
        for p in (torch.zeros_like(patches), patches)
    )
    return Preview(image[0, 0].numpy(), masked, whole)


def write_preview_picture(path: Path, shown: Preview) -> None:
    """Write a picture: rows axial, coronal, sagittal; columns input, masked, composite, error.

    The error is drawn around mid-grey, black and white at -300 and +300 HU of the wide window.
    """
    error = 0.5 + (shown.composite - shown.image) / 0.3
    rows = []
    for axis in range(3):
        views = [_middle(v, axis) for v in (shown.image, shown.masked, shown.composite, error)]
        rows.append(np.concatenate(views, 1))
    width = max(row.shape[1] for row in rows)
    write_grey_png(path, np.concatenate([np.pad(row, ((0, 0), (0, width - row.shape[1]))) for row in rows]))


def write_preview_volume(path: Path, shown: Preview, preprocessing: Preprocessing) -> None:
    """Write masked, reconstruction and error in HU, int16, with ``spacing_mm``, as one .npz for a viewer."""
    low, high = preprocessing.window_hu
    arrays = {
        "masked": low + shown.masked * (high - low),
        "reconstruction": low + shown.composite * (high - low),
        "error": (shown.composite - shown.image) * (high - low),
    }
    whole = {kind: np.rint(array).astype(np.int16) for kind, array in arrays.items()}
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **whole, spacing_mm=np.float64(preprocessing.spacing_mm))


def _middle(volume: np.ndarray, axis: int) -> np.ndarray:
    view = volume.take(volume.shape[axis] // 2, axis)
    # superior is up in the coronal and the sagittal view
    return view if axis == 0 else view[::-1]


def _reconstruct(model: Network, superpatch: ValidationSuperpatch, device: torch.device, bf16: bool) -> Reconstructed:
    with precision_context(device, bf16):
        image, filled = superpatch.image.to(device), superpatch.filled.to(device)
        return model.reconstruct(image, superpatch.visible.to(device), filled)


def _psnr_masked(model: Network, superpatch: ValidationSuperpatch, made: Reconstructed) -> float:
    patch_size, hidden = model.config.patch_size, made.hidden.cpu()
    target = take_tokens(patchify(superpatch.image[:, :1], patch_size), hidden).double()
    weight = take_tokens(patchify(superpatch.valid.double(), patch_size), hidden)
    error = (made.hidden_patches.cpu().double().clamp(0, 1) - target).square() * weight
    return -10 * math.log10(max(float(error.sum() / weight.sum()), 1e-12))
