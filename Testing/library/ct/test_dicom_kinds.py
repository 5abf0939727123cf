"""DICOM as scanners and archives write it: tilted gantries, missing slices, copies, acquisitions, frames, bits."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.pixels import get_decoder
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, JPEGLSLossless, RLELossless
from volume_factory import assert_read, linear_hu, refusal, trunk

from MAESILLib.ct import dicom_stack
from MAESILLib.ct.reading import read_volume
from MAESILLib.ct.scan import Given

UID = "1.2.826.0.1.3680043.8.498.7"
HU = trunk()
GRID = np.array([[0.7, 0, 0, -20], [0, 0.8, 0, -30], [0, 0, 2.5, 100], [0, 0, 0, 1.0]])
"""From (i, j, k, 1) to LPS mm."""
MIDDLE = (-3.0, -14.0, 125.0)


def slices(hu: np.ndarray = HU, grid: np.ndarray = GRID, signed: bool = True, **tags: Any) -> list[Any]:
    """Return a dataset for each slice of (D, H, W) HU, from bottom to top; a tag that is None is left out."""
    spacing = np.linalg.norm(grid[:3], axis=0)
    found = []
    for k, plane in enumerate(hu):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        values = {
            "SOPClassUID": CTImageStorage,
            "SOPInstanceUID": f"{UID}.1.{k + 1}",
            "Modality": "CT",
            "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
            "PatientID": "TEST",
            "SeriesInstanceUID": f"{UID}.1",
            "SeriesNumber": 3,
            "SeriesDescription": "TRUNK",
            "SliceThickness": f"{spacing[2]:g}",
            "ImagePositionPatient": [f"{v:.6g}" for v in grid[:3, 3] + k * grid[:3, 2]],
            "ImageOrientationPatient": [f"{v:.8g}"[:16] for v in (grid[:3, :2] / spacing[:2]).T.ravel()],
            "PixelSpacing": [f"{spacing[1]:g}", f"{spacing[0]:g}"],
            "RescaleIntercept": -1024,
            "RescaleSlope": 1,
            "SamplesPerPixel": 1,
            "PhotometricInterpretation": "MONOCHROME2",
            "BitsAllocated": 16,
            "BitsStored": 16,
            "HighBit": 15,
            "PixelRepresentation": int(signed),
            "Rows": plane.shape[0],
            "Columns": plane.shape[1],
            "PixelData": (plane.astype(int) + 1024).astype("<i2" if signed else "<u2").tobytes(),
        }
        for keyword, value in (values | tags).items():
            if value is not None:
                setattr(data, keyword, value)
        meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
        found.append(data)
    return found


def save(folder: Path, datasets: list[Any], prefix: str = "s", suffix: str = ".dcm", **options: Any) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{prefix}{number:03d}{suffix}" for number in range(1, len(datasets) + 1)]
    for path, data in zip(paths, datasets, strict=True):
        data.save_as(path, **(options or {"enforce_file_format": True}))
    return paths


def painted(datasets: list[Any], value: int, dtype: str = "<u2") -> list[Any]:
    """Return datasets whose first three rows hold one stored value."""
    for data in datasets:
        stored = np.frombuffer(data.PixelData, dtype).copy().reshape(HU.shape[1:])
        stored[:3] = value
        data.PixelData = stored.tobytes()
    return datasets


class TestGeometry:
    @pytest.mark.parametrize("as_scanned", [False, True])
    def test_a_tilted_gantry_is_resampled(self, tmp_path: Path, as_scanned: bool) -> None:
        grid, angle = GRID.copy(), np.radians(15)
        if as_scanned:  # slices are oblique, and the table moves along z
            grid[:3, 1] = np.array([0, np.cos(angle), -np.sin(angle)]) * 0.8
        else:
            grid[1, 2] = np.tan(angle) * 2.5
        save(tmp_path, slices(linear_hu(grid, (20, 40, 48), MIDDLE), grid))
        volume = read_volume(tmp_path)
        assert any("15 degrees off perpendicular" in warning for warning in volume.warnings)
        imaged = volume.hu > -1024
        assert imaged.mean() > 0.6
        expected = linear_hu(volume.geometry.ijk_to_lps(), volume.geometry.size_dhw, MIDDLE)
        np.testing.assert_allclose(volume.hu[imaged], expected[imaged], atol=2)

    def test_unequal_distances_are_interpolated(self, tmp_path: Path) -> None:
        # as heads are scanned: fine below, coarse above
        kept = [*range(12), *range(15, 40, 4)]
        found = slices(linear_hu(GRID, (40, 40, 48), MIDDLE), SliceThickness=None)
        save(tmp_path, [found[k] for k in kept])
        volume = read_volume(tmp_path)
        assert "2.5 to 10 mm apart: interpolated to equal distances of 2.5 mm" in volume.warnings[-1]
        np.testing.assert_allclose(volume.hu, linear_hu(GRID, (40, 40, 48), MIDDLE), atol=1)

    def test_unequal_distances_lose_nothing_at_the_top(self, tmp_path: Path) -> None:
        grid = GRID.copy()
        grid[2, 2] = 0.5
        found = slices(linear_hu(grid, (48, 40, 48), MIDDLE), grid, SliceThickness=None)
        save(tmp_path, [found[k] for k in (*range(0, 21, 5), *range(28, 48, 8))])
        volume = read_volume(tmp_path)
        places = volume.geometry.physical_point([[0, 0, 0], [len(volume.hu) - 1, 0, 0]])
        np.testing.assert_allclose(places[:, 2], [100, 122], atol=1e-6)
        matrix, size = volume.geometry.ijk_to_lps(), volume.geometry.size_dhw
        np.testing.assert_allclose(volume.hu, linear_hu(matrix, size, MIDDLE), atol=1)

    def test_a_hole_in_the_scan_is_not_made_up(self, tmp_path: Path) -> None:
        found = slices(linear_hu(GRID, (40, 40, 48), MIDDLE), SliceThickness="2.5")
        save(tmp_path, [found[k] for k in (*range(12), *range(30, 40))])
        assert "is missing about 18 slices" in refusal(tmp_path)

    def test_slices_far_apart_are_not_filled_up(self, tmp_path: Path) -> None:
        found = slices()
        found[-1].ImagePositionPatient = ["-20", "-30", "90000"]
        save(tmp_path, found)
        assert "slices would be made of 12" in refusal(tmp_path, given=Given(fill_gaps=True))

    def test_a_distance_that_drifts_is_no_even_one(self, tmp_path: Path) -> None:
        found = slices(linear_hu(GRID, (24, 40, 48), MIDDLE))
        heights = 100 + np.cumsum([0, *[2.35] * 12, *[2.65] * 11])
        for data, height in zip(found, heights, strict=True):
            data.ImagePositionPatient = ["-20", "-30", f"{height:.6g}"]
        save(tmp_path, found)
        assert "interpolated to equal distances" in read_volume(tmp_path).warnings[-1]

    def test_many_even_slices(self, tmp_path: Path) -> None:
        grid = GRID.copy()
        grid[2, 2] = 5 / 12
        save(tmp_path, slices(np.tile(HU, (20, 1, 1)), grid))
        volume = read_volume(tmp_path)
        assert len(volume.hu) == 240
        assert volume.warnings == ()

    def test_missing_slices_are_refused_or_interpolated(self, tmp_path: Path) -> None:
        paths = save(tmp_path, slices(linear_hu(GRID, (20, 40, 48), MIDDLE)))
        for number in (5, 6, 11):
            paths[number].unlink()
        message = refusal(tmp_path)
        assert "is missing about 3 slices" in message
        assert "between s005.dcm (110.00 mm) and s008.dcm (117.50 mm)" in message
        volume = read_volume(tmp_path, given=Given(fill_gaps=True))
        assert "missing about 3 slices" in volume.warnings[0]
        np.testing.assert_allclose(volume.hu, linear_hu(GRID, (20, 40, 48), MIDDLE), atol=1)


class TestSeries:
    def test_copies_are_merged(self, tmp_path: Path) -> None:
        paths = save(tmp_path, slices())
        (tmp_path / "again").mkdir()
        for path in paths[2:8]:
            shutil.copy(path, tmp_path / "again" / f"{path.stem} (1).dcm")
        for given in (tmp_path, tmp_path / "s004.dcm", shutil.copy(paths[3], tmp_path / "z.dcm")):
            assert_read(given, HU)

    @pytest.mark.parametrize("shift", [0.0, 1.25, 10.0, 30.0])
    def test_two_acquisitions_are_two_series(self, tmp_path: Path, shift: float) -> None:
        grid = GRID.copy()
        grid[2, 3] += shift
        save(tmp_path, slices(AcquisitionNumber=1))
        save(tmp_path, slices(HU + np.int16(40), grid, AcquisitionNumber=2), "t")
        message = refusal(tmp_path)
        assert "CT series 3.1 'TRUNK' (12 slices" in message
        assert "CT series 3.2 'TRUNK' (12 slices" in message
        np.testing.assert_array_equal(read_volume(tmp_path, series="3.1").hu, HU)
        np.testing.assert_array_equal(read_volume(tmp_path, series="3.2").hu, HU + 40)

    @pytest.mark.parametrize("shift", [0.0, 1.25])
    def test_two_kernels_under_one_uid_are_two_series(self, tmp_path: Path, shift: float) -> None:
        grid = GRID.copy()
        grid[2, 3] += shift
        save(tmp_path, slices(ConvolutionKernel="B30f"))
        save(tmp_path, slices(HU + np.int16(40), grid, ConvolutionKernel="B70f"), "t")
        assert "CT series 3.B30f 'TRUNK' (12 slices" in refusal(tmp_path)
        np.testing.assert_array_equal(read_volume(tmp_path, series="3.B70f").hu, HU + 40)

    def test_steps_of_a_scan_are_one_series(self, tmp_path: Path) -> None:
        found = slices()
        for number, data in enumerate(found):
            data.AcquisitionNumber = 1 + number // 2
        save(tmp_path, found)
        np.testing.assert_array_equal(read_volume(tmp_path).hu, HU)

    @pytest.mark.parametrize("tags", [{"SeriesNumber": 4}, {"PatientID": "OTHER"}])
    def test_of_an_anonymiser_that_gave_all_one_uid(self, tmp_path: Path, tags: dict[str, Any]) -> None:
        """Halfway between the slices of the first they would be taken for slices of the same CT."""
        grid = GRID + np.array([[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1.25], [0, 0, 0, 0]])
        save(tmp_path, slices())
        save(tmp_path, slices(HU + 40, grid, **tags), "other")
        assert refusal(tmp_path).startswith("2 CT series")

    def test_numbers_that_are_rounded_now_to_one_side_now_to_the_other(self, tmp_path: Path) -> None:
        found = slices(grid=GRID * [1, 1, 0.25, 1])
        for number, data in enumerate(found):
            data.ImagePositionPatient[2] = f"{25 + 0.625 * number:.1f}"
            data.ImageOrientationPatient[1] = ("0.00049", "0.00051")[number % 2]
            data.PixelSpacing[0] = ("0.80005", "0.80004")[number % 2]
        for path in save(tmp_path, found):
            # and padded to an even number of bytes, or to a sector
            path.write_bytes(path.read_bytes() + bytes(2))
        volume = assert_read(tmp_path, HU)
        assert volume.geometry.spacing_dhw[0] == pytest.approx(0.625, abs=0.01)

    def test_damage_costs_its_own_series_alone(self, tmp_path: Path) -> None:
        save(tmp_path / "a", slices())
        others = save(tmp_path / "b", slices(SeriesInstanceUID=f"{UID}.2", SeriesNumber=4))
        others[4].write_bytes(others[4].read_bytes()[:-500])
        others[7].write_bytes(b"")
        volume = read_volume(tmp_path)
        np.testing.assert_array_equal(volume.hu, HU)
        assert "took CT series 3 'TRUNK'" in volume.warnings[0]
        why = "is cut short: it has fewer pixels than it states; 1 more files likewise"
        assert volume.warnings[1] == f"files left out: {others[4]} {why}"
        assert "missing about 2 slices" in refusal(tmp_path, series="4")

    def test_folders_that_links_lead_to(self, tmp_path: Path) -> None:
        save(tmp_path / "store" / "deep", slices())
        (tmp_path / "given").mkdir()
        (tmp_path / "given" / "link").symlink_to(tmp_path / "store", target_is_directory=True)
        (tmp_path / "given" / "link again").symlink_to(tmp_path / "store", target_is_directory=True)
        (tmp_path / "store" / "deep" / "up").symlink_to(tmp_path / "store", target_is_directory=True)
        np.testing.assert_array_equal(read_volume(tmp_path / "given").hu, HU)

    @pytest.mark.parametrize(
        ("tags", "kind"),
        [
            ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "CT localisers"),
            ({"ImageType": ["DERIVED", "PRIMARY", "AXIAL", "IODINE"]}, "CT maps of a material"),
            ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "CT objects that are no slices"),
            ({"Modality": "PT"}, "PT images"),
        ],
    )
    def test_what_is_no_slice_is_set_aside(self, tmp_path: Path, tags: dict[str, Any], kind: str) -> None:
        save(tmp_path, slices(SeriesInstanceUID=f"{UID}.2", **tags), "o")
        assert f"only 12 {kind}" in refusal(tmp_path)
        save(tmp_path, slices())
        assert_read(tmp_path, HU)

    @pytest.mark.parametrize(
        "tag", ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "PixelData", "Rows"]
    )
    def test_what_is_missing_is_named(self, tmp_path: Path, tag: str) -> None:
        save(tmp_path, slices(**{tag: None}))
        message = refusal(tmp_path)
        assert f"has no {'pixels' if tag == 'PixelData' else tag}" in message
        assert "11 more files" in message

    @pytest.mark.parametrize("tag", ["Modality", "SeriesInstanceUID", "SliceThickness", "PatientID", "ImageType"])
    def test_what_is_not_needed_may_be_missing(self, tmp_path: Path, tag: str) -> None:
        save(tmp_path, slices(**{tag: None}))
        np.testing.assert_array_equal(read_volume(tmp_path).hu, HU)

    def test_without_preamble(self, tmp_path: Path) -> None:
        for path in save(tmp_path, slices(), suffix=""):
            data = pydicom.dcmread(path)
            with open(path, "wb") as file:
                pydicom.dcmwrite(file, Dataset(data), implicit_vr=True, little_endian=True)
        np.testing.assert_array_equal(read_volume(tmp_path).hu, HU)


class TestValues:
    def test_the_display_is_inverted_not_the_values(self, tmp_path: Path) -> None:
        save(tmp_path, slices(PhotometricInterpretation="MONOCHROME1"))
        np.testing.assert_array_equal(read_volume(tmp_path).hu, HU)

    @pytest.mark.parametrize("signed", [False, True])
    def test_bits_above_those_stored(self, tmp_path: Path, signed: bool) -> None:
        found = slices(np.clip(HU, -1024, 1000), signed=signed, BitsStored=12, HighBit=11)
        for data in found:
            stored = np.frombuffer(data.PixelData, "<u2") | np.uint16(0xA000)
            data.PixelData = stored.tobytes()
        save(tmp_path, found)
        np.testing.assert_array_equal(read_volume(tmp_path).hu, np.clip(HU, -1024, 1000))

    @pytest.mark.parametrize("padding", [-2000, 63536])
    def test_padding_becomes_air(self, tmp_path: Path, padding: int) -> None:
        hu = HU.copy()
        hu[:, :3] = -1024
        save(tmp_path, painted(slices(hu, signed=padding < 0), padding, "<i2" if padding < 0 else "<u2"))
        np.testing.assert_array_equal(read_volume(tmp_path).hu, hu)

    def test_padding_that_would_be_metal(self, tmp_path: Path) -> None:
        save(tmp_path, painted(slices(signed=False, PixelPaddingValue=0x8000), 0x8000))
        np.testing.assert_array_equal(read_volume(tmp_path).hu[:, 3:], HU[:, 3:])
        assert (read_volume(tmp_path).hu[:, :3] == -1024).all()

    def test_big_endian_padding(self, tmp_path: Path) -> None:
        for number, data in enumerate(painted(slices(signed=False), 63536)):
            data.PixelData = np.frombuffer(data.PixelData, "<u2").astype(">u2").tobytes()
            data.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.2"
            pydicom.dcmwrite(tmp_path / f"{number}.dcm", data, little_endian=False, implicit_vr=False)
        np.testing.assert_array_equal(read_volume(tmp_path).hu[:, 3:], HU[:, 3:])
        assert (read_volume(tmp_path).hu[:, :3] == -1024).all()

    def test_metal_on_an_extended_scale(self, tmp_path: Path) -> None:
        save(tmp_path, painted(slices(HU + 8192 - 1024, signed=False, RescaleIntercept=-8192), 65535))
        np.testing.assert_array_equal(read_volume(tmp_path).hu[:, 3:], HU[:, 3:])
        assert (read_volume(tmp_path).hu[:, :3] == 32767).all()

    @pytest.mark.parametrize(
        ("tags", "words"),
        [
            ({"ModalityLUTSequence": [Dataset()]}, "has a table of values (Modality LUT)"),
            ({"RescaleSlope": 0}, "RescaleSlope of 0"),
            ({"RescaleType": "MGML"}, "values in MGML (RescaleType), not in HU"),
        ],
    )
    def test_values_that_are_no_hu(self, tmp_path: Path, tags: dict[str, Any], words: str) -> None:
        save(tmp_path, slices(**tags))
        assert words in refusal(tmp_path)

    def test_pixels_that_are_too_few(self, tmp_path: Path) -> None:
        found = slices()
        found[5].PixelData = found[5].PixelData[:-40]
        save(tmp_path, found)
        assert "s006.dcm is cut short: it has fewer pixels than it states" in refusal(tmp_path)

    def test_compressed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        found = slices()
        for data in found:
            data.compress(RLELossless)
        *_, last = save(tmp_path, found)
        np.testing.assert_array_equal(read_volume(tmp_path).hu, HU)
        data = last.read_bytes()
        for count in (1, 2):
            last.write_bytes(data[:-40] + data[-40 + count :])
            assert "its pixels cannot be decoded" in refusal(tmp_path)

    def test_a_compression_that_needs_a_package(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        found = slices()
        for data in found:
            data.compress(RLELossless)
            data.file_meta.TransferSyntaxUID = JPEGLSLossless
        save(tmp_path, found)
        monkeypatch.setattr(get_decoder(JPEGLSLossless), "_available", {})
        message = refusal(tmp_path)
        assert "is compressed (JPEG-LS" in message
        assert "maesil[dicom]" in message


class TestFrames:
    @pytest.fixture(params=["enhanced", "legacy"])
    def enhanced(self, request: pytest.FixtureRequest) -> Callable[..., Any]:
        def made(hu: np.ndarray = HU) -> Any:
            data = slices(hu)[0]
            sop_class = {"enhanced": EnhancedCTImageStorage, "legacy": "1.2.840.10008.5.1.4.1.1.2.2"}[request.param]
            data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = sop_class
            data.NumberOfFrames = len(hu)
            orientation, measures, rescale = Dataset(), Dataset(), Dataset()
            orientation.ImageOrientationPatient = data.ImageOrientationPatient
            measures.PixelSpacing, measures.SliceThickness = data.PixelSpacing, data.SliceThickness
            rescale.RescaleIntercept, rescale.RescaleSlope, rescale.RescaleType = -1024, 1, "HU"
            shared, frames = Dataset(), []
            shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
            # from top to bottom, as some scanners store them
            for k in reversed(range(len(hu))):
                place, frame = Dataset(), Dataset()
                place.ImagePositionPatient = [*GRID[:2, 3], GRID[2, 3] + k * 2.5]
                frame.PlanePositionSequence, frame.PixelValueTransformationSequence = [place], [rescale]
                frames.append(frame)
            data.SharedFunctionalGroupsSequence, data.PerFrameFunctionalGroupsSequence = [shared], frames
            data.PixelData = (hu[::-1].astype(int) + 1024).astype("<i2").tobytes()
            del data.ImagePositionPatient, data.ImageOrientationPatient, data.PixelSpacing
            del data.RescaleIntercept, data.RescaleSlope
            return data

        return made

    def test_enhanced(self, tmp_path: Path, enhanced: Callable[..., Any]) -> None:
        save(tmp_path, [enhanced()])
        volume = read_volume(tmp_path)
        np.testing.assert_array_equal(volume.hu, HU)
        assert volume.geometry.spacing_dhw == (2.5, 0.8, 0.7)
        assert volume.geometry.origin_lps == (-20, -30, 100)

    def test_copies_are_merged(
        self, tmp_path: Path, enhanced: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        save(tmp_path, [enhanced(), enhanced()])
        decode = Mock(wraps=dicom_stack.read_pixels)
        monkeypatch.setattr(dicom_stack, "read_pixels", decode)
        np.testing.assert_array_equal(read_volume(tmp_path).hu, HU)
        # the pixels of one file
        assert decode.call_count == 1

    def test_frames_whose_place_is_not_stated(self, tmp_path: Path) -> None:
        data = slices()[0]
        data.NumberOfFrames = len(HU)
        data.PixelData = (HU.astype(int) + 1024).astype("<i2").tobytes()
        save(tmp_path, [data])
        assert "has 12 frames and does not state where each lies" in refusal(tmp_path)


def test_more_pixels_than_stated_are_damage_and_padding_is_none(tmp_path: Path) -> None:
    paths = save(tmp_path, slices())
    whole = paths[5].read_bytes()
    for more in (bytes(512), b"\xfc\xff\xfc\xffOB\0\0\2\0\0\0\0\0"):
        paths[5].write_bytes(whole + more)
        np.testing.assert_array_equal(read_volume(tmp_path).hu, HU)
    for more in (b"\0", b"\1\2", b"\x18\0" * 50):
        paths[5].write_bytes(whole[:-200] + more + whole[-200:])
        assert "more pixels than it states" in refusal(tmp_path)
