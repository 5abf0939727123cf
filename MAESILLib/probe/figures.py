"""AUROC and average precision, as scikit-learn computes them, and the mean over what a patient has of them."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping

from numpy.typing import NDArray


def auroc(is_positive: NDArray, scores: NDArray) -> float:
    """Return the area under the ROC curve: how often a positive patch scores above a negative one, ties by half."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(is_positive, scores))


def average_precision(is_positive: NDArray, scores: NDArray) -> float:
    """Return the average precision, the sum of precision times gain in recall; of chance: the share of positives."""
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(is_positive, scores))


def by_patient(figures: Mapping[str, float], patients: Mapping[str, str]) -> dict[str, float]:
    """Return the mean over the volumes of each patient.

    Args:
        figures: of each volume.
        patients: of each volume.
    """
    found: dict[str, list[float]] = defaultdict(list)
    for volume, value in figures.items():
        found[patients[volume]].append(value)
    return {patient: statistics.fmean(values) for patient, values in found.items()}
