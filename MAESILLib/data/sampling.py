"""Random superpatches for training, each a pure function of (seed, sample number).

Nothing has a state that would have to be saved: resuming at a step is asking for its samples, and
how samples are shared out over ranks or accumulated over passes does not change them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from MAESILLib.data.cache import Cache, CacheEntry
from MAESILLib.data.foreground import FOREGROUND_HU, foreground_share
from MAESILLib.mae.superpatch import Shape, Superpatch, extract
from MAESILLib.runtime.errors import InputError

__all__ = ["FOREGROUND_HU", "Choice", "Crop", "CropSampler", "random_for"]

AIR_HU = -1024
TRIES = 8
OPEN_VOLUMES = 256
"""Each open volume takes a file descriptor, of which a process has 1024 on many systems."""
OPEN_TABLES = 8192
"""Kept in memory, about 60 KB each."""


@dataclass(frozen=True)
class Choice:
    """Where a training superpatch lies; nothing of it was read.

    Attributes:
        volume: index into the sampler's entries.
        start: first voxel (D, H, W).
        size: voxels (D, H, W) of the volume, fewer than the crop's where the volume is shorter.
        crop_size: voxels (D, H, W) of the crop.
        is_flipped: left and right are mirrored.
    """

    volume: int
    start: Shape
    size: Shape
    crop_size: Shape
    is_flipped: bool


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
            cache.open(entry)
            cache.foreground(entry)
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
        self._volume = lru_cache(OPEN_VOLUMES)(lambda index: cache.open(entries[index]))
        self._table = lru_cache(OPEN_TABLES)(lambda index: np.array(cache.foreground(entries[index])))

    def choose(self, sample: int, crop_size: Shape) -> Choice:
        """Choose where sample number ``sample`` lies, without reading a voxel.

        Args:
            crop_size: voxels (D, H, W), a multiple of the patch.
        """
        rng = random_for(self.seed, "crop", sample)
        best: tuple[float, int, Superpatch] | None = None
        for _ in range(TRIES):
            which = min(int(np.searchsorted(self.cumulative, rng.random(), side="right")), len(self.entries) - 1)
            box = _random_box(self.entries[which].shape_dhw, crop_size, rng)
            share = self._foreground_share(which, box)
            if best is None or share > best[0]:
                best = (share, which, box)
            if share >= self.min_foreground:
                break
        assert best is not None
        _, which, box = best
        is_flipped = self.flip and bool(rng.random() < 0.5)
        return Choice(which, box.start, _size_in(box, self.entries[which].shape_dhw), crop_size, is_flipped)

    def read(self, choice: Choice) -> Crop:
        """Read what was chosen."""
        box = Superpatch(0, choice.start, choice.size)
        hu = self._volume(choice.volume)[box.in_volume(self.entries[choice.volume].shape_dhw)]
        hu = np.flip(hu, 2) if choice.is_flipped else hu
        return Crop(_padded(hu, choice.crop_size, self.patch_size), choice.size, self.entries[choice.volume].name)

    def crop(self, sample: int, crop_size: Shape) -> Crop:
        """Return sample number ``sample``."""
        return self.read(self.choose(sample, crop_size))

    def _foreground_share(self, which: int, box: Superpatch) -> float:
        shape = self.entries[which].shape_dhw
        return foreground_share(self._table(which), shape, box.start, _size_in(box, shape))


def _random_box(shape: Shape, crop_size: Shape, rng: np.random.Generator) -> Superpatch:
    d, h, w = (_random_start(n, c, rng) for n, c in zip(shape, crop_size, strict=True))
    return Superpatch(0, (d, h, w), crop_size)


def _size_in(box: Superpatch, shape: Shape) -> Shape:
    """Return the voxels (D, H, W) of a volume that a box covers."""
    d, h, w = (part.stop - part.start for part in box.in_volume(shape))
    return d, h, w


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
    edged = extract(hu, Superpatch(0, (0, 0, 0), (d, h, w)))
    padded = np.full(size, AIR_HU, np.int16)
    padded[:d, :h, :w] = edged
    return padded
