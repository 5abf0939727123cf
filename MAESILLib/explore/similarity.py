"""Cosine similarity of a volume's features to those of query points, and the best matches."""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import map_coordinates, maximum_filter, uniform_filter

from MAESILLib.explore.features import Features
from MAESILLib.runtime.errors import InputError

APART_MM = 24.0
"""Matches are at least as far from each other as two tokens."""

AROUND = (24, 56)
"""Sides, in voxels of the model's grid, of the cubes over which features are averaged before they are compared."""


def surroundings(features: Features) -> Features:
    """Return the means of features over cubes of ``AROUND`` voxels, standardised in the patient, (2 C, D, H, W).

    A place is recognised by what lies around it more often than by itself: ``Testing/Benchmarks/bench_similar.py``.
    """
    found = np.empty((len(AROUND) * len(features.values), *features.body.shape), np.float16)
    # an odd number of cells has a middle
    sides = [side // features.origin.stride | 1 for side in AROUND]
    for number, target in enumerate(found):
        channel = features.values[number // len(sides)].astype(np.float32)
        mean = uniform_filter(channel, sides[number % len(sides)], mode="nearest")
        target[:] = (mean - mean[features.body].mean()) / (mean[features.body].std() + 1e-4)
    return replace(features, values=found)


def features_at(features: Features, points_lps: ArrayLike) -> NDArray[np.float32]:
    """Return the features (N, C) at points (N, 3) in mm, interpolated between cells.

    Raises:
        InputError: a point lies outside the volume.
    """
    points, geometry = np.asarray(points_lps, np.float64), features.cells.geometry
    index = geometry.index(points)
    outside = ((index < -0.5) | (index > np.array(geometry.size_dhw) - 0.5)).any(1)
    for x, y, z in points[outside]:
        raise InputError(f"R A S = {-x:g} {-y:g} {z:g} mm lies outside the volume", "give a point in the volume")
    # the features of a cell at the border continue beyond it
    channels = (channel.astype(np.float32) for channel in features.values)
    return np.stack([map_coordinates(channel, index.T, order=1, mode="nearest") for channel in channels], 1)


def directions(values: NDArray[Any]) -> NDArray[np.float32]:
    """Return features (C, ...) of length 1: what is compared with any query."""
    found = values.astype(np.float32)
    found /= np.maximum(np.linalg.norm(found, axis=0), 1e-6)
    return found


def similarity_map(cells: NDArray[np.float32], queries: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the cosine similarity (D, H, W), -1 to 1, of every cell to the mean of K query directions.

    Args:
        cells: (C, D, H, W) :func:`directions`.
        queries: (C, K), likewise.
    """
    mean = queries.mean(1)
    return np.tensordot(mean / max(float(np.linalg.norm(mean)), 1e-6), cells, 1)


def best_matches(
    features: Features, similarity: NDArray[np.float32], count: int
) -> list[tuple[NDArray[np.float64], float]]:
    """Return the points (LPS, mm) of the highest similarity in the patient, and their similarity, best first.

    Each is a local maximum, and lies ``APART_MM`` or more from those before it.
    """
    inside = np.where(features.body, similarity, -np.inf)
    peaks = np.argwhere((inside == maximum_filter(inside, 3)) & features.body)
    found: list[tuple[NDArray[np.float64], float]] = []
    for peak in sorted(peaks, key=lambda at: -inside[tuple(at)]):
        point = features.cells.geometry.physical_point(peak)
        if all(np.linalg.norm(point - other) >= APART_MM for other, _ in found):
            found.append((point, float(inside[tuple(peak)])))
        if len(found) == count:
            break
    return found
