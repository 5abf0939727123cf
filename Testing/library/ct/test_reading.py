"""Reading volume files: what is accepted, what is refused, and in which words."""

import gzip
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import volume_factory
from volume_factory import (
    GRID,
    IDENTITY,
    SHARED_CT,
    assert_read,
    forget_orientation,
    geometry,
    image_of,
    needs_real_ct,
    trunk,
    write_dicom,
)

from MAESILLib.ct.check import check_grid, check_values
from MAESILLib.ct.reading import read_geometry, read_volume, volume_stem
from MAESILLib.ct.scan import Given
from MAESILLib.runtime.errors import InputError

SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd", ".nhdr")


def save(folder: Path, array: np.ndarray, name: str = "scan.nrrd", **grid: object) -> Path:
    path = folder / name
    image = image_of(array, geometry(array.shape, **grid)) if grid or array.ndim != 3 else image_of(array, GRID)
    sitk.WriteImage(image, str(path), useCompression=True)
    return path


def patched(path: Path, offset: int, kind: str, *values: float) -> Path:
    """Overwrite fields of an uncompressed NIfTI header."""
    data = bytearray(path.read_bytes())
    struct.pack_into(kind, data, offset, *values)
    path.write_bytes(data)
    return path


def refusal(path: Path, **options: object) -> str:
    message = volume_factory.refusal(path, **options)
    assert "(0x" not in message
    assert "itk" not in message.lower()
    assert path.name in message
    return message


class TestFormats:
    @pytest.mark.parametrize("suffix", SUFFIXES)
    def test_values_and_geometry(self, tmp_path: Path, suffix: str) -> None:
        hu = trunk()
        volume = read_volume(save(tmp_path, hu, f"Case.01{suffix}"))
        assert volume.hu.dtype == np.int16
        np.testing.assert_array_equal(volume.hu, hu)
        assert volume.name == "Case.01"
        assert volume.warnings == ()
        assert volume.path.endswith(f"Case.01{suffix}")
        assert volume.geometry.size_dhw == (12, 40, 48)
        np.testing.assert_allclose(volume.geometry.spacing_dhw, (3.0, 0.8, 0.7), rtol=1e-6)
        for dhw in ((0, 0, 0), (11, 39, 47)):
            np.testing.assert_allclose(volume.geometry.physical_point(dhw), GRID.physical_point(dhw), atol=1e-4)

    @pytest.mark.parametrize("suffix", SUFFIXES)
    def test_the_geometry_alone(self, tmp_path: Path, suffix: str) -> None:
        path = save(tmp_path, trunk(), f"scan{suffix}")
        assert read_geometry(path) == read_volume(path).geometry

    def test_the_geometry_alone_of_slices_and_of_nothing(self, tmp_path: Path) -> None:
        write_dicom(tmp_path / "series", trunk() + 1024)
        assert read_geometry(tmp_path / "series") == read_volume(tmp_path / "series").geometry
        with pytest.raises(InputError, match="no such file"):
            read_geometry(tmp_path / "none.nii")

    def test_names(self, tmp_path: Path) -> None:
        assert volume_stem("/a/b.c.NII.GZ") == "b.c"
        assert volume_stem("b.other") == "b.other"
        assert read_volume(str(save(tmp_path, trunk()))).name == "scan"


class TestValues:
    def test_padding_is_clipped_and_metal_is_kept(self, tmp_path: Path) -> None:
        hu = trunk()
        hu[:, :3] = -3024
        hu[3, 20, 20] = 20000
        volume = read_volume(save(tmp_path, hu))
        assert (volume.hu[:, :3] == -1024).all()
        assert volume.hu[3, 20, 20] == 20000
        assert volume.warnings == ()

    @pytest.mark.parametrize(("more", "dtype"), [(0.0, np.int16), (0.25, np.float32)])
    def test_whole_floats_become_int16_and_fractions_stay(self, tmp_path: Path, more: float, dtype: type) -> None:
        volume = read_volume(save(tmp_path, trunk() + more))
        assert volume.hu.dtype == dtype
        np.testing.assert_array_equal(volume.hu, np.maximum(trunk() + more, -1024).astype(dtype))

    def test_large_integers_do_not_wrap(self, tmp_path: Path) -> None:
        hu = trunk().astype(np.int32)
        hu[0, 0, 0] = 40000
        assert read_volume(save(tmp_path, hu)).hu[0, 0, 0] == 32767

    def test_nifti_slope_and_intercept(self, tmp_path: Path) -> None:
        # scl_slope, scl_inter
        path = patched(save(tmp_path, (trunk() + 1024).astype(np.int16), "scan.nii"), 112, "<ff", 1.0, -1024.0)
        np.testing.assert_array_equal(read_volume(path).hu, trunk())

    def test_unchecked_reading_takes_values_as_they_are(self, tmp_path: Path) -> None:
        labels = (trunk() > 0).astype(np.uint8)
        volume = read_volume(save(tmp_path, labels), check=False)
        np.testing.assert_array_equal(volume.hu, labels)
        error = trunk().astype(np.int16) * 2
        np.testing.assert_array_equal(read_volume(save(tmp_path, error), check=False).hu, error)


