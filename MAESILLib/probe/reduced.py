"""A reduced probe for use during training: few windows kept in memory, one draw, two blocks, a fixed ridge."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from MAESILLib.probe.features import Array, Encode, tokens_of
from MAESILLib.probe.fit import FOLDS, SOFT_TISSUE, Labels, aurocs, labels_of, macro, recalls, scores_of_folds
from MAESILLib.probe.points import Points, read_hu, stratified, without_side
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


def reduce_points(points: Points, size: int = 64, most: int = MOST_POINTS, seed: int = 0) -> ReducedPoints:
    """Choose at most ``most`` points, spread over structures and patients, and cut one window at random for each.

    Raises:
        InputError: a volume cannot be read.
    """
    chosen = stratified(points, most, seed)
    windows = [window_of_point(kji, int(n), 0, size) for kji, n in zip(chosen.kji, chosen.number, strict=True)]
    hu = np.empty((len(windows), size, size, size), np.int16)
    for number in np.unique(chosen.file):
        volume = read_hu(chosen.files[number])
        for row in np.flatnonzero(chosen.file == number):
            hu[row] = cut(volume, windows[row][0], size)
    labels = labels_of(without_side(chosen.structure), chosen.patient)
    return ReducedPoints(hu, np.array([place for _, place in windows]), labels)


def reduced_probe(
    encode: Encode, points: ReducedPoints, *, alpha: float = ALPHA, device: torch.device | str = "cpu"
) -> dict[str, float]:
    """Probe an encoder across patients, the block at half its depth and the last.

    One window of each point is fitted on and measured, by five folds of patients; alpha is fixed. So its values are
    lower than the full probe's, and serve to compare states of one training.

    Args:
        encode: HU (B, D, H, W) float on ``device`` -> after each block (B, tokens, width).

    Returns:
        ``auroc``, ``auroc_soft`` (soft tissue, where the points show some) and ``balanced_accuracy``, means of the two
        blocks, and ``auroc_block_N`` of each.
    """
    parts: dict[int, list[Array]] = defaultdict(list)
    step = batch_size(points.hu.shape[1])
    for first in range(0, len(points.hu), step):
        hu, place = points.hu[first : first + step], points.place[first : first + step]
        every = tokens_of(encode, None, hu, np.arange(len(hu)), place, device)
        for block in {max(1, len(every) // 2), len(every)}:
            parts[block].append(every[block - 1])
    metrics: dict[str, list[float]] = defaultdict(list)
    soft = np.isin(points.labels.structures, SOFT_TISSUE)
    for block, tokens in sorted(parts.items()):
        scores = scores_of_folds([(np.concatenate(tokens)[None], alpha)] * FOLDS, points.labels)
        table = aurocs(scores, points.labels, np.ones(len(scores), bool))
        metrics["auroc"].append(macro(table))
        metrics["balanced_accuracy"].append(macro(recalls(scores, points.labels)))
        metrics[f"auroc_block_{block}"].append(macro(table))
        if soft.any():
            metrics["auroc_soft"].append(macro(table[:, soft]))
    return {name: float(np.mean(values)) for name, values in metrics.items()}
