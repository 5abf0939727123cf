"""Where the voxels of a batch come from: files read by threads, or volumes that lie on the device."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
import torch

from MAESILLib.data.cache import Cache, CacheEntry
from MAESILLib.data.sampling import AIR_HU, Choice, CropSampler
from MAESILLib.superpatch import Shape


class Crops(Protocol):
    """Gives the voxels of samples."""

    def stack(self, samples: range, crop_size: Shape) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (B, 1, D, H, W) int16 HU, and (B, 3) int64 on the CPU: how many voxels are not padding."""

    def close(self) -> None:
        """Let go of threads and memory."""


class HostCrops:
    """Crops read from memory-mapped files.

    Args:
        threads: that read at the same time; a sample is the same whoever reads it.
        pin: hand out page-locked memory, from which a card copies without waiting.
    """

    def __init__(self, sampler: CropSampler, threads: int = 1, pin: bool = False) -> None:
        self.sampler, self.pin = sampler, pin
        self.pool = ThreadPoolExecutor(threads, "crops")

    def stack(self, samples: range, crop_size: Shape) -> tuple[torch.Tensor, torch.Tensor]:
        hu = torch.empty((len(samples), 1, *crop_size), dtype=torch.int16, pin_memory=self.pin)
        sizes = torch.tensor(list(self.pool.map(self._read, samples, hu[:, 0])))
        return hu, sizes

    def close(self) -> None:
        self.pool.shutdown(wait=True, cancel_futures=True)

    def _read(self, sample: int, into: torch.Tensor) -> tuple[int, int, int]:
        d, h, w = into.shape
        crop = self.sampler.crop(sample, (d, h, w))
        into.numpy()[...] = crop.hu
        return crop.valid_size


class DeviceCrops:
    """Crops cut on the device from volumes that were copied there once; the same voxels as :class:`HostCrops`.

    What to cut is chosen from the cache's foreground tables, so that nobody waits for the device.
    """

    def __init__(self, sampler: CropSampler, cache: Cache, device: torch.device) -> None:
        self.sampler, self.device = sampler, device
        self.volumes = [torch.from_numpy(np.array(cache.open(entry))).to(device) for entry in sampler.entries]

    def stack(self, samples: range, crop_size: Shape) -> tuple[torch.Tensor, torch.Tensor]:
        choices = [self.sampler.choose(sample, crop_size) for sample in samples]
        crops = torch.stack([self._cut(choice) for choice in choices])
        return crops[:, None], torch.tensor([choice.size for choice in choices])

    def close(self) -> None:
        self.volumes = []

    def _cut(self, choice: Choice) -> torch.Tensor:
        hu = self.volumes[choice.volume]
        for axis, (start, size) in enumerate(zip(choice.start, choice.size, strict=True)):
            hu = hu.narrow(axis, start, size)
        hu = hu.flip(2) if choice.is_flipped else hu
        return hu if choice.size == choice.crop_size else self._padded(hu, choice.crop_size)

    def _padded(self, hu: torch.Tensor, whole: Shape) -> torch.Tensor:
        """Pad as the sampler does: the last patch by repeating the edge, whole patches with air."""
        padded = torch.full(whole, AIR_HU, dtype=hu.dtype, device=hu.device)
        for axis, patch in enumerate(self.sampler.patch_size):
            missing = -hu.shape[axis] % patch
            if missing:
                edge = hu.narrow(axis, hu.shape[axis] - 1, 1)
                hu = torch.cat([hu, edge.expand(*(missing if a == axis else -1 for a in range(3)))], axis)
        d, h, w = hu.shape
        padded[:d, :h, :w] = hu
        return padded


def fits_on(device: torch.device, entries: tuple[CacheEntry, ...], share: float) -> bool:
    """Say whether the volumes take at most this share of a card's free memory; only cards hold volumes."""
    if device.type != "cuda":
        return False
    needed = sum(2 * d * h * w for d, h, w in (entry.shape_dhw for entry in entries))
    return needed <= share * torch.cuda.mem_get_info(device)[0]