class TestFileRefusals:
    def test_wrong_paths(self, tmp_path: Path) -> None:
        assert "no such file or folder" in refusal(tmp_path / "none.nrrd")
        assert "is not DICOM" in refusal(save(tmp_path, trunk()), series="3")
        assert "no DICOM CT series" in refusal(tmp_path)
        (tmp_path / "scan.png").write_bytes(b"picture")
        message = refusal(tmp_path / "scan.png")
        assert "unknown suffix" in message
        assert ".nii.gz" in message

    def test_no_permission(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = save(tmp_path, trunk(), "scan.nii.gz")

        def refuse(*_: object) -> None:
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr("MAESILLib.ct.nifti.open", refuse, raising=False)
        assert "no permission to read" in refusal(path)

    @pytest.mark.parametrize("suffix", SUFFIXES[:4])
    @pytest.mark.parametrize("content", [b"", b"this is no volume " * 50])
    def test_not_the_format(self, tmp_path: Path, suffix: str, content: bytes, capfd: pytest.CaptureFixture) -> None:
        (tmp_path / f"scan{suffix}").write_bytes(content)
        message = refusal(tmp_path / f"scan{suffix}")
        assert "cannot be read as" in message
        assert capfd.readouterr().err == ""

    @pytest.mark.parametrize("suffix", SUFFIXES[:4])
    @pytest.mark.parametrize("share", [0.5, 0.97])
    @pytest.mark.parametrize("compress", [True, False])
    def test_cut_short(
        self, tmp_path: Path, suffix: str, share: float, compress: bool, capfd: pytest.CaptureFixture
    ) -> None:
        path = tmp_path / f"scan{suffix}"
        sitk.WriteImage(image_of(trunk(), GRID), str(path), useCompression=compress)
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
        message = refusal(path)
        assert "cut short" in message or "cannot be read" in message
        assert capfd.readouterr().err == ""

    @pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
    def test_flipped_bytes_in_compressed_data(self, tmp_path: Path, suffix: str) -> None:
        path = save(tmp_path, trunk(), f"scan{suffix}")
        data = bytearray(path.read_bytes())
        for at in range(len(data) // 2, len(data) // 2 + 8):
            data[at] ^= 0x55
        path.write_bytes(data)
        message = refusal(path)
        assert "damaged" in message or "cut short" in message

    @pytest.mark.parametrize("suffix", [".nhdr", ".mhd"])
    def test_detached_data_missing(self, tmp_path: Path, suffix: str, capfd: pytest.CaptureFixture) -> None:
        path = save(tmp_path, trunk(), f"scan{suffix}")
        for other in tmp_path.iterdir():
            if other != path:
                other.unlink()
        refusal(path)
        assert capfd.readouterr().err == ""

    def test_another_compressed_size_than_stated(self, tmp_path: Path) -> None:
        path = save(tmp_path, trunk(), "scan.mha")
        data = path.read_bytes()
        start = data.index(b"CompressedDataSize = ") + 21
        path.write_bytes(data[:start] + b"0" + data[start + 1 :])
        assert "its compressed data end early" in refusal(path)

    def test_gzip_of_two_members_is_whole(self, tmp_path: Path) -> None:
        plain = save(tmp_path, trunk(), "scan.nii").read_bytes()
        (tmp_path / "two.nii.gz").write_bytes(gzip.compress(plain[:20000]) + gzip.compress(plain[20000:]))
        np.testing.assert_array_equal(read_volume(tmp_path / "two.nii.gz").hu, trunk())

    def test_nifti_twins(self, tmp_path: Path) -> None:
        save(tmp_path, trunk(seed=1), "scan.nii")
        np.testing.assert_array_equal(read_volume(save(tmp_path, trunk(seed=2), "scan.nii.gz")).hu, trunk(seed=2))
        np.testing.assert_array_equal(read_volume(tmp_path / "scan.nii").hu, trunk(seed=1))


class TestHeaderRefusals:
    @pytest.mark.parametrize(
        ("image", "name", "words"),
        [
            (sitk.JoinSeries([sitk.GetImageFromArray(trunk())] * 3), "scan.nii.gz", "is 4D (48x40x12x3)"),
            (sitk.GetImageFromArray(trunk()[5]), "scan.nrrd", "is 2D"),
            (sitk.GetImageFromArray(np.zeros((9, 9, 9, 3), np.uint8), isVector=True), "c.mha", "3 values a voxel"),
            (sitk.GetImageFromArray(np.zeros((9, 9, 9), np.complex64)), "c.nii", "complex"),
        ],
    )
    def test_no_scalar_volume(self, tmp_path: Path, image: sitk.Image, name: str, words: str) -> None:
        sitk.WriteImage(image, str(tmp_path / name))
        assert words in refusal(tmp_path / name)

    @pytest.mark.parametrize(("size", "axis"), [((7, 40, 48), "k"), ((12, 7, 48), "j"), ((12, 40, 7), "i")])
    def test_few_voxels(self, tmp_path: Path, size: tuple[int, int, int], axis: str) -> None:
        message = refusal(save(tmp_path, trunk(size), spacing_dhw=(3.0, 1.0, 1.0)))
        assert f"7 voxels along {axis}, fewer than 8" in message

    @pytest.mark.parametrize("spacing", [0.0007, 0.05, 20.5])
    def test_unbelievable_spacing(self, tmp_path: Path, spacing: float) -> None:
        message = refusal(save(tmp_path, trunk(), spacing_dhw=(spacing, 1.0, 1.0)))
        assert f"{spacing:g} mm along k, outside (0.05, 20] mm" in message

    @pytest.mark.parametrize("value", [0.0, float("nan")])
    def test_nifti_that_states_no_spacing(self, tmp_path: Path, value: float) -> None:
        # pixdim[3]; the sform states it too
        path = patched(save(tmp_path, trunk(), "scan.nii", spacing_dhw=(3.0, 1.0, 1.0)), 88, "<f", value)
        assert read_volume(path).geometry.spacing_dhw == (3.0, 1.0, 1.0)
        forget_orientation(path)
        assert "states no spacing" in refusal(path)
        volume = read_volume(path, given=Given(spacing_ijk=(1.0, 1.0, 2.5)))
        assert volume.geometry.spacing_dhw == (2.5, 1.0, 1.0)
        assert "no orientation" in volume.warnings[0]

    def test_nrrd_spacing_of_zero(self, tmp_path: Path) -> None:
        path = save(tmp_path, trunk(), spacing_dhw=(3.0, 1.0, 1.0))
        path.write_bytes(path.read_bytes().replace(b"(0,0,3)", b"(0,0,0)"))
        assert "mm along k" in refusal(path)

    def test_nrrd_of_another_space_or_unit(self, tmp_path: Path) -> None:
        path = save(tmp_path, trunk())
        file = path.read_bytes()
        path.write_bytes(file.replace(b"space: left-posterior-superior", b"space: scanner-xyz"))
        assert "a guess" in read_volume(path).warnings[0]
        path.write_bytes(file.replace(b"kinds:", b'space units: "cm" "cm" "cm"\nkinds:'))
        assert "has positions in cm, not in mm" in refusal(path)
        path.write_bytes(file.replace(b"kinds:", b'space units: "mm" "mm" "mm"\nkinds:'))
        assert read_volume(path).warnings == ()

    @pytest.mark.parametrize(
        ("suffix", "field"),
        [
            (".nrrd", b"Scanner: A"),
            (".nrrd", b"content:no blank\n# a: comment\nkey:=value"),
            (".nrrd", b'units: "mm" "mm" "mm"\nthicknesses: 3 3 3'),
            (".nhdr", b"AnatomicalOrientation: RAI"),
            (".mha", b"Scanner = A"),
        ],
    )
    def test_fields_that_touch_neither_voxels_nor_places(self, tmp_path: Path, suffix: str, field: bytes) -> None:
        path = save(tmp_path, trunk(), f"scan{suffix}")
        first, rest = path.read_bytes().split(b"\n", 1)
        # padded at the end, too
        path.write_bytes(b"\n".join([first, field, rest]) + (b"" if suffix == ".nhdr" else bytes(64)))
        volume = assert_read(path, trunk())
        np.testing.assert_allclose(volume.geometry.ijk_to_lps(), GRID.ijk_to_lps(), atol=1e-4)

    def test_nrrd_field_that_is_nearly_one_of_the_grid(self, tmp_path: Path) -> None:
        path = save(tmp_path, trunk())
        path.write_bytes(path.read_bytes().replace(b"space origin", b"space orgin"))
        assert "has a field 'space orgin': is it 'space origin'?" in refusal(path)

    def test_nifti_without_orientation_is_a_warning(self, tmp_path: Path) -> None:
        path = forget_orientation(save(tmp_path, trunk(), "scan.nii", spacing_dhw=(3.0, 1.0, 1.0)))
        (warning,) = read_volume(path).warnings
        assert "no orientation" in warning


class TestValueRefusals:
    def refusal(self, array: np.ndarray) -> str:
        with pytest.raises(InputError) as caught:
            check_values(array, "case")
        assert str(caught.value).startswith("case ")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def test_not_finite(self) -> None:
        hu = trunk().astype(np.float32)
        hu[4, 5, 6] = np.nan
        hu[7, 0, 0] = np.inf
        hu[8, 0, 0] = -np.inf
        message = self.refusal(hu)
        assert "3 voxels that are not finite" in message
        assert "(i, j, k) = (6, 5, 4)" in message

    def test_constant_too_large_and_air(self) -> None:
        assert "same value -1000" in self.refusal(np.full((12, 12, 12), -1000, np.int16))
        assert "too large" in self.refusal(trunk().astype(np.float32) * 200)
        air = np.random.default_rng(0).normal(-950, 30, (12, 12, 12)).astype(np.int16)
        assert "nothing but air" in self.refusal(air)

    def test_label_maps(self) -> None:
        hu = trunk()
        assert "label map" in self.refusal((hu > 0).astype(np.uint8))
        assert "label map" in self.refusal((hu > 0).astype(np.float32))
        thin = np.zeros((40, 40, 40), np.uint8)
        thin[10:30, ::9, ::9] = 1  # vessels: hardly any labelled voxel has a labelled neighbour in its row
        assert "label map" in self.refusal(thin)
        many = (np.indices((40, 40, 40)) // 8).astype(np.int16)
        assert "label map" in self.refusal(many[0] * 25 + many[1] * 5 + many[2] + 1)

    def test_eight_bit_picture(self) -> None:
        windowed = np.clip((trunk().astype(np.float32) + 160) / 400, 0, 1) * 255
        assert "8-bit picture" in self.refusal(windowed.astype(np.uint8))
        assert "8-bit picture" in self.refusal(windowed)

    def test_normalised(self) -> None:
        unit = np.clip((trunk().astype(np.float32) + 1000) / 2000, 0, 1)
        assert "normalised" in self.refusal(unit)
        assert "normalised" in self.refusal(unit * 2 - 1)
        assert "too narrow" in self.refusal((unit - unit.mean()) / unit.std() * 5)

    @pytest.mark.parametrize("offset", [1000, 1024])
    @pytest.mark.parametrize("padding", [None, -2000])
    def test_offset(self, offset: int, padding: int | None) -> None:
        hu = trunk() + np.int16(offset)
        if padding is not None:
            hu[:, :3] = padding
        message = self.refusal(np.maximum(hu, 0) if padding is None else hu)
        assert "offset of about +1024" in message
        assert "RescaleIntercept" in message

    def test_mr_like(self) -> None:
        rng = np.random.default_rng(0)
        body = np.where(trunk() > -500, rng.gamma(4, 90, trunk().shape), rng.gamma(1, 8, trunk().shape))
        assert "MR or another modality" in self.refusal(body.astype(np.int16))

    def test_crop_inside_the_body_is_a_warning(self) -> None:
        inside = np.random.default_rng(0).normal(20, 40, (16, 30, 30))
        inside[:, :6] = np.random.default_rng(1).normal(-100, 15, (16, 6, 30))
        inside[:, 12:15, 12:15] = 700
        (warning,) = check_values(inside.astype(np.int16), "crop")
        assert "no air" in warning

    def test_little_tissue_is_a_warning(self) -> None:
        hu = np.random.default_rng(0).normal(-990, 8, (16, 40, 40)).astype(np.int16)
        hu[8, 20, 15:22] = 60
        (warning,) = check_values(hu, "air")
        assert "soft tissue" in warning

    def test_grid_of_a_volume_is_checked(self) -> None:
        with pytest.raises(InputError, match="spacing of 0 mm along j"):
            check_grid((48, 40, 12), (1.0, 0.0, 1.0), IDENTITY, "case")


@needs_real_ct
class TestRealCT:
    SCANS = sorted(SHARED_CT.glob("*/*.nii.gz"))

    # The smallest of each kind here; all of them were read once by hand.
    @pytest.mark.parametrize(
        "path", sorted((p for p in SCANS if "_seg" not in p.name), key=lambda p: p.stat().st_size)[:12:2]
    )
    def test_scans_pass_without_warning(self, path: Path) -> None:
        assert read_volume(path).warnings == ()

    @pytest.mark.parametrize("path", [p for p in SCANS if "_seg" in p.name], ids=lambda p: p.name)
    def test_label_maps_are_refused(self, path: Path) -> None:
        assert "looks like a label map" in refusal(path)


class TestHeadersThatEndedSimpleITK:
    """Each ended its process."""

    @pytest.mark.parametrize(
        ("name", "old", "new"),
        [
            ("scan.nrrd", b"sizes: 48", b"sizes: " + b"7" * 5000),
            ("scan.nrrd", b"space: left", b"space: " + b"\xff" * 1000),
            ("scan.mha", b"NDims = 3", b"NDims = -1"),
            ("scan.mha", b"NDims = 3", b"NDims = 1e308"),
            ("scan.mhd", b"DimSize", b"Comment = " + b"x" * 9000 + b"\nDimSize"),
        ],
    )
    def test_are_refused(self, tmp_path: Path, name: str, old: bytes, new: bytes) -> None:
        path = save(tmp_path, trunk(), name)
        assert old in path.read_bytes()
        path.write_bytes(path.read_bytes().replace(old, new))
        assert "cannot be read as" in refusal(path)

    @pytest.mark.parametrize(
        ("line", "words"),
        [
            (b"ElementDataFile = LIST", "lists no data files"),
            (b"ElementDataFile = LIST\nscan.zraw", "lists 1 data files for 12 slices"),
            (b"ElementDataFile = s%03d.raw 1 11 1", "lists 11 data files for 12 slices"),
            (b"ElementDataFile = s%03d%n.raw 1 12 1", "names its data files 's%03d%n.raw"),
            (b"BinaryData = False", "has its voxels as text"),
        ],
    )
    def test_voxels_in_few_files_or_as_text(self, tmp_path: Path, line: bytes, words: str) -> None:
        path = save(tmp_path, trunk(), "scan.mhd")
        path.write_bytes(re.sub(line.split()[0] + b" = .*", line, path.read_bytes()))
        assert words in refusal(path)


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz", "scan.nrrd", "scan.mha"])
def test_bytes_behind_the_voxels_are_a_warning_and_a_bomb_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    is_packed = name.endswith(".gz")
    sitk.WriteImage(image_of(trunk(), GRID), str(path), useCompression=is_packed)
    data = gzip.decompress(path.read_bytes()) if is_packed else path.read_bytes()
    for count in (100, 2 << 20):
        more = data + bytes(count)
        path.write_bytes(gzip.compress(more) if is_packed else more)
        if count == 100:
            volume = read_volume(path)
            np.testing.assert_array_equal(volume.hu, trunk())
            assert volume.warnings == (f"{path} has 100 bytes more than its header states",)
        else:
            assert "holds more voxels than its header states" in refusal(path)
