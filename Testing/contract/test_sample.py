"""The CT that ships with MAESIL: small, with its licence, and where the patient lay."""

from pathlib import Path

import numpy as np
import SimpleITK as sitk

from MAESILLib.ct.reading import read_volume
from MAESILLib.runtime.resources import sample_ct


def test_it_is_small_and_its_licence_lies_beside_it() -> None:
    assert sample_ct().stat().st_size <= 0.9 * 2**20
    page = (sample_ct().parent / "README.md").read_text(encoding="utf-8")
    for words in (sample_ct().name, "CRLM-CT-1006", "10.7937/QXK2-QG03", "CC BY 4.0", "Changes:"):
        assert words in page


def test_it_is_a_ct_without_doubts() -> None:
    volume = read_volume(sample_ct())
    assert not volume.warnings
    assert not (volume.hu % 8).any()


def test_it_lies_where_its_source_does(real_ct: Path) -> None:
    """Moved by one voxel along any axis, it would differ by 70 HU and more."""
    sample = sitk.ReadImage(str(sample_ct()))
    source = sitk.ReadImage(str(real_ct / "val" / "tcia__crlm_1006.nii.gz"))
    source = sitk.GetArrayFromImage(sitk.Resample(source, sample))
    error = sitk.GetArrayFromImage(sample) - source.astype(float)
    assert np.sqrt(np.mean(error**2)) < 10
