"""What a set of volumes says: mean and deviation, paired differences, and how sure they are.

Volumes of one patient are not independent, so confidence intervals resample patients.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

RESAMPLES = 9999
LEVEL = 0.95


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over volumes; no deviation of a single one."""

    volumes: int
    mean: float
    sd: float | None


@dataclass(frozen=True)
class Difference:
    """A paired difference, one method minus the other on the same volumes.

    Attributes:
        volumes, patients: how many.
        mean: over patients, of each patient's mean over volumes.
        low, high: 95 % interval of that mean by bootstrap over patients; None for fewer than two.
        above: volumes on which the first method is higher.
    """

    volumes: int
    patients: int
    mean: float
    low: float | None
    high: float | None
    above: int


def spread(values: list[float]) -> Spread:
    """Return mean and deviation of values, one a volume.

    Raises:
        ValueError: there are none.
    """
    sd = statistics.stdev(values) if len(values) > 1 else None
    return Spread(len(values), statistics.fmean(values), sd)


def paired_difference(
    first: Mapping[str, float], second: Mapping[str, float], patients: Mapping[str, str], seed: int = 0
) -> Difference | None:
    """Compare two methods on the volumes that both have a value for; None if there is none.

    Args:
        first, second: a value for each volume's name.
        patients: the patient of each volume.
        seed: of the resampling.

    The interval is the percentile bootstrap's (Efron and Tibshirani 1993, chapter 13) with patients as units.
    """
    common = [volume for volume in first if volume in second]
    if not common:
        return None
    differences: dict[str, list[float]] = defaultdict(list)
    for volume in common:
        differences[patients[volume]].append(first[volume] - second[volume])
    means = np.array([statistics.fmean(values) for values in differences.values()])
    low, high = _interval(means, seed)
    above = sum(first[volume] > second[volume] for volume in common)
    return Difference(len(common), len(means), float(means.mean()), low, high, above)


def _interval(means: np.ndarray, seed: int) -> tuple[float | None, float | None]:
    if len(means) < 2:
        return None, None
    # scipy's bootstrap does the same, by other names in the versions that are about
    drawn = np.random.default_rng(seed).choice(means, (RESAMPLES, len(means))).mean(1)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
