"""From voxels to patches: which of them belong to the body, show a class, or do not."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from MAESILLib.body import body_mask
from MAESILLib.data.cache import Cache
from MAESILLib.geometry import Geometry
from MAESILLib.probe.labels import LabelSource, structures
from MAESILLib.superpatch import Shape

Indices = NDArray[np.int64]
HALF = 0.5
"""Share of a patch's voxels from which on it is of the body, or of a class."""
NO_PATCHES: Indices = np.zeros(0, np.int64)


@dataclass(frozen=True, eq=False)
class PatchLabels:
    """What the patches of a volume show; patches are numbered in row-major order on the volume's patch grid.

    Attributes:
        body: sorted numbers of the patches of the body; no other counts.
        positive: of each class present, the patches at least half of whose voxels are of it.
        partial: of each class present, the patches with fewer voxels of it: neither positive nor negative.
        annotated: the classes that the label map would show if the volume had them.
    """

    body: Indices
    positive: dict[str, Indices]
    partial: dict[str, Indices]
    annotated: frozenset[str]

    def positives(self, name: str) -> Indices:
        """Return the patches of a class."""
        return self.positive.get(name, NO_PATCHES)

    def negatives(self, name: str) -> Indices:
        """Return the patches of the body without a voxel of a class."""
        touched = np.concatenate([self.positives(name), self.partial.get(name, NO_PATCHES)])
        return np.setdiff1d(self.body, touched, assume_unique=True)


def patch_shares(inside: NDArray[np.bool_], patch_size: Shape) -> NDArray[np.float64]:
    """Return the share of voxels that are ``inside`` (D, H, W) in each patch; padding beyond the volume is no voxel.

    Returns:
        (ceil(D/p), ceil(H/p), ceil(W/p))
    """
    counts = inside.astype(np.int64)
    for axis, (n, p) in enumerate(zip(inside.shape, patch_size, strict=True)):
        counts = np.add.reduceat(counts, np.arange(0, n, p), axis)
    d, h, w = (np.minimum(p, n - np.arange(0, n, p)) for n, p in zip(inside.shape, patch_size, strict=True))
    shares: NDArray[np.float64] = counts / (d[:, None, None] * h[None, :, None] * w[None, None, :])
    return shares


def label_patches(source: LabelSource, geometry: Geometry, cache: Cache, patch_size: Shape) -> PatchLabels:
    """Read the label map of a volume and say what its patches show.

    Args:
        geometry: of the CT.

    Raises:
        InputError: as :func:`MAESILLib.probe.labels.structures`.
    """
    body = patch_shares(body_mask(np.asarray(cache.open(source.entry))), patch_size).ravel() >= HALF
    positive, partial = {}, {}
    for name, inside in structures(source, geometry, cache.spacing_mm):
        shares = patch_shares(inside, patch_size).ravel()
        positive[name] = np.flatnonzero(body & (shares >= HALF))
        partial[name] = np.flatnonzero(body & (shares > 0) & (shares < HALF))
    return PatchLabels(np.flatnonzero(body), positive, partial, source.stated | positive.keys())


def with_unnamed(labels: dict[str, PatchLabels], sources: Iterable[LabelSource]) -> dict[str, PatchLabels]:
    """Take a value that nobody names for annotated in every volume of its data set, and tell data sets apart.

    Where several data sets have values without a name, ``label 1`` of each is a class of its own.

    Args:
        labels: by the name of the volume.
    """
    unnamed: dict[str, set[str]] = {}
    dataset_of = {}
    for source in sources:
        if not source.is_folder:
            dataset_of[source.entry.name] = source.entry.dataset
            found = labels[source.entry.name].annotated - source.stated
            unnamed.setdefault(source.entry.dataset, set()).update(found)
    several = sum(map(bool, unnamed.values())) > 1
    result = dict(labels)
    for volume, dataset in dataset_of.items():
        titles = {name: f"{name} ({dataset or 'no data set'})" if several else name for name in unnamed[dataset]}
        one = labels[volume]
        result[volume] = replace(
            one,
            positive={titles.get(name, name): found for name, found in one.positive.items()},
            partial={titles.get(name, name): found for name, found in one.partial.items()},
            annotated=(one.annotated - titles.keys()) | set(titles.values()),
        )
    return result


def drawn_patches(
    labels: PatchLabels, classes: Iterable[str], most: int, volume: str, seed: int
) -> dict[str, tuple[Indices, Indices]]:
    """Draw the patches of a volume that train: for each class at most ``most`` positive and as many negative ones.

    All classes draw in the same random order of the body's patches, which depends on seed and volume alone.

    Returns:
        positive and negative patches of each class that the volume is annotated for, in the order drawn.
    """
    order = np.random.default_rng([seed, zlib.crc32(volume.encode())]).permutation(labels.body)
    drawn = {}
    for name in classes:
        if name in labels.annotated:
            positive, negative = labels.positives(name), labels.negatives(name)
            drawn[name] = (order[np.isin(order, positive)][:most], order[np.isin(order, negative)][:most])
    return drawn
