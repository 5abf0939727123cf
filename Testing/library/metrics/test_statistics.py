"""Mean and deviation, paired differences and bootstrap intervals, beside scipy's."""

import numpy as np
import pytest
from scipy import stats

from MAESILLib.metrics.statistics import mean_sd, paired_difference


def test_mean_and_deviation() -> None:
    assert mean_sd([1.0, 2.0, 6.0]) == (3.0, pytest.approx(np.std([1, 2, 6], ddof=1)))
    assert mean_sd([2.0]) == (2.0, None)


def test_the_interval_is_the_percentile_bootstrap() -> None:
    names = [f"v{n}" for n in range(12)]
    first = dict(zip(names, np.random.default_rng(3).normal(1.0, 2.0, 12), strict=True))
    second = dict.fromkeys(names, 0.0)
    found = paired_difference(first, second, {name: name for name in names})
    # scipy draws without a seed: so many resamples that its ends vary by less than .01
    values = (np.array(list(first.values())),)
    expected = stats.bootstrap(values, np.mean, n_resamples=100_000, method="percentile").confidence_interval
    assert found["low"] == pytest.approx(expected.low, abs=0.1)
    assert found["high"] == pytest.approx(expected.high, abs=0.1)
    assert found["mean"] == pytest.approx(np.mean(list(first.values())))
    assert paired_difference(first, second, {name: name for name in names}) == found


def test_volumes_of_one_patient_count_as_one() -> None:
    first = {"a1": 4.0, "a2": 6.0, "b": 1.0}
    found = paired_difference(first, dict.fromkeys(first, 0.0), {"a1": "a", "a2": "a", "b": "b"})
    # two patients: resamples are (a, a), (a, b), (b, b)
    assert found == {"volumes": 3, "patients": 2, "mean": 3.0, "low": 1.0, "high": 5.0, "above": 3}


def test_one_patient_has_no_interval_and_no_volume_no_difference() -> None:
    found = paired_difference({"a": 2.0}, {"a": 1.0, "b": 5.0}, {"a": "p", "b": "p"})
    assert found == {"volumes": 1, "patients": 1, "mean": 1.0, "low": None, "high": None, "above": 1}
    assert paired_difference({"a": 2.0}, {"b": 1.0}, {"a": "p", "b": "p"}) == {}
