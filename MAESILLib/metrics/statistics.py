"""Statistics of metrics over volumes: mean and deviation, paired differences, and how sure they are.

Volumes of one patient are not independent, so confidence intervals resample patients.
"""

import statistics
from collections import defaultdict
from collections.abc import Mapping

import numpy as np

RESAMPLES = 9999
LEVEL = 0.95


def mean_sd(values: list[float]) -> tuple[float, float | None]:
    """Return mean and sample standard deviation of values, one a volume; no deviation of a single one.

    Raises:
        ValueError: there are none.
    """
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def paired_difference(
    first: Mapping[str, float], second: Mapping[str, float], patients: Mapping[str, str]
) -> dict[str, float | None]:
    """Compare two methods on the volumes that both have a value for; empty if there is none.

    Args:
        first, second: a value for each volume's name.
        patients: the patient of each volume.

    Returns:
        ``volumes`` and ``patients``: how many; ``mean``: of the first minus the second, over patients, of each
        patient's mean over volumes; ``low``, ``high``: 95 % interval of that mean, None for fewer than two patients;
        ``above``: volumes on which the first is higher.

    The interval is the percentile bootstrap's (Efron and Tibshirani 1993, chapter 13) with patients as units.
    """
    differences: dict[str, list[float]] = defaultdict(list)
    common = [volume for volume in first if volume in second]
    if not common:
        return {}
    for volume in common:
        differences[patients[volume]].append(first[volume] - second[volume])
    means = np.array([statistics.fmean(values) for values in differences.values()])
    low = high = None
    if len(means) > 1:
        # scipy's bootstrap does the same, by other names in the versions that are about
        drawn = np.random.default_rng(0).choice(means, (RESAMPLES, len(means))).mean(1)
        low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
    return {
        "volumes": len(common),
        "patients": len(means),
        "mean": float(means.mean()),
        "low": low,
        "high": high,
        "above": sum(first[volume] > second[volume] for volume in common),
    }
