"""NIfTI as other programs write it: forms and codes, slopes, packing, pairs, odd headers."""

import gzip
import struct
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from volume_factory import assert_read, linear_hu, trunk

from MAESILLib.ct.reading import read_volume
from MAESILLib.runtime.errors import InputError

AFFINE = np.array([[-0.8, 0, 0, 30], [0, -0.9, 0, 20], [0, 0, 2.5, -50], [0, 0, 0, 1.0]])
LPS = np.diag([-1.0, -1, 1, 1])
MIDDLE = (-11.0, -2.0, -25.0)


def sheared(degrees: float) -> np.ndarray:
    """Return the affine with its slices shifted towards the front from one to the next, as a tilted gantry does."""
    affine = AFFINE.copy()
    affine[1, 2] = np.tan(np.radians(degrees)) * affine[2, 2]
    return affine


def write(path: Path, array: np.ndarray, affine: Any = AFFINE, kind: Any = nibabel.Nifti1Image, **forms: Any) -> Path:
    """Write (D, H, W); ``forms``: sform and qform, each an affine or None for code 0."""
    image = kind(array.T, affine)
    for name, set_form in (("sform", image.set_sform), ("qform", image.set_qform)):
        form = forms.get(name, affine)
        set_form(affine if form is None else form, code=0 if form is None else 1)
    nibabel.save(image, path)
    return path


def test_a_sheared_sform_is_resampled_by_it(tmp_path: Path) -> None:
    affine = sheared(15)
    path = write(tmp_path / "tilted.nii.gz", linear_hu(LPS @ affine, (20, 40, 48), MIDDLE), affine)
    volume = read_volume(path)
    assert any("15 degrees off perpendicular" in warning for warning in volume.warnings)
    assert any("qform and sform differ" in warning for warning in volume.warnings)
    axes = volume.geometry.axes_lps()
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-9)
    expected = linear_hu(volume.geometry.ijk_to_lps(), volume.geometry.size_dhw, MIDDLE)
    imaged = volume.hu > -1024
    # slices are shifted, not turned: all voxels of a slice have their place, a rim of half a voxel apart
    assert imaged.mean() > 0.7
    np.testing.assert_allclose(volume.hu[imaged], expected[imaged], atol=1)


def test_axes_that_are_nearly_parallel_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="84 degrees off perpendicular: too many"):
        read_volume(write(tmp_path / "ct.nii", trunk(), sheared(84)))


def test_labels_on_a_sheared_grid_are_not_blended(tmp_path: Path) -> None:
    labels = np.zeros((20, 40, 48), np.uint8)
    labels[4:16, 10:30, 10:30] = 7
    volume = read_volume(write(tmp_path / "seg.nii", labels, sheared(15)), check=False)
    assert set(np.unique(volume.hu)) == {0, 7}
    # every slice is there, shifted
    assert np.count_nonzero(volume.hu) == pytest.approx(np.count_nonzero(labels), rel=0.05)


@pytest.mark.parametrize("degrees", [0.02, 0.3])
def test_a_shear_of_a_fraction_of_a_voxel_is_taken_as_it_is(tmp_path: Path, degrees: float) -> None:
    hu = trunk()
    volume = assert_read(write(tmp_path / "ct.nii", hu, sheared(degrees), qform=None), hu)
    corners = np.array([[0, 0, 0], [11, 39, 47]])
    ijk = np.c_[corners[:, ::-1], [1, 1]]
    places = (ijk @ (LPS @ sheared(degrees)).T)[:, :3]
    assert np.abs(volume.geometry.physical_point(corners) - places).max() < 0.2 * 0.8


def test_the_sform_counts_unless_its_code_is_0(tmp_path: Path) -> None:
    moved = AFFINE.copy()
    moved[0, 3] += 5
    volume = read_volume(write(tmp_path / "both.nii", trunk(), AFFINE, qform=moved))
    assert volume.geometry.origin_lps == pytest.approx((-30, -20, -50))
    assert volume.warnings == ("qform and sform differ by up to 6.2 voxels: the sform is taken",)
    volume = read_volume(write(tmp_path / "qform.nii", trunk(), AFFINE, sform=None, qform=moved))
    assert volume.geometry.origin_lps == pytest.approx((-35, -20, -50), abs=1e-5)
    assert volume.warnings == ()


