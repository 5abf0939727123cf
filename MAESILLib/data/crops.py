"""Where the voxels of a batch come from: the cache's files, read by threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import torch

from MAESILLib.data.sampling import CropSampler


class Crops(Protocol):
    """Gives the voxels of samples."""

    def stack(self, samples: range) -> tuple[torch.Tensor, torch.Tensor]:
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

    def stack(self, samples: range) -> tuple[torch.Tensor, torch.Tensor]:
        hu = torch.empty((len(samples), 1, *self.sampler.crop_size), dtype=torch.int16, pin_memory=self.pin)
        sizes = torch.tensor(list(self.pool.map(self._read, samples, hu[:, 0])))
        return hu, sizes

    def close(self) -> None:
        self.pool.shutdown(wait=True, cancel_futures=True)

    def _read(self, sample: int, into: torch.Tensor) -> tuple[int, int, int]:
        crop = self.sampler.crop(sample)
        into.numpy()[...] = crop.hu
        return crop.valid_size
