"""Label maps of a cache: its volumes that have one, and labelled points drawn in them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from MAESILLib.ct.body import body_mask
from MAESILLib.data.cache import Cache, CacheEntry, read_cache
from MAESILLib.probe.points import Point
from MAESILLib.probe.windows import PATCH, SPACING_MM
from MAESILLib.runtime.errors import InputError

BACKGROUND = "background"
"""Body without a label; it counts as a structure."""
Read = tuple[NDArray[np.int16], NDArray[np.int32], list[str]]
"""HU and codes (D, H, W) of a volume, and the names of the codes from 0."""
POINTS_EACH = 10
"""Points drawn of each structure in each volume."""
HALF = 0.5
"""Share of a token's voxels that a structure has to fill."""


@dataclass(frozen=True)
class LabelledVolume:
    """A CT and its label map in a cache."""

    cache: Cache
    entry: CacheEntry

    def read(self) -> Read:
        """Read CT and labels.

        Code 0 is the background within the body; beyond the body the code is -1.

        Raises:
            InputError: a file of the cache is damaged.
        """
        hu = np.array(self.cache.open(self.entry))
        codes = self.cache.labels(self.entry).astype(np.int32)
        codes[(codes == 0) & ~body_mask(hu)] = -1
        return hu, codes, [BACKGROUND, *self.entry.labels]


def find_labelled(folder: Path) -> list[LabelledVolume]:
    """Return the volumes of a cache that have a label map.

    Raises:
        InputError: it is no cache at 1.5 mm, or has no label map.
    """
    cache = read_cache(folder)
    if cache.spacing_mm != SPACING_MM:
        raise InputError(f"{folder} has {cache.spacing_mm} mm voxels", f"prepare it with --spacing {SPACING_MM}")
    volumes = [LabelledVolume(cache, entry) for entry in cache.entries if entry.labels]
    if not volumes:
        raise InputError(f"{folder} has no label map", "name them in the column 'labels' of a manifest, and prepare it")
    return volumes


def points_of(volumes: Sequence[LabelledVolume], seed: int = 0) -> list[Point]:
    """Draw labelled points: of each structure in each volume at most ten, among voxels where it fills half a token."""
    points: list[Point] = []
    for number, volume in enumerate(volumes):
        entry, path = volume.entry, volume.cache.path(volume.entry)
        _, codes, names = volume.read()
        rng = np.random.default_rng([seed, number])
        # as found, 1 is the background in the body
        for code, box in enumerate(ndimage.find_objects(codes + 1)):
            if box is None:
                continue
            wide = tuple(slice(max(0, part.start - PATCH), part.stop + PATCH) for part in box)
            filled = ndimage.uniform_filter((codes[wide] == code).astype(np.float32), PATCH, mode="constant")
            inside = np.argwhere(filled >= HALF - 1e-4) + [part.start for part in wide]
            for kji in inside[rng.permutation(len(inside))[:POINTS_EACH]]:
                points.append(Point(path, kji, names[code], entry.patient_label, entry.split, len(points)))
    if not points:
        raise InputError(f"{volumes[0].entry.name} shows no body", "give CTs with label maps")
    return points
