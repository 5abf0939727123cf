"""Random superpatches for training, each a pure function of (seed, sample number).

Nothing has a state that would have to be saved: resuming at a step is asking for its samples, and
how samples are shared out over ranks or accumulated over passes does not change them.
"""

import hashlib
import os
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from MAESILLib.data.cache import Cache, CacheEntry
from MAESILLib.data.foreground import foreground_share
from MAESILLib.mae.superpatch import Shape, Slices, Superpatch, extract
from MAESILLib.runtime.errors import InputError

AIR_HU = -1024
TRIES = 8
OPEN_VOLUMES = 256
"""Each open volume takes a file descriptor, of which a process has 1024 on many systems."""
OPEN_TABLES = 8192
"""Kept in memory, about 60 KB each."""


@dataclass(frozen=True)
class Crop:
    """A training superpatch.

    Attributes:
        hu: (D, H, W) int16; whole patches of padding are air.
        valid_size: (D, H, W), voxels that are not padding; they come first on each axis.
        source: name of the volume.
    """

    hu: np.ndarray
    valid_size: Shape
    source: str


def random_for(seed: int, *labels: object) -> np.random.Generator:
    """Return a generator that depends on ``seed`` and ``labels`` and on nothing else."""
    digest = hashlib.blake2b(repr((int(seed), *map(str, labels))).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))


def readable(cache: Cache, entries: tuple[CacheEntry, ...]) -> tuple[tuple[CacheEntry, ...], list[str]]:
    """Return the volumes that open, and an error for each of the others.

    A training of days must not find this out at its end.
    """
    usable, problems = [], []
    for entry in entries:
        try:
            cache.verify(entry, read=False)
        except InputError as error:
            problems.append(str(error))
        else:
            usable.append(entry)
    return tuple(usable), problems


class CropSampler:
    """Draws crops from the volumes of a cache.

    Args:
        volume_weighting: volumes are drawn with their voxel count to this power.
        min_foreground: least share of voxels above -500 HU, estimated from the volume's foreground table; after 8
            tries the best is taken.
        flip: mirror left and right in half of the crops. Mirroring other axes would erase which way is up.
    """

    def __init__(
        self,
        cache: Cache,
        entries: tuple[CacheEntry, ...],
        *,
        patch_size: Shape,
        volume_weighting: float,
        min_foreground: float,
        flip: bool,
        seed: int,
    ) -> None:
        self.entries = entries
        weights = np.array([float(np.prod(e.shape_dhw)) for e in entries]) ** volume_weighting
        self.cumulative = np.cumsum(weights / weights.sum())
        self.patch_size = patch_size
        self.min_foreground, self.flip, self.seed = min_foreground, flip, seed
        self._volume: Any = lru_cache(OPEN_VOLUMES)(lambda index: cache.open(entries[index]))
        self._table = lru_cache(OPEN_TABLES)(lambda index: np.array(cache.foreground(entries[index])))

    def crop(self, sample: int, crop_size: Shape) -> Crop:
        """Return sample number ``sample``; where it lies is drawn before a voxel is read.

        Args:
            crop_size: voxels (D, H, W), a multiple of the patch.
        """
        rng = random_for(self.seed, "crop", sample)
        best: tuple[float, int, Slices] | None = None
        for _ in range(TRIES):
            which = min(int(np.searchsorted(self.cumulative, rng.random(), side="right")), len(self.entries) - 1)
            shape = self.entries[which].shape_dhw
            d, h, w = (_random_start(n, c, rng) for n, c in zip(shape, crop_size, strict=True))
            box = Superpatch(0, (d, h, w), crop_size).in_volume(shape)
            share = foreground_share(self._table(which), shape, box)
            if best is None or share > best[0]:
                best = (share, which, box)
            if share >= self.min_foreground:
                break
        assert best is not None
        _, which, box = best
        volume = self._volume(which)
        if os.path.getsize(volume.filename) < volume.offset + volume.nbytes:
            # touching what a file has lost since ends the process; opening it says so
            self._volume.cache_clear()
            volume = self._volume(which)
        hu = volume[box]
        if self.flip and rng.random() < 0.5:
            hu = np.flip(hu, 2)
        return Crop(_padded(hu, crop_size, self.patch_size), hu.shape, self.entries[which].name)


def _random_start(length: int, crop: int, rng: np.random.Generator) -> int:
    """Draw where a crop begins; half a crop's reach beyond either end is clipped to it.

    Uniform starts would show the outermost planes, where every reconstruction begins, once in a hundred crops.
    """
    start = int(rng.integers(-(crop // 2), max(0, length - crop) + crop // 2 + 1))
    return min(max(start, 0), max(0, length - crop))


def _padded(hu: np.ndarray, size: Shape, patch_size: Shape) -> np.ndarray:
    """Pad at the end: the last patch by repeating the edge, whole patches with air.

    A repeated edge further out would show the encoder what a hidden patch holds.
    """
    if hu.shape == size:
        return np.ascontiguousarray(hu)
    d, h, w = (-(-n // p) * p for n, p in zip(hu.shape, patch_size, strict=True))
    padded = np.full(size, AIR_HU, np.int16)
    padded[:d, :h, :w] = extract(hu, Superpatch(0, (0, 0, 0), (d, h, w)))
    return padded
