"""Label maps for a probe: found, checked against their CT, brought onto the 1.5 mm grid, points drawn in them."""

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from cli_factory import read_array, write_image
from probe_factory import BRIGHT, DARK, SHAPE, phantom, write_phantoms, write_rows
from volume_factory import geometry, rotation, trunk

from MAESILLib.ct.body import body_mask
from MAESILLib.ct.geometry import Geometry
from MAESILLib.probe.labels import LabelledVolume, find_labelled, points_of
from MAESILLib.runtime.errors import InputError

TURNED = rotation(4, -7, 11) @ np.array([[0, 0, -1], [1, 0, 0], [0, -1, 0]])


def manifest(folder: Path, labels: str) -> Path:
    return write_rows(folder / "m.csv", ("file", "labels"), [("ct.nii.gz", labels)])


def the_one(folder: Path, labels: str) -> LabelledVolume:
    (volume,), absent = find_labelled(manifest(folder, labels))
    assert absent == []
    return volume


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with ct.nii.gz and its label map l.nii.gz."""
    write_image(tmp_path / "ct.nii.gz", trunk(SHAPE), geometry(SHAPE))
    write_image(tmp_path / "l.nii.gz", np.ones(SHAPE, np.uint8), geometry(SHAPE))
    return tmp_path


@pytest.mark.parametrize(
    ("size", "spacing", "direction"),
    [((21, 34, 27), (2.7, 1.1, 1.9), TURNED), ((26, 19, 33), (1.5, 1.5, 1.5), [[0, -1, 0], [0, 0, 1], [-1, 0, 0]])],
)
def test_the_nearest_voxel_of_an_oriented_anisotropic_label_map(
    tmp_path: Path, size: tuple[int, int, int], spacing: tuple[float, float, float], direction: np.ndarray
) -> None:
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 4, [-(-n // 3) for n in size]).repeat(3, 0).repeat(3, 1).repeat(3, 2)
    labels = labels[: size[0], : size[1], : size[2]].astype(np.uint8)
    grid = geometry(size, spacing, direction)
    write_image(tmp_path / "ct.nii.gz", trunk(size), grid)
    write_image(tmp_path / "l.nii.gz", labels, grid)
    hu, codes, names = the_one(tmp_path, "l.nii.gz").read()
    assert names == ["background", "label 1", "label 2", "label 3"]
    assert codes.shape == hu.shape

    # by the affine of the file itself: S, P, L axes in steps of 1.5 mm from the grid's first corner
    image = sitk.ReadImage(str(tmp_path / "l.nii.gz"))
    axes = np.array(image.GetDirection()).reshape(3, 3)
    to_lps = axes * np.array(image.GetSpacing())
    permutation = max(itertools.permutations(range(3)), key=lambda p: sum(abs(axes[2 - r, p[r]]) for r in range(3)))
    first, steps = np.zeros(3), np.zeros((3, 3))
    for axis, column in enumerate(permutation):
        sign, length = np.sign(axes[2 - axis, column]), image.GetSize()[column]
        step = 1.5 / image.GetSpacing()[column]
        assert codes.shape[axis] == int(np.ceil(length / step - 1e-3))
        first[column] = -0.5 + step / 2 if sign > 0 else length - 0.5 - step / 2
        steps[column, axis] = sign * step
    where = np.stack(np.meshgrid(*(np.arange(n) for n in codes.shape), indexing="ij"), -1)
    index = np.linalg.solve(to_lps, ((where @ steps.T + first) @ to_lps.T).reshape(-1, 3).T).T
    clear = (abs(index % 1 - 0.5) > 1e-3).all(1)
    i, j, k = np.clip(np.rint(index).astype(int), 0, np.array(image.GetSize()) - 1).T
    assert clear.mean() > 0.9
    assert (np.maximum(codes, 0).ravel() == labels[k, j, i])[clear].all()
    assert (codes < 0).sum() == ((np.maximum(codes, 0) == 0) & ~body_mask(hu)).sum()


class TestFinding:
    def test_names_of_dataset_json(self, folder: Path) -> None:
        (folder / "labelsTr").mkdir()
        (folder / "l.nii.gz").rename(folder / "labelsTr" / "l.nii.gz")
        for labels in ({"0": "background", "2": "cyst"}, {"background": 0, "cyst": 2}):
            (folder / "dataset.json").write_text(json.dumps({"labels": labels}))
            names = the_one(folder, "labelsTr/l.nii.gz").names
            assert names is not None
            assert names[2] == "cyst"

    def test_names_in_a_manifest_stand_for_the_file_beside(self, folder: Path) -> None:
        beside = (folder / "l.nii.gz").rename(folder / "ct_seg.nii.gz")
        names = {1: "tumour (by hand)", 3: "oedema"}
        expected = LabelledVolume(folder / "ct.nii.gz", "ct", "", (beside,), names)
        assert the_one(folder, "1=tumour (by hand); 3 = oedema") == expected

    def test_a_folder_of_cts_with_label_maps_beside_them(self, folder: Path) -> None:
        (folder / "l.nii.gz").rename(folder / "ct_seg.nii.gz")
        write_image(folder / "other.nii.gz", trunk(SHAPE), geometry(SHAPE))
        volumes, absent = find_labelled(folder)
        assert [volume.image.name for volume in volumes] == ["ct.nii.gz"]
        assert absent == []

    @pytest.mark.parametrize(
        ("labels", "reason"),
        [
            ("no_seg.nii.gz", "no such label map"),
            ("notes.xml", "notes.xml is no label map"),
            ("empty", "empty holds no label map"),
            ("1=tumour", "one label map beside it, and has none"),
        ],
    )
    def test_what_is_absent_is_said(self, folder: Path, labels: str, reason: str) -> None:
        (folder / "notes.xml").touch()
        (folder / "empty").mkdir()
        rows = [("ct.nii.gz", labels), ("ct2.nii.gz", "l.nii.gz")]
        write_image(folder / "ct2.nii.gz", trunk(SHAPE), geometry(SHAPE))
        volumes, (line,) = find_labelled(write_rows(folder / "two.csv", ("file", "labels"), rows))
        assert [volume.image.name for volume in volumes] == ["ct2.nii.gz"]
        assert "ct.nii.gz is left out" in line
        assert reason in line
        with pytest.raises(InputError, match="no CT with a label map"):
            find_labelled(manifest(folder, labels))

    def test_a_folder_of_structures(self, folder: Path) -> None:
        hu, labels = phantom(0)
        write_image(folder / "ct.nii.gz", hu, geometry(SHAPE))
        for name, value in (("bright", BRIGHT), ("dark", DARK), ("nothing", 9)):
            write_image(folder / "s" / f"{name}.nii.gz", (labels == value).astype(np.uint8), geometry(SHAPE))
        (folder / "s" / "._dark.nii.gz").touch()
        _, codes, names = the_one(folder, "s").read()
        assert names == ["background", "bright", "dark", "nothing"]
        assert (np.maximum(codes, 0) == labels).all()

    def test_values_that_are_no_labels(self, folder: Path) -> None:
        for array, reason in (
            (np.full(SHAPE, 0.5), "not whole numbers"),
            (np.arange(np.prod(SHAPE)).reshape(SHAPE) % 3000, "more than 1000 different values"),
        ):
            write_image(folder / "l.nii.gz", array.astype(np.float32), geometry(SHAPE))
            with pytest.raises(InputError, match=reason):
                the_one(folder, "l.nii.gz").read()

    @pytest.mark.parametrize(
        "grid",
        [
            geometry((32, 44, 47)),
            geometry(SHAPE, (1.5, 1.5, 1.6)),
            geometry(SHAPE, origin_lps=(-37.5, 13.0, -410.0)),
            geometry(SHAPE, direction=np.diag([-1, -1, 1])),
        ],
        ids=["size", "spacing", "origin", "direction"],
    )
    def test_a_label_map_that_lies_elsewhere(self, folder: Path, grid: Geometry) -> None:
        write_image(folder / "l.nii.gz", np.ones(grid.size_dhw, np.uint8), grid)
        with pytest.raises(InputError, match=re.escape("l.nii.gz does not have the geometry of its CT")):
            find_labelled(manifest(folder, "l.nii.gz"))


def test_points_lie_where_a_structure_fills_half_of_a_token(tmp_path: Path) -> None:
    volumes, _ = find_labelled(write_phantoms(tmp_path) / "manifest.csv")
    points = points_of(volumes)
    assert {point.patient for point in points if point.split == "val"} == {"p3"}
    true = {}
    for number in range(4):
        hu, labels = phantom(number)
        true[f"p{number}"] = np.where(body_mask(hu) | (labels > 0), labels, -1)
    structures = ("background", "bright", "dark")
    counts = dict.fromkeys(itertools.product(true, structures), 0)
    for point in points:
        d, h, w = (slice(max(0, n - 4), n + 4) for n in point.kji)
        assert (true[point.patient][d, h, w] == structures.index(point.structure)).sum() >= 256
        counts[point.patient, point.structure] += 1
    assert len(counts) == 12
    assert set(counts.values()) == {10}
    drawn = [[point.kji.tolist() for point in points_of(volumes, seed)] for seed in (0, 1)]
    assert drawn[0] == [point.kji.tolist() for point in points] != drawn[1]


def test_real_tumour_contours(real_ct: Path) -> None:
    path = real_ct / "val" / "sts__sts_029.nii.gz"
    volume = LabelledVolume(path, "p", "", (path.with_name("sts__sts_029_seg.nii.gz"),), {1: "tumour"})
    _, codes, names = volume.read()
    assert names == ["background", "tumour"]
    stored = read_array(volume.files[0]) == 1
    # same spacing: flips alone, so the profile along some axis is the stored one's, either way round
    assert (codes == 1).sum() == stored.sum()
    profile, expected = (codes == 1).sum((1, 2)).tolist(), stored.sum((1, 2)).tolist()
    assert profile in (expected, expected[::-1])
