"""Label maps for a probe: found, checked against their CT, and brought onto the model's grid, patch by patch."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from cli_factory import write_image
from dataset_factory import touch
from probe_factory import BRIGHT, DARK, SHAPE, make_labelled, phantom
from volume_factory import geometry, rotation, trunk

from MAESILLib.data.cache import read_cache
from MAESILLib.data.records import CacheEntry
from MAESILLib.errors import InputError
from MAESILLib.probe.labels import LabelSource, check_registration, find_labels, structures
from MAESILLib.probe.patches import PatchLabels, drawn_patches, label_patches, patch_shares, with_unnamed
from MAESILLib.reading import read_geometry, read_volume


def entry_of(source: Path, labels: Path | str, dataset: str = "", name: str = "v") -> CacheEntry:
    return CacheEntry(name, SHAPE, "p", "train", str(source), "0", 0.5, dataset, labels=str(labels))


def source_of(entry: CacheEntry) -> LabelSource:
    found = find_labels(entry)
    assert isinstance(found, LabelSource), found
    return found


TURNED = rotation(4, -7, 11) @ np.array([[0, 0, -1], [1, 0, 0], [0, -1, 0]])


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
    source = source_of(entry_of(tmp_path / "ct.nii.gz", tmp_path / "l.nii.gz"))
    found = dict(structures(source, read_geometry(tmp_path / "ct.nii.gz"), 1.5))
    assert set(found) == {"label 1", "label 2", "label 3"}

    # by the affine of the file itself: S, P, L axes in steps of 1.5 mm from the grid's first corner
    image = sitk.ReadImage(str(tmp_path / "l.nii.gz"))
    axes = np.array(image.GetDirection()).reshape(3, 3)
    to_lps = axes * np.array(image.GetSpacing())
    origin = np.array(image.GetOrigin())
    permutation = max(itertools.permutations(range(3)), key=lambda p: sum(abs(axes[2 - r, p[r]]) for r in range(3)))
    shape = found["label 1"].shape
    first = np.zeros(3)
    steps = np.zeros((3, 3))
    for axis in range(3):
        column, sign = permutation[axis], np.sign(axes[2 - axis, permutation[axis]])
        length = image.GetSize()[column]
        step = 1.5 / image.GetSpacing()[column]
        assert shape[axis] == int(np.ceil(length * image.GetSpacing()[column] / 1.5 - 1e-3))
        first[column] = -0.5 + step / 2 if sign > 0 else length - 0.5 - step / 2
        steps[column, axis] = sign * step
    where = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)
    points = (where @ steps.T + first) @ to_lps.T + origin
    index = np.linalg.solve(to_lps, (points - origin).reshape(-1, 3).T).T
    clear = (abs(index % 1 - 0.5) > 1e-3).all(1)
    i, j, k = np.clip(np.rint(index).astype(int), 0, np.array(image.GetSize()) - 1).T
    expected = labels[k, j, i]
    assert clear.mean() > 0.9
    for value in (1, 2, 3):
        assert (found[f"label {value}"].ravel() == (expected == value))[clear].all()


def test_shares_count_voxels_without_padding() -> None:
    inside = np.random.default_rng(0).random((19, 8, 30)) < 0.4
    shares = patch_shares(inside, (8, 8, 8))
    assert shares.shape == (3, 1, 4)
    for d, h, w in np.ndindex(shares.shape):
        assert shares[d, h, w] == pytest.approx(inside[8 * d : 8 * d + 8, 8 * h : 8 * h + 8, 8 * w : 8 * w + 8].mean())


def test_half_is_positive_and_a_touch_is_neither(tmp_path: Path) -> None:
    cache = read_cache(make_labelled(tmp_path / "d", train=1, held_out=1))
    entry = cache.entries[0]
    found = label_patches(source_of(entry), read_geometry(entry.source), cache, (8, 8, 8))
    hu, labels = phantom(0)
    tissue = hu > -500
    for value in (BRIGHT, DARK):
        name = f"label {value}"
        positive, negative = set(found.positives(name).tolist()), set(found.negatives(name).tolist())
        for number, (d, h, w) in enumerate(np.ndindex(4, 6, 6)):
            box = tuple(slice(8 * n, 8 * n + 8) for n in (d, h, w))
            share, body = (labels[box] == value).mean(), tissue[box].mean()
            if abs(body - 0.5) < 0.02:
                continue
            assert (number in positive) == (body > 0.5 and share >= 0.5)
            assert (number in negative) == (body > 0.5 and share == 0)
        assert positive
        assert negative


class TestFinding:
    def test_names_of_the_catalogue_of_dataset_json_and_of_files(self, tmp_path: Path) -> None:
        touch(tmp_path / "ct.nii.gz", tmp_path / "l.nii.gz", tmp_path / "t" / "labelsTr" / "a.nii.gz")
        assert source_of(entry_of(tmp_path / "ct.nii.gz", tmp_path / "l.nii.gz", "amos")).names[6] == "liver"
        (tmp_path / "t" / "dataset.json").write_text(json.dumps({"labels": {"0": "background", "2": "cyst"}}))
        msd = source_of(entry_of(tmp_path / "ct.nii.gz", tmp_path / "t" / "labelsTr" / "a.nii.gz", "msd"))
        assert msd.names == {2: "cyst"}
        touch(tmp_path / "s" / "spleen.nii.gz", tmp_path / "s" / "liver.nii.gz", tmp_path / "s" / "._liver.nii.gz")
        folder = source_of(entry_of(tmp_path / "ct.nii.gz", tmp_path / "s"))
        assert folder.stated == {"liver", "spleen"}

    def test_names_in_a_manifest_stand_for_the_file_beside(self, tmp_path: Path) -> None:
        touch(tmp_path / "ct.nii.gz")
        entry = entry_of(tmp_path / "ct.nii.gz", tmp_path / "1=tumour (by hand); 3 = oedema")
        assert "there is not one: none" in str(find_labels(entry))
        touch(tmp_path / "ct_seg.nii.gz")
        source = source_of(entry)
        assert source.names == {1: "tumour (by hand)", 3: "oedema"}
        assert source.files == (tmp_path / "ct_seg.nii.gz",)
        touch(tmp_path / "ct_label.nii.gz")
        assert "there is not one: ct_seg.nii.gz, ct_label.nii.gz" in str(find_labels(entry))

    def test_what_is_gone_is_said(self, tmp_path: Path) -> None:
        touch(tmp_path / "ct.nii.gz", tmp_path / "notes.xml")
        (tmp_path / "empty").mkdir()
        for entry, reason in (
            (entry_of(tmp_path / "no.nii.gz", tmp_path / "ct.nii.gz"), "no.nii.gz is gone"),
            (entry_of(tmp_path / "ct.nii.gz", tmp_path / "no_seg.nii.gz"), "no_seg.nii.gz is gone"),
            (entry_of(tmp_path / "ct.nii.gz", tmp_path / "notes.xml"), "notes.xml is no label map"),
            (entry_of(tmp_path / "ct.nii.gz", tmp_path / "empty"), "empty holds no label map"),
        ):
            assert reason in str(find_labels(entry))

    def test_a_folder_of_structures(self, tmp_path: Path) -> None:
        hu, labels = phantom(0)
        write_image(tmp_path / "ct.nii.gz", hu, geometry(SHAPE))
        for name, value in (("bright", BRIGHT), ("dark", DARK), ("nothing", 9)):
            write_image(tmp_path / "s" / f"{name}.nii.gz", (labels == value).astype(np.uint8), geometry(SHAPE))
        source = source_of(entry_of(tmp_path / "ct.nii.gz", tmp_path / "s"))
        found = dict(structures(source, read_geometry(tmp_path / "ct.nii.gz"), 1.5))
        assert {name: int(inside.sum()) for name, inside in found.items()} == {
            "bright": int((labels == BRIGHT).sum()),
            "dark": int((labels == DARK).sum()),
        }
        assert (found["dark"] == (labels == DARK)).all()

    def test_values_that_are_no_labels(self, tmp_path: Path) -> None:
        hu, _ = phantom(0)
        write_image(tmp_path / "ct.nii.gz", hu, geometry(SHAPE))
        for name, array, reason in (
            ("half", np.full(SHAPE, 0.5, np.float32), "not whole numbers"),
            ("ct", np.arange(hu.size).reshape(SHAPE) % 3000, "more than 1000 different values"),
        ):
            write_image(tmp_path / f"{name}_l.nii.gz", array.astype(np.float32), geometry(SHAPE))
            source = source_of(entry_of(tmp_path / "ct.nii.gz", tmp_path / f"{name}_l.nii.gz"))
            with pytest.raises(InputError, match=reason):
                list(structures(source, geometry(SHAPE), 1.5))


class TestRegistration:
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
    def test_a_label_map_that_lies_elsewhere(self, tmp_path: Path, grid: object) -> None:
        cache = read_cache(make_labelled(tmp_path / "d", train=1, held_out=1))
        entry = cache.entries[0]
        assert check_registration(source_of(entry), cache) == read_volume(entry.source).geometry
        write_image(Path(entry.labels), np.ones(grid.size_dhw, np.uint8), grid)  # type: ignore[attr-defined]
        named = f"{re.escape(entry.labels)} does not have the geometry of its CT {re.escape(entry.source)}"
        with pytest.raises(InputError, match=named):
            check_registration(source_of(entry), cache)

    def test_a_source_that_has_changed(self, tmp_path: Path) -> None:
        cache = read_cache(make_labelled(tmp_path / "d", train=1, held_out=1))
        entry = cache.entries[0]
        for path in (entry.source, entry.labels):
            write_image(Path(path), np.zeros((32, 40, 48), np.int16), geometry((32, 40, 48)))
        with pytest.raises(InputError, match="the source has changed"):
            check_registration(source_of(entry), cache)


def test_unnamed_values_belong_to_their_data_set() -> None:
    def one(name: str) -> PatchLabels:
        return PatchLabels(np.arange(9), {name: np.array([1])}, {}, frozenset({name}))

    labels = {"a": one("label 1"), "b": one("label 2"), "c": one("label 1")}
    places = {"a": "x", "b": "x", "c": "y"}
    sources = [LabelSource(entry_of(Path("s"), "l", d, v), (Path("l"),), False) for v, d in places.items()]
    found = with_unnamed(labels, sources)
    assert found["a"].annotated == found["b"].annotated == {"label 1 (x)", "label 2 (x)"}
    assert found["c"].annotated == {"label 1 (y)"}
    assert list(found["b"].positive) == ["label 2 (x)"]
    # without another set they keep their plain names
    assert with_unnamed({"a": labels["a"]}, sources[:1])["a"].annotated == {"label 1"}


def test_draws_of_patches_have_a_limit_and_a_seed() -> None:
    labels = PatchLabels(np.arange(200), {"x": np.arange(60)}, {"x": np.arange(60, 80)}, frozenset({"x", "y"}))
    first, again, other = (drawn_patches(labels, ("x", "y", "z"), 40, "v", seed) for seed in (0, 0, 1))
    assert set(first) == {"x", "y"}
    positive, negative = first["x"]
    assert len(positive) == len(set(positive)) == len(negative) == len(set(negative)) == 40
    assert set(positive) <= set(range(60))
    assert set(negative) <= set(range(80, 200))
    assert len(first["y"][0]) == 0
    assert (again["x"][1] == negative).all()
    assert set(other["x"][1]) != set(negative)


def test_real_tumour_contours(real_ct: Path, tmp_path: Path) -> None:
    path = real_ct / "val" / "sts__sts_029.nii.gz"
    source = source_of(entry_of(path, real_ct / "1=GTV_Mass (manual tumour contour)"))
    ((name, inside),) = structures(source, read_geometry(path), 1.5)
    assert name == "GTV_Mass (manual tumour contour)"
    stored = sitk.GetArrayFromImage(sitk.ReadImage(str(path).replace(".nii", "_seg.nii"))) == 1
    assert inside.sum() == stored.sum()
    # same spacing: flips alone, so the contour's profile along some axis is the stored one's, either way round
    profiles = [stored.sum((1, 2)), stored.sum((0, 2)), stored.sum((0, 1))]
    own = inside.sum((1, 2))
    assert any(len(own) == len(p) and ((own == p).all() or (own == p[::-1]).all()) for p in profiles)