def test_pixdim_that_disagrees_is_a_warning(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(trunk().T, AFFINE)
    image.header["pixdim"][1:4] = (1, 1, 1)
    image.set_qform(None, code=0)
    image.header["pixdim"][1:4] = (1, 1, 1)
    nibabel.save(image, tmp_path / "ct.nii")
    volume = read_volume(tmp_path / "ct.nii")
    assert volume.geometry.spacing_dhw == pytest.approx((2.5, 0.9, 0.8))
    assert "pixdim and the affine's spacing differ" in volume.warnings[0]


@pytest.mark.parametrize(("unit", "factor"), [("meter", 1e-3), ("micron", 1e3)])
def test_units(tmp_path: Path, unit: str, factor: float) -> None:
    affine = AFFINE.copy()
    affine[:3] *= factor
    image = nibabel.Nifti1Image(trunk().T, affine)
    image.header.set_xyzt_units(unit)
    nibabel.save(image, tmp_path / "ct.nii")
    geometry = read_volume(tmp_path / "ct.nii").geometry
    assert geometry.spacing_dhw == pytest.approx((2.5, 0.9, 0.8), rel=1e-5)
    assert geometry.origin_lps == pytest.approx((-30, -20, -50), rel=1e-5)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.uint32, np.int64, np.float32, np.float64, ">i2", ">f4"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_types_and_versions(tmp_path: Path, dtype: Any, kind: Any) -> None:
    shift = 1024 if np.dtype(dtype).kind == "u" else 0
    header = kind.header_class(endianness=">" if str(dtype).startswith(">") else "<")
    image = kind((trunk() + shift).astype(dtype).T, AFFINE, header)
    image.header.set_slope_inter(1, -shift)
    nibabel.save(image, tmp_path / "ct.nii.gz")
    volume = read_volume(tmp_path / "ct.nii.gz")
    assert volume.hu.dtype == np.int16
    np.testing.assert_array_equal(volume.hu, trunk())


def test_a_slope_that_is_no_whole_number(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image((trunk() * 16 + 3).astype(np.int16).T, AFFINE)
    image.header.set_slope_inter(0.0625, -0.25)
    raw = tmp_path / "ct.nii"
    nibabel.save(image, raw)
    stored = np.asarray(nibabel.load(raw).dataobj).T
    volume = read_volume(raw)
    assert volume.hu.dtype == np.float32
    np.testing.assert_allclose(volume.hu, np.maximum(stored, -1024), rtol=1e-6)


def test_a_pair_and_packing_by_content(tmp_path: Path) -> None:
    write(tmp_path / "pair.img", trunk(), kind=nibabel.Nifti1Pair)
    for name in ("pair.img", "pair.hdr"):
        np.testing.assert_array_equal(read_volume(tmp_path / name).hu, trunk())
    plain = write(tmp_path / "plain.nii", trunk()).read_bytes()
    (tmp_path / "not packed.nii.gz").write_bytes(plain)
    (tmp_path / "packed.nii").write_bytes(gzip.compress(plain))
    (tmp_path / "junk after.nii.gz").write_bytes(gzip.compress(plain) + b"\0" * 700 + b"junk")
    for name in ("not packed.nii.gz", "packed.nii", "junk after.nii.gz"):
        np.testing.assert_array_equal(read_volume(tmp_path / name).hu, trunk())
    (tmp_path / "pair.hdr").unlink()
    with pytest.raises(InputError, match=r"pair\.hdr, which is missing"):
        read_volume(tmp_path / "pair.img")
    (tmp_path / "no check sum.nii.gz").write_bytes(gzip.compress(plain)[:-8])
    with pytest.raises(InputError, match="cut short"):
        read_volume(tmp_path / "no check sum.nii.gz")


def test_one_frame_of_four_dimensions(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(trunk().T[..., None, None], AFFINE), tmp_path / "ct.nii")
    np.testing.assert_array_equal(read_volume(tmp_path / "ct.nii").hu, trunk())


@pytest.mark.parametrize(
    ("place", "values", "warning"),
    [
        (108, "<f 0", None),
        (280, f"<12f {' 0' * 12}", "the sform spans no volume: the qform is taken"),
        (280, f"<12f {' nan' * 12}", "the sform spans no volume: the qform is taken"),
        # a quaternion a little longer than 1, and no sform
        (254, "<hfff 0 0 0 1.00002", None),
    ],
)
def test_headers_that_are_nearly_right(tmp_path: Path, place: int, values: str, warning: str | None) -> None:
    """An offset of voxels that is not set, a form that is empty, rounded numbers."""
    # turned half around its third axis: its quaternion is (0, 0, 1)
    affine = np.array([[-0.8, 0, 0, 30], [0, -0.9, 0, 20], [0, 0, 2.5, -50], [0, 0, 0, 1.0]])
    path = write(tmp_path / "ct.nii", trunk(), affine)
    data = bytearray(path.read_bytes())
    form, *numbers = values.split()
    kinds = form[1:].replace("12f", "f" * 12)
    struct.pack_into(
        form, data, place, *(int(n) if k == "h" else float(n) for k, n in zip(kinds, numbers, strict=True))
    )
    path.write_bytes(data)
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.hu, trunk())
    np.testing.assert_allclose(volume.geometry.ijk_to_lps(), LPS @ affine, atol=1e-4)
    assert volume.warnings == ((warning,) if warning else ())
