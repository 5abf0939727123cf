"""A reduced probe for use during training: few windows kept in memory, one draw, two blocks, a fixed ridge."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from MAESILLib.probe.features import Array, Encode, tokens_of
from MAESILLib.probe.fit import SOFT_TISSUE, Labels, across_patients, labels_of, macro, within_patients
from MAESILLib.probe.points import Point, read_hu, stratified, without_side
from MAESILLib.probe.windows import batch_size, cut, window_of_point

ALPHA = 1e3
MOST_POINTS = 400


@dataclass(frozen=True, eq=False)
class ReducedPoints:
    """Windows of points, kept in memory: 2 bytes a voxel, 210 MB for 400 windows of 64 voxels.

    Attributes:
        hu: (N, D, H, W) int16.
        place: (N, 3) of each point's token.
    """

    hu: NDArray[np.int16]
    place: NDArray[np.int64]
    labels: Labels


def reduce_points(points: Sequence[Point], size: int = 64, most: int = MOST_POINTS) -> ReducedPoints:
    """Choose at most ``most`` points, spread over structures and patients, and cut one window at random for each.

    Raises:
        InputError: a volume cannot be read.
    """
    chosen = stratified(points, most)
    hu = np.empty((len(chosen), size, size, size), np.int16)
    place = np.empty((len(chosen), 3), np.int64)
    for file in {point.file for point in chosen}:
        volume = read_hu(file)
        for row, point in enumerate(chosen):
            if point.file == file:
                start, place[row] = window_of_point(point.kji, point.number, 0, size)
                hu[row] = cut(volume, start, size)
    labels = labels_of([without_side(point.structure) for point in chosen], [point.patient for point in chosen])
    return ReducedPoints(hu, place, labels)


def reduced_probe(encode: Encode, points: ReducedPoints, *, device: torch.device | str = "cpu") -> dict[str, float]:
    """Probe an encoder across patients, the block at half its depth and the last.

    One window of each point is fitted on and measured, by five folds of patients; alpha is fixed. So its values are
    lower than the full probe's, and serve to compare states of one training.

    Args:
        encode: HU (B, D, H, W) float on ``device`` -> after each block (B, tokens, width).

    Returns:
        ``auroc`` and, where the points show soft tissue, ``auroc_soft``, means of the two blocks.
    """
    parts: dict[int, list[Array]] = defaultdict(list)
    step = batch_size(points.hu.shape[1])
    for first in range(0, len(points.hu), step):
        hu, place = points.hu[first : first + step], points.place[first : first + step]
        for block, tokens in tokens_of(encode, hu, np.arange(len(hu)), place, device).items():
            parts[block].append(tokens)
    labels = points.labels
    areas = []
    for block in {min(parts), max(parts)}:
        scores = across_patients({block: np.concatenate(parts[block])[None]}, labels, (block, ALPHA))
        areas.append(within_patients(scores, labels)[0])
    soft = np.isin(labels.structures, SOFT_TISSUE)
    found = {"auroc": float(np.mean([macro(one) for one in areas]))}
    if soft.any():
        found["auroc_soft"] = float(np.mean([macro(one[:, soft]) for one in areas]))
    return found
