"""DICOM beside dcm2niix: where both read a series, voxels agree at the same places in mm."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import dcm2niix
import nibabel
import numpy as np
import pytest
from reported_cases import CASES, case_id, case_inputs
from volume_factory import rotation, trunk, write_dicom

from MAESILLib.ct.reading import HU_LIMITS, read_volume
from MAESILLib.ct.volume import CTVolume
from MAESILLib.runtime.errors import InputError

TILTED = "theirs lays slices of a tilted gantry as if it were not tilted; ours resamples them to where they lie"
SIGNED = "theirs takes signed values for unsigned ones, 583 HU and more from the body on average; ours is right"
DIFFERENT = {
    "30/tilt15": TILTED,
    "30/tilt15_as_scanned": TILTED,
    "30/tilt3": TILTED,
    "37/j2k_sign_mismatch": SIGNED,
    "37/jpeglosslessp14_s12": SIGNED,
    "37/jpeglosslessp14_s16": SIGNED,
}
"""Reported inputs on which the two differ, and why."""
COMPARED = 70
"""Of the reported inputs, at least; the others are refused by one of the two."""
STUDY = {"0008|0020": "20200101", "0008|0030": "101010"}
"""Date and time, by which dcm2niix parts series."""
LPS = np.diag([-1.0, -1, 1, 1])


def converted(folder: Path, output: Path) -> list[Any]:
    """Return the CT volumes that dcm2niix makes of a folder; none where it reports an error."""
    output.mkdir()
    command = [dcm2niix.bin, "-z", "n", "-b", "y", "-f", "%s_%t", "-o", str(output), str(folder)]
    if subprocess.run(command, capture_output=True).returncode != 0:
        return []
    sidecars = [path for path in sorted(output.glob("*.json")) if json.loads(path.read_text()).get("Modality") == "CT"]
    return [nibabel.load(path.with_suffix(".nii")) for path in sidecars]


def agree(ours: CTVolume, theirs: Any) -> bool:
    """Tell whether two volumes have the same voxels at the same places, to within rounding."""
    if sorted(ours.hu.shape) != sorted(theirs.shape):
        return False
    k, j, i = np.meshgrid(*(np.arange(n) for n in ours.hu.shape), indexing="ij")
    way = np.linalg.inv(theirs.affine) @ LPS @ ours.geometry.ijk_to_lps()
    place = (np.stack([i, j, k, np.ones_like(i)], -1) @ way.T)[..., :3]
    index = np.rint(place).astype(int)
    if np.abs(place - index).max() > 0.02 or index.min() < 0 or (index >= theirs.shape).any():
        return False
    hu = np.clip(np.asarray(theirs.dataobj, np.float64), *HU_LIMITS)[tuple(np.moveaxis(index, -1, 0))]
    return bool(np.abs(hu - ours.hu).max() <= 1)


def linked(folder: Path) -> list[Path]:
    """Return the inputs of the case that cannot be stored: links."""
    case = next(CASES.glob("43_*"))
    shutil.copy(CASES / "common.py", folder)
    shutil.copytree(case, folder / case.name)
    subprocess.run([sys.executable, folder / case.name / "make.py"], check=True)
    return sorted(path for path in (folder / case.name / "in").iterdir() if path.name != "store")


@pytest.mark.skipif(not CASES.exists(), reason="reported inputs lie beside the repository")
def test_reported_inputs(tmp_path: Path) -> None:
    compared: dict[str, bool] = {}
    for number, path in enumerate([*case_inputs(), *linked(tmp_path)]):
        try:
            ours = read_volume(path) if path.is_dir() else None
        except InputError:
            continue
        if ours is not None and (theirs := converted(path, tmp_path / str(number))):
            compared[case_id(path)] = any(agree(ours, one) for one in theirs)
    assert {name for name, is_same in compared.items() if not is_same} == set(DIFFERENT)
    assert len(compared) >= COMPARED
    assert "43/parent" in compared


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"orientation": (1, 0, 0, 0, 0, -1)},
        {"orientation": (0, 1, 0, 0, 0, -1), "spacing_dhw": (0.9, 2.1, 1.3)},
        {"orientation": tuple(rotation(12, -7, 20).T[:2].ravel())},
        {"orientation": (-1, 0, 0, 0, -1, 0), "tags": {"0028|1053": "0.5", "0028|1052": "-1000.25"}},
        {"step_lps": (0.0, 0.0, -2.5)},
    ],
)
def test_written_series(tmp_path: Path, options: dict[str, Any]) -> None:
    write_dicom(tmp_path / "series", trunk((14, 20, 24)) + 1024, **options | {"tags": STUDY | options.get("tags", {})})
    (theirs,) = converted(tmp_path / "series", tmp_path / "theirs")
    assert agree(read_volume(tmp_path / "series", check=False), theirs)
    # one voxel aside they do not
    theirs.affine[:3, 3] += theirs.affine[:3, 0]
    assert not agree(read_volume(tmp_path / "series", check=False), theirs)
