"""DICOM folders: the choice of a series, the order of slices, and what is refused by name."""

import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import SimpleITK as sitk
from volume_factory import SHARED_CT, assert_read, needs_real_ct, refusal, rotation, trunk, write_dicom

from MAESILLib.ct.reading import read_volume

HU = trunk()
STORED = (HU + 1024).astype(np.int16)


def assert_refused(path: Path, *words: str, **options: Any) -> str:
    message = refusal(path, **options)
    for word in words:
        assert word in message
    return message


class TestReading:
    def test_values_and_geometry(self, tmp_path: Path) -> None:
        write_dicom(tmp_path, STORED)
        volume = read_volume(tmp_path)
        assert volume.hu.dtype == np.int16
        np.testing.assert_array_equal(volume.hu, HU)
        assert volume.geometry.spacing_dhw == (2.5, 0.8, 0.7)
        assert volume.geometry.origin_lps == (-20.0, -30.0, 100.0)
        assert volume.name == "SYNTHETIC_TRUNK"
        assert volume.warnings == ()

    @pytest.mark.parametrize("where", ["nested/deeper", "."])
    def test_order_is_by_position_not_by_name(self, tmp_path: Path, where: str) -> None:
        paths = write_dicom(tmp_path / where, STORED)
        names = np.random.default_rng(0).permutation(len(paths))
        for path, number in zip(paths, names, strict=True):
            path.rename(path.with_name(f"IM{number}"))  # no suffix either
        np.testing.assert_array_equal(read_volume(tmp_path).hu, HU)

    def test_one_file_stands_for_its_series(self, tmp_path: Path) -> None:
        paths = write_dicom(tmp_path, STORED)
        write_dicom(tmp_path, STORED[:, ::-1], uid="1.2.3.9", prefix="t")
        assert_read(paths[4], HU)

    def test_oblique_slices(self, tmp_path: Path) -> None:
        matrix = rotation(15, -10, 25)
        orientation = tuple(float(v) for v in np.concatenate([matrix[:, 0], matrix[:, 1]]))
        write_dicom(tmp_path, STORED, orientation=orientation)
        geometry = read_volume(tmp_path).geometry
        expected = np.array([-20.0, -30.0, 100.0]) + matrix @ [0.7 * 47, 0.8 * 39, 2.5 * 11]
        np.testing.assert_allclose(geometry.physical_point((11, 39, 47)), expected, atol=1e-3)

    def test_downward_slice_order(self, tmp_path: Path) -> None:
        write_dicom(tmp_path, STORED, step_lps=(0, 0, -2.5))
        volume = read_volume(tmp_path)
        np.testing.assert_array_equal(volume.hu, HU[::-1])
        assert volume.geometry.origin_lps[2] == pytest.approx(100 - 11 * 2.5)

    def test_slope(self, tmp_path: Path) -> None:
        write_dicom(tmp_path, STORED // 2, tags={"0028|1053": "2"})
        np.testing.assert_array_equal(read_volume(tmp_path).hu, STORED // 2 * 2 - 1024)

    def test_slope_that_differs_between_slices(self, tmp_path: Path) -> None:
        write_dicom(tmp_path, STORED[:6])
        write_dicom(tmp_path, STORED[6:], tags={"0028|1053": "0.5"}, origin_lps=(-20.0, -30.0, 115.0), prefix="t")
        volume = read_volume(tmp_path)
        np.testing.assert_array_equal(volume.hu[:6], HU[:6])
        np.testing.assert_array_equal(volume.hu[6:], STORED[6:] * 0.5 - 1024)

    def test_slices_thinner_than_their_distance(self, tmp_path: Path) -> None:
        write_dicom(tmp_path, STORED, tags={"0018|0050": "1"})
        (warning,) = read_volume(tmp_path).warnings
        assert "1 mm thick but 2.5 mm apart" in warning

    def test_other_files_are_no_trouble(self, tmp_path: Path) -> None:
        write_dicom(tmp_path, STORED)
        (tmp_path / "dead link.dcm").symlink_to(tmp_path / "nowhere")
        (tmp_path / "notes.txt").write_text("hello")
        (tmp_path / "._s001.dcm").write_bytes(b"resource fork")
        # A DICOM object without an image: the preamble and a structured report's class.
        (tmp_path / "report").write_bytes(b"\0" * 128 + b"DICM" + meta("1.2.840.10008.5.1.4.1.1.88.11"))
        assert read_volume(tmp_path).warnings == ()


class TestChoice:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        lung = {"0008|103e": "LUNG", "0020|0011": "7"}
        scout = {"0008|0008": "ORIGINAL\\PRIMARY\\LOCALIZER", "0020|0011": "1"}
        write_dicom(tmp_path / "a", STORED, uid="1.2.3.100", tags={"0020|0011": "5"})
        write_dicom(tmp_path / "b", STORED[:9], uid="1.2.3.200", tags=lung)
        write_dicom(tmp_path / "c", np.repeat(STORED, 2, axis=0), uid="1.2.3.300", tags=scout)
        write_dicom(tmp_path / "d", np.repeat(STORED, 2, axis=0), uid="1.2.3.400", tags={"0008|0060": "MR"})
        return tmp_path

    def test_several_are_listed(self, folder: Path) -> None:
        trunk_series = "CT series 5 'SYNTHETIC TRUNK' (12 slices, UID ...2.3.100), 2.5 mm apart = 1.2.3.100"
        assert_refused(folder, "2 CT series", trunk_series, "CT series 7 'LUNG' (9 slices")

    def test_the_only_complete_one_is_taken(self, folder: Path) -> None:
        (folder / "b" / "s005.dcm").unlink()
        volume = read_volume(folder)
        np.testing.assert_array_equal(volume.hu, HU)
        (warning,) = volume.warnings
        assert "of 2 CT series took CT series 5 'SYNTHETIC TRUNK'" in warning
        assert "CT series 7 'LUNG' (8 slices, UID ...2.3.200) is missing about 1 slice" in warning

    @pytest.mark.parametrize("wanted", ["1.2.3.200", "7", "3.200", "1.2.3.2"])
    def test_by_name(self, folder: Path, wanted: str) -> None:
        volume = read_volume(folder, series=wanted)
        assert volume.hu.shape[0] == 9
        assert volume.name == "LUNG"
        assert volume.warnings == ()

    def test_unknown_name_lists_what_there_is(self, folder: Path) -> None:
        message = assert_refused(folder, "no CT series '42'", "1.2.3.100", "1.2.3.200", series="42")
        assert "1.2.3.300" not in message
        message = assert_refused(folder, "fits 2 CT series", series="1.2.3")
        assert "give the number or whole UID" in message

    def test_no_ct_says_what_there_is(self, folder: Path) -> None:
        shutil.rmtree(folder / "a")
        shutil.rmtree(folder / "b")
        assert_refused(folder, "no DICOM CT series", "24 CT localisers, 24 MR images")


class TestRefusals:
    @pytest.mark.parametrize(
        ("missing", "words"),
        [
            ((5,), ("about 1 slice (the others are 2.50 mm", "between s005.dcm (110.00 mm) and s007.dcm (115.00 mm)")),
            ((2, 7, 8), ("is missing about 3 slices", "s002.dcm", "s010.dcm (122.50 mm)")),
        ],
    )
    def test_missing_slices(self, tmp_path: Path, missing: tuple[int, ...], words: tuple[str, ...]) -> None:
        paths = write_dicom(tmp_path, STORED)
        for index in missing:
            paths[index].unlink()
        assert_refused(tmp_path, *words)

    def test_different_slices_at_one_position(self, tmp_path: Path) -> None:
        write_dicom(tmp_path, STORED)
        write_dicom(tmp_path, STORED[3:4] + 1, origin_lps=(-20.0, -30.0, 107.5), prefix="t")
        words = "1 duplicate slice positions with different slices: s004.dcm and t001.dcm both lie at 107.50 mm"
        assert_refused(tmp_path, words)

    def test_slices_shifted_against_each_other(self, tmp_path: Path) -> None:
        write_dicom(tmp_path, STORED[:6])
        write_dicom(tmp_path, STORED[6:], origin_lps=(-17.0, -30.0, 115.0), prefix="t")
        assert_refused(tmp_path, "slices shifted against each other")

    @pytest.mark.parametrize(
        ("rows", "other", "words"),
        [
            (32, {}, ("different sizes: 10 have 48x40, but 48x32: other001.dcm, other002.dcm",)),
            (40, {"spacing_dhw": (2.5, 0.9, 0.9)}, ("pixel spacings: 10 have 0.8x0.7, but 0.9x0.9: other001.dcm",)),
            (40, {"orientation": (1, 0, 0, 0, 0, -1)}, ("different orientations", "other001.dcm")),
        ],
    )
    def test_mixed_slices(self, tmp_path: Path, rows: int, other: dict[str, Any], words: tuple[str, ...]) -> None:
        write_dicom(tmp_path, STORED[:10])
        write_dicom(tmp_path, STORED[10:, :rows], origin_lps=(-20.0, -30.0, 125.0), prefix="other", **other)
        assert_refused(tmp_path, *words)

    @pytest.mark.parametrize(("count", "words"), [(1, "one slice only"), (5, "5 voxels along k")])
    def test_few_slices(self, tmp_path: Path, count: int, words: str) -> None:
        write_dicom(tmp_path, STORED[:count])
        assert_refused(tmp_path, words)

    def test_no_rescale(self, tmp_path: Path) -> None:
        write_dicom(tmp_path, STORED, tags={"0028|1052": "0"})
        assert_refused(tmp_path, "offset of about +1024")

    @pytest.mark.parametrize("share", [0.3, 0.9])
    def test_damaged_slice_is_named(self, tmp_path: Path, share: float, capfd: pytest.CaptureFixture) -> None:
        path = write_dicom(tmp_path, STORED)[6]
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
        assert_refused(tmp_path, "s007.dcm")
        assert capfd.readouterr().err == ""

    @pytest.mark.parametrize("name", ["_other_kind", "_without_padding"])
    def test_a_bug_is_no_damage(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        write_dicom(tmp_path, STORED)
        monkeypatch.setattr(f"MAESILLib.ct.dicom_slice.{name}", Mock(side_effect=AttributeError("a bug")))
        with pytest.raises(AttributeError, match="a bug"):
            read_volume(tmp_path)

    def test_not_dicom_at_all(self, tmp_path: Path) -> None:
        (tmp_path / "scan.dcm").write_bytes(b"hello" * 100)
        assert_refused(tmp_path / "scan.dcm", "scan.dcm is damaged or cut short")


@needs_real_ct
def test_real_series() -> None:
    folder = SHARED_CT / "dicom"
    volume = read_volume(folder)
    assert volume.hu.shape == (41, 512, 512)
    assert volume.geometry.spacing_dhw == (5.0, 0.796875, 0.796875)
    assert volume.warnings == ()
    # Uncompressed little-endian pixels end the file; the top slice is the one at the highest ImagePositionPatient z.
    tops = []
    for path in folder.glob("*/*.dcm"):
        image = sitk.ReadImage(str(path))
        tops.append((image.GetOrigin()[2], path))
    top = max(tops)[1]
    stored = np.frombuffer(top.read_bytes()[-512 * 512 * 2 :], "<i2").reshape(512, 512)
    np.testing.assert_array_equal(volume.hu[-1], np.maximum(stored.astype(np.int32) - 1024, -1024))


def meta(sop_class: str) -> bytes:
    """Return a DICOM element MediaStorageSOPClassUID."""
    value = sop_class.encode() + b"\0" * (len(sop_class) % 2)
    return b"\x02\x00\x02\x00UI" + len(value).to_bytes(2, "little") + value
