"""A few changed inputs of every kind; many more on demand: ``python Testing/fuzz/fuzz.py --help``."""

import pytest
from fuzz import run

CASES = {"file": 150, "dicom": 70, "checkpoint": 60, "cache": 15, "state": 5}


@pytest.mark.parametrize("kind", CASES)
def test_no_input_breaks_a_reader(kind: str) -> None:
    outcomes = run(kind, CASES[kind], seed=0)
    assert len(outcomes) == CASES[kind]
    assert not [one for one in outcomes if one.fault]
