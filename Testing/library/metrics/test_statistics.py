"""Spread, paired differences and bootstrap intervals, beside scipy's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from MAESILLib.metrics.statistics import paired_difference, spread


def test_spread() -> None:
    found = spread([1.0, 2.0, 6.0])
    assert (found.volumes, found.mean) == (3, 3.0)
    assert found.sd == pytest.approx(np.std([1, 2, 6], ddof=1))
    assert spread([2.0]).sd is None


def test_the_interval_is_the_percentile_bootstrap() -> None:
    rng = np.random.default_rng(3)
    names = [f"v{n}" for n in range(12)]
    first = dict(zip(names, rng.normal(1.0, 2.0, 12), strict=True))
    second = dict.fromkeys(names, 0.0)
    found = paired_difference(first, second, {name: name for name in names})
    assert found is not None
    # scipy draws without a seed: so many resamples that its ends vary by less than .01
    values = (np.array(list(first.values())),)
    expected = stats.bootstrap(values, np.mean, n_resamples=100_000, method="percentile").confidence_interval
    assert found.low == pytest.approx(expected.low, abs=0.1)
    assert found.high == pytest.approx(expected.high, abs=0.1)
    assert found.mean == pytest.approx(np.mean(list(first.values())))


def test_volumes_of_one_patient_count_as_one() -> None:
    first = {"a1": 4.0, "a2": 6.0, "b": 1.0}
    second = dict.fromkeys(first, 0.0)
    found = paired_difference(first, second, {"a1": "a", "a2": "a", "b": "b"})
    assert found is not None
    assert (found.volumes, found.patients, found.mean) == (3, 2, 3.0)
    # two patients: resamples are (a, a), (a, b), (b, b)
    assert (found.low, found.high) == (1.0, 5.0)


def test_one_patient_has_no_interval_and_no_volume_no_difference() -> None:
    found = paired_difference({"a": 2.0}, {"a": 1.0, "b": 5.0}, {"a": "p", "b": "p"})
    assert found is not None
    assert (found.low, found.high, found.volumes, found.above) == (None, None, 1, 1)
    assert paired_difference({"a": 2.0}, {"b": 1.0}, {"a": "p", "b": "p"}) is None


def test_the_same_seed_gives_the_same_interval() -> None:
    values = {f"v{n}": n**1.5 for n in range(9)}
    zeros, patients = dict.fromkeys(values, 0.0), {name: name for name in values}
    assert paired_difference(values, zeros, patients, 1) == paired_difference(values, zeros, patients, 1)
    assert paired_difference(values, zeros, patients, 1) != paired_difference(values, zeros, patients, 2)
