"""Where a CT is not what the model expects, from the library and the command line."""

import json
from pathlib import Path

import numpy as np
from cli_factory import QUIET, assert_refused, leftovers, maesil, read_array, write_image
from volume_factory import geometry, rotation, trunk

from MAESILLib.explore.surprise import TISSUE_HU, Errors, calibrate, read_calibration, surprise, write_calibration

SIZE = (24, 48, 64)


def errors(seed: int) -> Errors:
    """Errors that are exponential, longer where the spread is larger."""
    rng = np.random.default_rng(seed)
    tissue, spread = rng.integers(0, len(TISSUE_HU) + 1, 60000), rng.uniform(10, 50, 60000).astype(np.float32)
    return Errors(tissue, spread, (rng.exponential(size=60000) * spread / 30).astype(np.float32))


def test_one_percent_of_another_patient_is_marked(tmp_path: Path) -> None:
    write_calibration(tmp_path / "c.json", calibrate([errors(0), errors(1)], "abc", 4))
    assert (tmp_path / "c.json").stat().st_size < 50_000
    other = errors(2)
    found = surprise(other, read_calibration(tmp_path / "c.json", "abc"))
    assert 0.008 < (found > 2).mean() < 0.012
    # where the model is sure, smaller errors are surprising
    sure = other.spread < 20
    typical = [np.median(other.error[rows & (found > 2)]) for rows in (sure, ~sure)]
    assert typical[0] < 0.6 * typical[1]
    # beyond all that was seen the order is kept
    far = Errors(np.zeros(3, np.int64), np.full(3, 30, np.float32), np.array([50, 100, 1000], np.float32))
    assert (np.diff(surprise(far, calibrate([errors(0)], "abc", 4))) > 0.2).all()


def test_metal_is_surprising(tmp_path: Path, lively: Path) -> None:
    grid = geometry(SIZE, (2.0, 1.2, 0.9), direction=rotation(10, -5, 20))
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        hu = trunk(SIZE) + rng.normal(0, 10, SIZE)
        if name == "c":
            hu[10:14, 30:34, 30:34] = 3000
        write_image(tmp_path / f"{name}.nrrd", hu.astype(np.int16), grid)
    inputs, common = [tmp_path / f"{n}.nrrd" for n in "ab"], ("--checkpoint", lively, "--covers", 2, *QUIET)
    calibration = tmp_path / "c.json"
    maesil("surprise", *inputs, "--calibrate", calibration, *common).checked()
    one = ("surprise", tmp_path / "c.nrrd", "--output", tmp_path / "out", *common)
    maesil(*one, "--calibration", calibration).checked()
    found = read_array(tmp_path / "out" / "surprise.nrrd")
    assert found.shape == SIZE
    assert found[11:13, 31:33, 31:33].mean() > 2 > np.median(found[trunk(SIZE) > -500])
    assert read_array(tmp_path / "out" / "spread.nrrd").min() >= 0
    values = json.loads(calibration.read_text())
    calibration.write_text(json.dumps({**values, "checkpoint": "0"}))
    assert_refused(maesil(*one, "--calibration", calibration), "is for another checkpoint")
    assert leftovers(tmp_path) == []


def test_what_cannot_be_is_one_line(tmp_path: Path, lively: Path) -> None:
    scan = tmp_path / "scan.nrrd"
    write_image(scan, trunk(SIZE).astype(np.int16), geometry(SIZE))
    common = ("surprise", scan, "--checkpoint", lively, *QUIET)
    assert_refused(maesil(*common, "--covers", 1, "--output", tmp_path / "out"), "--covers is 1")
    assert_refused(maesil(*common), "needs one INPUT and --output")
    assert_refused(maesil(*common, "--output", tmp_path / "out"), "no such file")
    (tmp_path / "c.json").write_text("{}")
    assert_refused(
        maesil(*common, "--output", tmp_path / "out", "--calibration", tmp_path / "c.json"), "no calibration"
    )
