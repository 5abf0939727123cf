"""Writing volumes: exact values and geometry, and nothing left behind by a failure."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from cli_factory import file_size_limit
from volume_factory import GRID, trunk

from MAESILLib.ct.geometry import Geometry
from MAESILLib.ct.writing import volume_writer
from MAESILLib.runtime.errors import DiskFullError, InputError


def write_volume(path: Path, array: np.ndarray, grid: Geometry, compress: bool = True) -> None:
    """In two pieces."""
    with volume_writer(path, array.dtype, grid, compress=compress) as write:
        write(array[:5])
        write(array[5:])


SUFFIXES = (".nrrd", ".nii.gz", ".nii")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float32])
@pytest.mark.parametrize("compress", [True, False])
def test_round_trip(tmp_path: Path, suffix: str, dtype: type, compress: bool) -> None:
    array = (np.arange(12 * 40 * 48) % 251).reshape(12, 40, 48).astype(dtype)
    path = tmp_path / "new folder" / f"error map{suffix}"
    write_volume(path, array, GRID, compress=compress)
    image = sitk.ReadImage(str(path))
    found = sitk.GetArrayFromImage(image)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, array)
    tolerance = 1e-4 if ".nii" in suffix else 1e-9
    np.testing.assert_allclose(image.GetSpacing()[::-1], GRID.spacing_dhw, atol=tolerance)
    np.testing.assert_allclose(image.GetOrigin(), GRID.origin_lps, atol=tolerance)
    np.testing.assert_allclose(image.GetDirection(), GRID.direction, atol=tolerance)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_compression_makes_a_difference(tmp_path: Path) -> None:
    array = np.zeros((12, 40, 48), np.int16)
    write_volume(tmp_path / "packed.nrrd", array, GRID)
    write_volume(tmp_path / "plain.nrrd", array, GRID, compress=False)
    assert (tmp_path / "packed.nrrd").stat().st_size < 2000
    assert (tmp_path / "plain.nrrd").stat().st_size > array.nbytes


def test_view_with_strides(tmp_path: Path) -> None:
    view = trunk((24, 40, 48))[::-2]
    write_volume(tmp_path / "scan.nrrd", view, GRID)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "scan.nrrd"))), view)


def test_wrong_use(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"unknown suffix.*\.nii\.gz"):
        write_volume(tmp_path / "scan.png", trunk(), GRID)
    with pytest.raises(ValueError, match="float64"):
        write_volume(tmp_path / "scan.nrrd", trunk().astype(np.float64), GRID)
    with pytest.raises(ValueError, match="11 planes were written of 12"):
        write_volume(tmp_path / "scan.nrrd", trunk()[1:], GRID)
    with pytest.raises(ValueError, match=r"\(H, W\)"):
        write_volume(tmp_path / "scan.nrrd", trunk()[0], GRID)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "results").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        write_volume(tmp_path / "results" / "scan.nrrd", trunk(), GRID)


class TestFailures:
    @pytest.mark.parametrize("suffix", SUFFIXES)
    def test_file_that_cannot_be_completed(self, tmp_path: Path, suffix: str) -> None:
        with file_size_limit(8192), pytest.raises(DiskFullError):
            write_volume(tmp_path / f"scan{suffix}", trunk(), GRID)
        assert list(tmp_path.iterdir()) == []

    def test_another_failure_keeps_the_older_file(self, tmp_path: Path) -> None:
        path = tmp_path / "scan.nrrd"
        path.write_text("older")
        with (
            pytest.raises(ValueError, match="5 planes were written of 12"),
            volume_writer(path, np.int16, GRID) as write,
        ):
            write(trunk()[:5])
        assert path.read_text() == "older"
        assert len(list(tmp_path.iterdir())) == 1
