"""A few changed inputs of every kind; many more on demand: ``python Testing/fuzz/fuzz.py --help``."""

from fuzz import run

CASES = {"file": 150, "dicom": 70, "checkpoint": 60, "cache": 15, "state": 5}


def test_no_input_breaks_a_reader() -> None:
    cases = [(kind, number) for kind, count in CASES.items() for number in range(count)]
    outcomes = run(cases, seed=0)
    assert len(outcomes) == len(cases)
    assert not [one for one in outcomes if one.fault]
