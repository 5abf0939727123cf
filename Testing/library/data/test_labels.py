"""Label maps: found, checked against their CT, brought onto the model's grid, stored in the cache."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from cli_factory import JSON, write_ct, write_image
from prepare_factory import prepare
from probe_factory import BRIGHT, DARK, SHAPE, phantom, write_rows
from volume_factory import geometry, rotation, trunk

from MAESILLib.ct.geometry import Geometry
from MAESILLib.data.cache import CacheEntry, read_cache
from MAESILLib.data.labels import find_labels
from MAESILLib.data.sources import find_sources

TURNED = rotation(4, -7, 11) @ np.array([[0, 0, -1], [1, 0, 0], [0, -1, 0]])


def manifest(folder: Path, labels: str) -> Path:
    return write_rows(folder / "m.csv", ("file", "labels"), [("ct.nii.gz", labels)])


def prepared(folder: Path, labels: str) -> tuple[CacheEntry, np.ndarray | None, str]:
    """What a cache holds of the one CT, its label map, and what is said of it."""
    result = prepare(folder / "cache", manifest(folder, labels), *JSON)
    cache = read_cache(folder / "cache")
    (entry,) = cache.entries
    said = " ".join(event["message"] for event in result.named("warning"))
    return entry, np.array(cache.labels(entry)) if entry.labels else None, said


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with ct.nii.gz and its label map l.nii.gz."""
    write_ct(tmp_path / "ct.nii.gz", SHAPE)
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
    entry, codes, _ = prepared(tmp_path, "l.nii.gz")
    assert entry.labels == ("label 1", "label 2", "label 3")
    assert codes.shape == entry.shape_dhw

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
    assert (codes.ravel() == labels[k, j, i])[clear].all()


class TestFinding:
    def test_names_of_dataset_json(self, folder: Path) -> None:
        (folder / "labelsTr").mkdir()
        (folder / "l.nii.gz").rename(folder / "labelsTr" / "l.nii.gz")
        for labels in ({"0": "background", "1": "cyst"}, {"background": 0, "cyst": 1}):
            (folder / "dataset.json").write_text(json.dumps({"labels": labels}))
            assert prepared(folder, "labelsTr/l.nii.gz")[0].labels == ("cyst",)

    def test_names_in_a_manifest_stand_for_the_file_beside(self, folder: Path) -> None:
        beside = (folder / "l.nii.gz").rename(folder / "ct_seg.nii.gz")
        (source,) = find_sources([manifest(folder, "1=tumour (by hand); 3 = oedema")])
        found = find_labels(source)
        assert (found.files, found.names) == ((beside,), {1: "tumour (by hand)", 3: "oedema"})

    def test_a_folder_of_cts_with_label_maps_beside_them(self, folder: Path) -> None:
        (folder / "l.nii.gz").rename(folder / "ct_seg.nii.gz")
        write_ct(folder / "other.nii.gz", SHAPE, 1)
        prepare(folder / "cache", folder)
        assert [e.labels for e in read_cache(folder / "cache").entries] == [("label 1",), ()]

    @pytest.mark.parametrize(
        ("labels", "reason"),
        [
            ("no_seg.nii.gz", "no such label map"),
            ("notes.xml", "notes.xml is no label map"),
            ("empty", "empty holds no label map"),
            ("1=tumour", "0 files beside it are named like its label map"),
        ],
    )
    def test_what_is_absent_is_said(self, folder: Path, labels: str, reason: str) -> None:
        (folder / "notes.xml").touch()
        (folder / "empty").mkdir()
        entry, codes, said = prepared(folder, labels)
        assert (entry.labels, codes) == ((), None)
        assert "its label map is left out: " in said
        assert reason in said

    def test_a_folder_of_structures(self, folder: Path) -> None:
        hu, labels = phantom(0)
        write_image(folder / "ct.nii.gz", hu, geometry(SHAPE))
        for name, value in (("bright", BRIGHT), ("dark", DARK), ("nothing", 9)):
            write_image(folder / "s" / f"{name}.nii.gz", (labels == value).astype(np.uint8), geometry(SHAPE))
        (folder / "s" / "._dark.nii.gz").touch()
        entry, codes, _ = prepared(folder, "s")
        assert entry.labels == ("bright", "dark", "nothing")
        assert (codes == labels).all()

    @pytest.mark.parametrize(
        ("array", "reason"),
        [
            (np.full(SHAPE, 0.5), "not whole numbers"),
            (np.arange(np.prod(SHAPE)).reshape(SHAPE) % 3000, "more than 1000 different values"),
        ],
    )
    def test_values_that_are_no_labels(self, folder: Path, array: np.ndarray, reason: str) -> None:
        write_image(folder / "l.nii.gz", array.astype(np.float32), geometry(SHAPE))
        assert reason in prepared(folder, "l.nii.gz")[2]

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
        entry, _, said = prepared(folder, "l.nii.gz")
        assert (entry.labels, "l.nii.gz does not have the geometry of its CT" in said) == ((), True)


def test_it_is_read_again_only_where_it_changes(folder: Path) -> None:
    def stored() -> int:
        prepared(folder, "l.nii.gz")
        return (folder / "cache" / "volumes" / "ct.labels.npy").stat().st_mtime_ns

    first = stored()
    assert stored() == first
    write_image(folder / "l.nii.gz", 2 * np.ones(SHAPE, np.uint8), geometry(SHAPE))
    assert stored() != first
    entry, codes, _ = prepared(folder, "l.nii.gz")
    assert entry.labels == ("label 2",)
    # the source is not needed any more, nor is it lost with it
    (folder / "l.nii.gz").unlink()
    assert prepared(folder, "")[0] == entry
    assert (codes == 1).all()
