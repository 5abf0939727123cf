"""Inputs that people have reported, each judged by the place of its voxels: right, or refused in the right words."""

import re
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reported_cases import CASES, case_id, case_inputs, truth

from MAESILLib.ct.reading import read_volume
from MAESILLib.runtime.errors import InputError

RIGHT = ""
VERDICTS: dict[str, dict[str, str]] = {
    "01_nifti_sform_not_orthonormal": {"real_3deg.nii.gz": "~resampled", "*_0.3deg.nii.gz": "~"},
    "02_nifti_gantry_tilt_both_forms": {"*": "~resampled"},
    "05_nifti_no_codes": {"*": "?a guess"},
    "07_nifti_slope_inter": {"u8_coarse.nii.gz": "~"},
    "09_nifti_4d_one_frame": {"two_frames.nii.gz": "!is 4D"},
    "11_nifti_gz_tails": {
        "cut.nii.gz": "!cut short",
        "cut_trailer.nii.gz": "!cut short",
        "empty.nii.gz": "!no NIfTI header",
        "long.nii": "?100 bytes more than its header states",
    },
    # padding and what is not finite lie outside the body, and become air
    "16_values_nan_and_metal": {"metal*": RIGHT, "*": "~"},
    "17_values_offset": {"*": "!offset of about \\+1024.*--hu-offset"},
    "18_names": {
        "blob": "!unknown suffix",
        "Müller Größe": "-",
        "average*": "-",
        "avery*": "-",
        "ro": "-",
        "肺结节": "-",
    },
    "30_dicom_gantry_tilt": {"*": "~resampled"},
    "31_dicom_variable_spacing": {"*": "~interpolated to equal distances"},
    "32_dicom_missing_slice": {"gap": "!is missing about 1 slice .*IM0012.dcm .* and IM0013.dcm"},
    "34_dicom_two_acquisitions": {"*": "!2 CT series.*2\\.1 .*2\\.2 .*by its number, or"},
    "35_dicom_enhanced": {"ordinary_and_enhanced": "!2 CT series.*by its whole UID, or"},
    "36_dicom_classic_multiframe": {"*": "!frames and does not state where each lies"},
    "41_dicom_other_objects_first": {"empty_file": "?0000.dcm", "junk": "?0000.dcm"},
    "47_dicom_padding": {"*": "~"},
    "48_dicom_missing_tags": {
        "ImageOrientationPatient": "!has no ImageOrientationPatient",
        "ImagePositionPatient": "!has no ImagePositionPatient",
        "PixelSpacing": "!has no PixelSpacing",
        "PixelData": "!has no pixels",
        "one_without_PixelData": "!missing about 1 slice .*IM0005.dcm has no pixels",
        "one_without_position": "!missing about 1 slice .*IM0006.dcm has no ImagePositionPatient",
    },
    "50_dicom_monochrome1_and_kind": {"iodine": "!maps of a material"},
    "51_dicom_other_series_damaged": {"*": "?left out"},
    "52_thick_and_thin": {"5_of_5mm.nii.gz": "!5 voxels along k"},
    "54_dicom_bits_8": {"picture": "!8-bit picture", "coarse_hu": "~"},
    "61_nrrd_geometry_missing": {"spacings_only.nrrd": "?a guess", "*": "!states no spacing"},
    "62_nrrd_detached": {
        "absent.nhdr": "!names its data file other.raw.gz, which is missing",
        "bzip2.nrrd": "!has the encoding 'bzip2', which cannot be read",
        "sub": "-",
        "*.raw*": "-",
    },
    "63_nrrd_4d": {"two_first.nrrd": "!2 values a voxel"},
    "64_nrrd_sheared": {"shear15.nrrd": "~resampled", "shear0.3.nrrd": "~"},
    "65_meta_images": {
        "absent.mhd": "!gone.raw, which is missing",
        "absolute.mhd": "!which is missing",
        "no_offset_no_matrix.mha": "?a guess",
        "no_spacing.mha": "!states no spacing",
        "sub": "-",
        "*raw": "-",
    },
    "68_manifest_study_folders": {"P1": "!2 CT series", "*.csv": "-"},
    "69_dicom_encoding_oddities": {
        "cut_*": "!IM0008.dcm",
        "file_cut_*": "!IM0008.dcm",
        "jpeg12_lossy": "~",
        "jpegls_near": "~",
        "pixels_half": "!IM0008.dcm",
        "pixels_short": "!IM0008.dcm",
    },
}
"""Of each input of a case, by its name: right without a word where none is given; "?" right, with these words; "~" not
equal everywhere, with these words; "!" refused, in these words; "-" no input of its own."""


def inputs() -> list[Any]:
    return [pytest.param(path, id=case_id(path)) for path in case_inputs() if verdict(path) != "-"]


def verdict(path: Path) -> str:
    by_name = VERDICTS.get(path.parts[-3], {})
    return next((text for pattern, text in by_name.items() if fnmatch(path.name, pattern)), RIGHT)


@pytest.mark.skipif(not CASES.exists(), reason="reported inputs lie beside the repository")
@pytest.mark.parametrize("path", inputs())
def test_every_voxel_is_right_or_refused(path: Path, capfd: pytest.CaptureFixture) -> None:
    expected = verdict(path)
    kind, words = expected[:1], expected[1:]
    if kind == "!":
        with pytest.raises(InputError, match=words) as caught:
            read_volume(path)
        assert "\n" not in str(caught.value)
        return
    volume = read_volume(path)
    assert capfd.readouterr().err == ""
    assert bool(volume.warnings) == bool(words)
    assert re.search(words, "\n".join(volume.warnings))
    apart = np.abs(volume.hu - truth(volume))
    if kind == "?" and "guess" in words:
        return
    if kind == "~":
        # nearer than when a voxel away
        moved = (np.roll(volume.hu, step, axis) for step in (-1, 1) for axis in range(3))
        assert apart.mean() < min(np.abs(other - truth(volume)).mean() for other in moved)
    else:
        assert (apart <= 1.01).mean() > 0.9995
