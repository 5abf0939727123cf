"""Dense features, their colors and what is alike, from the library and the command line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from cli_factory import QUIET, assert_refused, leftovers, maesil, read_array, read_rows, write_ct, write_image
from numpy.typing import NDArray
from safetensors import safe_open
from volume_factory import geometry, rotation, trunk

from MAESILLib.ct.volume import CTVolume
from MAESILLib.explore.colors import fit_basis
from MAESILLib.explore.encoding import dense_features
from MAESILLib.explore.similarity import best_matches, directions, features_at, similarity_map, surroundings
from MAESILLib.export.encoder import PretrainedEncoder, load_encoder

SIZE = (32, 40, 48)
OBLIQUE: dict[str, Any] = {"spacing_dhw": (2.0, 1.2, 0.9), "direction": rotation(10, -5, 20)}


@pytest.fixture(scope="module")
def encoder(lively: Path) -> PretrainedEncoder:
    return load_encoder(lively)


def volume(hu: NDArray[np.int16], **grid: Any) -> CTVolume:
    return CTVolume(hu, geometry((hu.shape[0], hu.shape[1], hu.shape[2]), **grid), "v")


def varied(size: tuple[int, int, int]) -> NDArray[np.int16]:
    """A trunk in which no two places look alike."""
    places = sum(np.indices(size) * np.array([3, 5, 2])[:, None, None, None])
    return np.where(trunk(size) > -900, np.clip(trunk(size) + 2 * places, -900, 1000), -1000).astype(np.int16)


class TestFeatures:
    def test_one_window_is_what_the_encoder_makes_of_it(self, encoder: PretrainedEncoder) -> None:
        hu = varied(SIZE)
        with torch.inference_mode():
            expected = encoder.feature_maps(encoder.intensities(hu)[None])
        for block in (0, 2):
            found = dense_features(encoder, volume(hu), block=block)
            np.testing.assert_allclose(found.values, expected[block - 1][0], atol=4e-3)
        assert found.cells.geometry.size_dhw == (4, 5, 6)

    def test_a_smaller_stride_adds_cells_between(self, encoder: PretrainedEncoder) -> None:
        hu = varied(SIZE)
        # the first of the shifted passes begins two voxels before the volume
        shifted = np.pad(hu, ((2, 0), (2, 0), (2, 0)), mode="edge")[:32, :40, :48]
        fine, coarse = dense_features(encoder, volume(hu), stride=4), dense_features(encoder, volume(shifted))
        assert fine.values.shape[1:] == (8, 10, 12)
        np.testing.assert_allclose(fine.values[:, ::2, ::2, ::2], coarse.values, atol=4e-3)
        first, second = (fine.cells.geometry.physical_point((0, 0, n)) for n in (0, 1))
        assert np.linalg.norm(second - first) == pytest.approx(6)

    def test_windows_leave_no_seam(self, encoder: PretrainedEncoder) -> None:
        """Neighbours across the border of a window differ no more than others."""
        values = dense_features(encoder, volume(trunk((16, 40, 168))), window=4).values.astype(float)
        steps = np.abs(np.diff(values, axis=3)).mean((0, 1, 2))
        inner = steps[3:-3]
        assert inner.max() < 2.5 * np.median(inner)

    def test_progress_and_refusals(self, encoder: PretrainedEncoder) -> None:
        shares: list[float] = []
        dense_features(encoder, volume(varied(SIZE)), stride=4, progress=shares.append)
        assert shares == sorted(shares)
        assert 0 == shares[0] < shares[-1] < 1
        for options, words in (({"block": 9}, "block 9 is not there"), ({"stride": 3}, "stride 3 does not divide")):
            with pytest.raises(Exception, match=words):
                dense_features(encoder, volume(varied(SIZE)), **options)


def test_a_place_is_most_like_itself_wherever_the_volume_lies(encoder: PretrainedEncoder) -> None:
    features = surroundings(dense_features(encoder, volume(varied((24, 60, 80)), **OBLIQUE)))
    index = tuple(np.argwhere(features.body)[7])
    point = features.cells.geometry.physical_point(index)
    place = features_at(features, point[None])
    np.testing.assert_allclose(place[0], features.values[(slice(None), *index)], atol=1e-6)
    alike = similarity_map(directions(features.values), directions(place.T))
    assert np.abs(alike).max() <= 1 + 1e-5
    (first, value), *others = best_matches(features, alike, 3)
    np.testing.assert_allclose(first, point, atol=1e-6)
    assert value == pytest.approx(1, abs=1e-4)
    assert all(other < value and np.linalg.norm(at - first) >= 24 for at, other in others)


def test_axes_of_a_basis_do_not_depend_on_the_order_of_the_features() -> None:
    rng = np.random.default_rng(0)
    features = (rng.exponential(size=(500, 3)) @ rng.normal(size=(3, 8)) + 5).astype(np.float32)
    one, other = fit_basis(features), fit_basis(features[::-1])
    np.testing.assert_allclose(one.axes, other.axes, atol=1e-3)
    np.testing.assert_allclose(one.axes @ one.axes.T, np.eye(3), atol=1e-4)
    assert (((features - one.mean) @ one.axes.T) ** 3).sum(0).min() > 0


class TestCommands:
    def test_features(self, tmp_path: Path, lively: Path) -> None:
        scan, output = write_ct(tmp_path / "scan.nrrd", (24, 60, 80), **OBLIQUE), tmp_path / "out"
        arguments = ("features", scan, "--checkpoint", lively, *QUIET)
        maesil(*arguments, "--output", output).checked()
        assert sorted(path.name for path in output.iterdir()) == [
            "basis.safetensors",
            "features.safetensors",
            "pca.nrrd",
        ]
        with safe_open(output / "features.safetensors", "numpy") as file:
            values, body = file.get_tensor("features"), file.get_tensor("body")
            described = json.loads(file.metadata()["maesil"])
        assert (values.dtype, body.shape) == (np.float16, values.shape[1:])
        assert (described["block"], described["stride"], described["spacing_mm"]) == (5, 8, [12.0, 12.0, 12.0])
        image, colors = sitk.ReadImage(str(scan)), sitk.ReadImage(str(output / "pca.nrrd"))
        assert (colors.GetSize(), colors.GetNumberOfComponentsPerPixel()) == (image.GetSize(), 3)
        for name in ("Spacing", "Origin", "Direction"):
            expected, found = (getattr(one, f"Get{name}")() for one in (image, colors))
            np.testing.assert_allclose(found, expected, atol=1e-6)
        made, hu = read_array(output / "pca.nrrd"), read_array(scan)
        assert not made[hu < -950].reshape(-1, 3).any(1).mean() > 0.1
        assert made[hu > -500].std(0).min() > 10
        # the basis of another volume: the colors of the same one do not change
        maesil(*arguments, "--output", tmp_path / "again", "--basis", output / "basis.safetensors").checked()
        np.testing.assert_array_equal(read_array(tmp_path / "again" / "pca.nrrd"), made)

    def test_similar(self, tmp_path: Path, lively: Path) -> None:
        hu, size = varied((24, 60, 80)), (24, 60, 80)
        moved = geometry(size, **OBLIQUE, origin_lps=(100.0, -50.0, 30.0))
        paths = [tmp_path / "a.nrrd", tmp_path / "b.nrrd"]
        for path, grid in zip(paths, (geometry(size, **OBLIQUE), moved), strict=True):
            write_image(path, hu, grid)
        features = dense_features(load_encoder(lively), CTVolume(hu, geometry(size, **OBLIQUE), "a"))
        x, y, z = features.cells.geometry.physical_point(np.argwhere(features.body)[7])
        arguments = ("similar", paths[0], "--at", -x, -y, z, "--in", paths[1], "--checkpoint", lively, "--top", 2)
        result = maesil(*arguments, "--output", tmp_path / "out", "--progress", "bar").checked()
        rows = read_rows(tmp_path / "out" / "matches.csv")
        # in so small a volume there may be no second peak that far away
        ranked = [(row["volume"], row["rank"]) for row in rows]
        assert ranked == [one for one in (("a", "1"), ("a", "2"), ("b", "1"), ("b", "2")) if one in ranked]
        best = [row for row in rows if row["rank"] == "1"]
        assert "| a | 1 |" in result.out
        offset = np.subtract(moved.origin_lps, geometry(size, **OBLIQUE).origin_lps) * (-1, -1, 1)
        for row, shift in zip(best, ((0, 0, 0), offset), strict=True):
            found = [float(row[key]) for key in ("r_mm", "a_mm", "s_mm")]
            np.testing.assert_allclose(found, np.add((-x, -y, z), shift), atol=0.1)
        alike = sitk.ReadImage(str(tmp_path / "out" / "b.nrrd"))
        place = alike.TransformPhysicalPointToIndex((float(x - offset[0]), float(y - offset[1]), float(z + offset[2])))
        assert alike[place] == pytest.approx(1, abs=0.01)

    def test_what_cannot_be_is_one_line(self, tmp_path: Path, lively: Path) -> None:
        scan, output = write_ct(tmp_path / "scan.nrrd", (24, 40, 48)), tmp_path / "out"
        air = np.random.default_rng(0).normal(-1000, 5, (24, 24, 24)).astype(np.int16)
        air[:, 10:12, 10:12] = 700  # an infusion line
        write_image(tmp_path / "air.nrrd", air, geometry((24, 24, 24)))
        torch.save({}, tmp_path / "none.safetensors")
        common = ("--checkpoint", lively, "--output", output, *QUIET)
        similar = ("similar", scan, "--at", 0, 0, 9000, *common)
        assert_refused(maesil(*similar), "R A S = 0 0 9000 mm lies outside the volume")
        assert_refused(maesil("features", tmp_path / "air.nrrd", *common), "shows nothing of a patient")
        assert_refused(maesil("features", scan, *common, "--basis", tmp_path / "none.safetensors"), "is no basis")
        assert_refused(maesil("features", scan, *common, "--basis", tmp_path / "gone"), "no such file")
        assert_refused(maesil("similar", scan, "--at", 0, 0, 0, "--top", 0, *common), "--top is 0")
        assert leftovers(tmp_path) == []
        assert not output.exists()
