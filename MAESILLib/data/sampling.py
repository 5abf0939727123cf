"""Random superpatches for training, each a pure function of (seed, sample number).

Nothing has a state that would have to be saved: resuming at a step is asking for its samples, and
how samples are shared out over ranks or accumulated over passes does not change them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from MAESILLib.data.cache import Cache, CacheEntry
from MAESILLib.superpatch import Shape, Superpatch, extract

FOREGROUND_HU = -500
TRIES = 8


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


class CropSampler:
    """Draws crops from the volumes of a cache.

    Args:
        crop_size: voxels (D, H, W), a multiple of ``patch_size``.
        volume_weighting: volumes are drawn with their voxel count to this power.
        min_foreground: least share of voxels above -500 HU; after 8 tries the best is taken.
    """

    def __init__(
        self,
        cache: Cache,
        entries: tuple[CacheEntry, ...],
        *,
        crop_size: Shape,
        patch_size: Shape,
        volume_weighting: float,
        min_foreground: float,
        flip: bool,
        seed: int,
    ) -> None:
        self.volumes = [cache.open(e) for e in entries]
        self.names = [e.name for e in entries]
        weights = np.array([float(np.prod(e.shape_dhw)) for e in entries]) ** volume_weighting
        self.cumulative = np.cumsum(weights / weights.sum())
        self.crop_size, self.patch_size = crop_size, patch_size
        self.min_foreground, self.flip, self.seed = min_foreground, flip, seed

    def crop(self, sample: int) -> Crop:
        """Return sample number ``sample``."""
        rng = random_for(self.seed, "crop", sample)
        best: tuple[float, np.ndarray, Superpatch, int] | None = None
        for _ in range(TRIES):
            which = min(int(np.searchsorted(self.cumulative, rng.random(), side="right")), len(self.volumes) - 1)
            box = self._random_box(self.volumes[which].shape, rng)
            hu = self.volumes[which][box.in_volume(self.volumes[which].shape)]
            share = float(np.mean(hu > FOREGROUND_HU))
            if best is None or share > best[0]:
                best = (share, hu, box, which)
            if share >= self.min_foreground:
                break
        assert best is not None
        _, hu, box, which = best
        flips = rng.random(3) < 0.5 if self.flip else np.zeros(3, bool)
        hu = np.flip(hu, tuple(np.flatnonzero(flips)))
        return Crop(
            _padded(hu, self.crop_size, self.patch_size),
            (hu.shape[0], hu.shape[1], hu.shape[2]),
            self.names[which],
        )

    def _random_box(self, shape: Shape, rng: np.random.Generator) -> Superpatch:
        d, h, w = (_random_start(n, c, rng) for n, c in zip(shape, self.crop_size, strict=True))
        return Superpatch(0, (d, h, w), self.crop_size)


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
    padded = np.full(size, -1024, np.int16)
    padded[:d, :h, :w] = edged
    return padded
