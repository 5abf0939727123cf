"""Public data sets: what is taken of miniature trees, by a layout, by a manifest, and as plain folders."""

import os
from pathlib import Path

import numpy as np
import pytest
from cli_factory import JSON, REPOSITORY, assert_refused, write_ct
from dataset_factory import MAKERS, SMALL, UID, amos, lidc, luna16, msd_task, totalsegmentator, touch
from prepare_factory import entries_of, prepare, reasons_of, stored
from volume_factory import trunk

from MAESILLib.data.cache import read_cache
from MAESILLib.data.layouts import LAYOUTS, OTHER, OVERLAPS, UNLISTED, find_cases, find_layout, overlaps
from MAESILLib.data.records import hash_of_patient
from MAESILLib.data.sources import Source, find_sources
from MAESILLib.runtime.errors import InputError

OPEN = "without a split"
Row = tuple[str, str, str, str]


def rows(cases: list[Source], root: Path) -> list[Row]:
    """Path, patient, split and labels of each case; paths from the root."""
    return [
        (os.path.relpath(c.path, root), c.patient, c.split, os.path.relpath(c.labels, root) if c.labels else "")
        for c in cases
    ]


SERIES = "LIDC-IDRI/LIDC-IDRI-000"
TAKEN: dict[str, list[Row]] = {
    "totalsegmentator": [
        (f"{s}/ct.nii.gz", f"totalsegmentator_{s}", split, f"{s}/segmentations")
        for s, split in (("s0000", "train"), ("s0001", "val"), ("s0010", "train"))
    ],
    "lidc-idri": [
        (f"{SERIES}1/01-01-2000-NA-30178/3000566.000000-NA-03192", "LIDC-IDRI-0001", "", ""),
        (f"{SERIES}1/01-01-2000-NA-35511/3000923.000000-NA-62357", "LIDC-IDRI-0001", "", ""),
        (f"{SERIES}2/01-01-2000-NA-98329/1.000000-NA-1", "LIDC-IDRI-0002", "", ""),
        (f"{SERIES}2/01-01-2000-NA-98329/3000522.000000-NA-04919", "LIDC-IDRI-0002", "", ""),
    ],
    "luna16": [
        (f"subset0/{UID}.1.mhd", f"luna16_{UID}.1", "", f"seg-lungs-LUNA16/{UID}.1.mhd"),
        (f"subset9/{UID}.2.mhd", f"luna16_{UID}.2", "", ""),
    ],
    "flare": [
        ("imagesTr/FLARE22_Tr_0001_0000.nii.gz", "flare_FLARE22_Tr_0001", "", "labelsTr/FLARE22_Tr_0001.nii.gz"),
        ("imagesTr/FLARE22_Tr_0002_0000.nii.gz", "flare_FLARE22_Tr_0002", "", ""),
    ],
    "amos": [
        ("imagesTr/amos_0001.nii.gz", "amos_0001", "train", "labelsTr/amos_0001.nii.gz"),
        ("imagesTr/amos_0004.nii.gz", "amos_0004", "train", "labelsTr/amos_0004.nii.gz"),
        ("imagesVa/amos_0008.nii.gz", "amos_0008", "val", "labelsVa/amos_0008.nii.gz"),
    ],
    "msd": [
        (f"Task03_Liver/imagesTr/{name}.nii.gz", f"msd_{name}", "", f"Task03_Liver/labelsTr/{name}.nii.gz")
        for name in ("liver_0", "liver_1")
    ],
    "btcv": [
        (f"{raw}/img/img{n}.nii.gz", f"btcv_{n}", "", f"{raw}/label/label{n}.nii.gz")
        for raw, n in (("Abdomen/RawData/Training", "0001"), ("Abdomen/RawData/Training", "0021"))
    ],
    "idc": [
        (f"rider_pilot/{patient}/{study}/{name}", patient, "", "")
        for patient, study, name in (
            ("P-1", "1.2.1", "CT_1.2.1.1"), ("P-1", "1.2.2", "CT_1.2.2.1"), ("P-2", "1.2.3", "CT_1.2.3.3")
        )
    ],
}  # fmt: skip
TEST_CASES: dict[str, list[Row]] = {
    "totalsegmentator": [("s0002/ct.nii.gz", "totalsegmentator_s0002", "val", "s0002/segmentations")],
    "flare": [("imagesTs/FLARETs_0001_0000.nii.gz", "flare_FLARETs_0001", "val", "")],
    "amos": [(f"imagesTs/{name}.nii.gz", name, "val", "") for name in ("amos_0002", "amos_0499")],
    "msd": [("Task03_Liver/imagesTs/liver_2.nii.gz", "msd_liver_2", "val", "")],
    "btcv": [("Abdomen/RawData/Testing/img/img0061.nii.gz", "btcv_0061", "val", "")],
}
FOUND = {
    "totalsegmentator": {"train": 2, "val": 1, "test": 1, UNLISTED: 1, OTHER: 1},
    "lidc-idri": {OPEN: 4},
    "luna16": {OPEN: 2},
    "flare": {OPEN: 2, "test": 1, OTHER: 1},
    "amos": {"train": 2, "val": 1, "test": 2, OTHER: 3},
    "msd": {OPEN: 2, "test": 1, OTHER: 3},
    "btcv": {OPEN: 2, "test": 1, OTHER: 1},
    "idc": {OPEN: 3, OTHER: 2},
}


@pytest.mark.parametrize("name", list(LAYOUTS))
class TestEveryLayout:
    def test_cases(self, tmp_path: Path, name: str) -> None:
        layout, sources = LAYOUTS[name], find_sources([MAKERS[name](tmp_path)])
        cases, found = find_cases(name, tmp_path)
        assert rows(cases, tmp_path) == TAKEN[name]
        assert found == FOUND[name]
        assert {(c.dataset, c.licence) for c in cases} == {("rider_pilot" if name == "idc" else name, layout.licence)}
        assert all(c.path.exists() for c in cases)
        # it is told from the others
        assert {find_layout(source.path) for source in sources} - {""} == {name}
        assert find_layout(tmp_path / layout.example) == name
        # label maps are no sources without a layout either
        labels = {Path(case.labels) for case in cases if case.labels}
        assert bool(labels) == bool(layout.labels)
        assert labels.isdisjoint(path for source in sources for path in (source.path, *source.path.parents))

    def test_splits(self, tmp_path: Path, name: str) -> None:
        """Test cases are taken alone, to be measured on; sets that name no validation part leave it to the cache."""
        MAKERS[name](tmp_path)
        for split, expected in (
            ("train", [row for row in TAKEN[name] if row[2] != "val"]),
            ("val", [row for row in TAKEN[name] if row[2] == "val"]),
            ("test", TEST_CASES.get(name, [])),
        ):
            if expected:
                assert rows(find_cases(name, tmp_path, split)[0], tmp_path) == expected
            else:
                with pytest.raises(InputError, match=f"no CT of {name} for {split}: its volumes are "):
                    find_cases(name, tmp_path, split)

    def test_other_folders(self, tmp_path: Path, name: str) -> None:
        scan = write_ct(tmp_path / "in" / "scan.nrrd", SMALL)
        for given, words in ((scan.parent, (f"has no CT of {name}", OTHER)), (scan, ("is not a folder",))):
            result = prepare(tmp_path / "cache", given, "--layout", name, status=2)
            assert_refused(result, *words, LAYOUTS[name].example)
        assert not (tmp_path / "cache").exists()

    def test_the_page_has_it(self, name: str) -> None:
        page = (REPOSITORY / "docs" / "Datasets.md").read_text(encoding="utf-8")
        layout = LAYOUTS[name]
        assert f"--layout {name} " in page
        assert layout.licence in page


class TestFolders:
    @pytest.mark.parametrize(
        "path", ["mysubset0/a.mhd", "subset0/a.mhd/b.mhd", "subset0/a.mhd.zip", "imagesTr/amos_00011.nii.gz"]
    )
    def test_other_names(self, tmp_path: Path, path: str) -> None:
        assert find_layout(tmp_path / path) == ""

    @pytest.mark.parametrize(
        ("name", "below", "taken"),
        [
            *(("msd", below, slice(2)) for below in ("Task03_Liver", "Task03_Liver/imagesTr")),
            *(("btcv", f"Abdomen{below}", slice(2)) for below in ("", "/RawData", "/RawData/Training")),
            ("lidc-idri", "LIDC-IDRI/LIDC-IDRI-0002", slice(2, 4)),
            ("idc", "rider_pilot/P-1", slice(2)),
            ("amos", "imagesTr", slice(2)),
        ],
    )
    def test_parts(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, below: str, taken: slice) -> None:
        folder = MAKERS[name](tmp_path) / below
        monkeypatch.chdir(folder)
        for given in (folder, "."):
            assert rows(find_cases(name, given)[0], tmp_path) == TAKEN[name][taken]


class TestRefusals:
    @pytest.mark.parametrize(
        ("table", "words"),
        [
            (None, "meta.csv is missing"),
            ("image_id;split\ns0000;dev\n", "does not give each image_id a split"),
            ("image_id,split\ns0000,train\n", "does not give each image_id a split"),
            ("image_id;split\n", "does not give each image_id a split"),
        ],
    )
    def test_tables_of_splits(self, tmp_path: Path, table: str | None, words: str) -> None:
        path = totalsegmentator(tmp_path) / "meta.csv"
        path.unlink()
        if table is not None:
            path.write_text(table, encoding="utf-8")
        with pytest.raises(InputError, match=words):
            find_cases("totalsegmentator", tmp_path)

    def test_arguments(self, tmp_path: Path) -> None:
        for arguments, words in (
            (("--split", "val"), ("--split is of a --layout",)),
            (("--layout", "liver"), ("invalid choice: 'liver'", "totalsegmentator")),
        ):
            assert_refused(prepare(tmp_path / "cache", amos(tmp_path), *arguments, status=2), *words)


def test_two_layouts_in_one_cache(tmp_path: Path) -> None:
    cache, total = tmp_path / "cache", totalsegmentator(tmp_path / "total", real=True)
    for key, folder in (("totalsegmentator", total), ("msd", msd_task(tmp_path, "Task03_Liver", "liver", real=True))):
        result = prepare(cache, "--layout", key, folder, *JSON)
        (info,) = [event for event in result.named("info") if event["what"] == "listing"]
        assert info["found"]["test"] == 1
    keys = ("patient_name", "split", "dataset", "licence", "labels")
    expected = {
        f"{s}_ct": (f"totalsegmentator_{s}", split, "totalsegmentator", "CC BY 4.0", ("aorta", "liver"))
        for s, split in (("s0000", "train"), ("s0001", "val"), ("s0010", "train"))
    } | {name: (f"msd_{name}", "", "msd", "CC BY-SA 4.0", ("label 1", "label 2")) for name in ("liver_0", "liver_1")}
    # public names are kept
    found = {e.name: tuple(getattr(e, key) for key in keys) for e in read_cache(cache).entries}
    assert found == expected
    np.testing.assert_array_equal(stored(cache, "s0010_ct"), trunk(SMALL, 10))

    arguments = ("--layout", "totalsegmentator", total, "--split", "test", "--progress", "bar")
    result = prepare(tmp_path / "test", *arguments)
    assert "1 CT of totalsegmentator to prepare; found 2 train, 1 val, 1 test, 1 not of this layout, " in result.err
    assert [(e.name, e.split) for e in read_cache(tmp_path / "test").entries] == [("ct", "val")]


def test_a_manifest_gives_the_same(tmp_path: Path) -> None:
    folder = msd_task(tmp_path / "in", "Task03_Liver", "liver", real=True)
    manifest = tmp_path / "liver.csv"
    rows = [
        f"in/Task03_Liver/imagesTr/liver_{n}.nii.gz,msd_liver_{n},,msd,CC BY-SA 4.0,"
        f"in/Task03_Liver/labelsTr/liver_{n}.nii.gz"
        for n in (0, 1)
    ]
    manifest.write_text("\n".join(["file,patient,split,dataset,licence,labels", *rows]), encoding="utf-8")
    prepare(tmp_path / "a", manifest)
    prepare(tmp_path / "b", "--layout", "msd", folder)
    assert read_cache(tmp_path / "a").entries == read_cache(tmp_path / "b").entries
    # edited, and prepared again: what the manifest says of a volume holds
    manifest.write_text(manifest.read_text().replace("msd_liver_0,,", "msd_liver_0,val,"), encoding="utf-8")
    result = prepare(tmp_path / "a", manifest, *JSON)
    assert [entry.split for entry in read_cache(tmp_path / "a").entries] == ["val", ""]
    assert result.named("warning") == [], "a manifest needs no layout"


def test_without_a_layout_a_note_says_what_it_looks_like(tmp_path: Path) -> None:
    folder, cache = msd_task(tmp_path, "Task03_Liver", "liver", real=True), tmp_path / "cache"
    warnings = [event["message"] for event in prepare(cache, folder, *JSON).named("warning")]
    assert any("laid out like msd" in warning and "--layout msd" in warning for warning in warnings)
    assert set(entries_of(cache)) == {"liver_0", "liver_1", "liver_2"}
    assert reasons_of(cache) == {}
    # told of it later, the cache takes over what the layout says of the volumes that it has
    prepare(cache, folder, "--layout", "msd")
    entry = entries_of(cache)["liver_0"]
    assert (entry["patient"], entry["dataset"]) == (hash_of_patient("msd_liver_0"), "msd")
    assert entry["labels"] == ("label 1", "label 2")
    plain = write_ct(tmp_path / "plain" / "a.nrrd", SMALL)
    assert prepare(tmp_path / "p", plain.parent, *JSON).named("warning") == []
    assert entries_of(tmp_path / "p")["a"]["labels"] == ()


def test_dicom_and_sets_that_overlap(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = prepare(cache, "--layout", "luna16", luna16(tmp_path / "luna"), *JSON)
    assert first.named("warning") == []
    second = prepare(cache, "--layout", "lidc-idri", lidc(tmp_path / "lidc"), *JSON)
    assert any("LUNA16 is a part of LIDC-IDRI" in event["message"] for event in second.named("warning"))
    assert overlaps(["luna16", "amos", "msd"]) == []
    assert len(overlaps(["luna16", "lidc_idri"])) == 1
    assert {name for pair in OVERLAPS for name in pair} <= LAYOUTS.keys()
    # not the PatientID of the file, which is P
    assert sorted(e.patient for e in read_cache(cache).entries if e.dataset == "lidc-idri") == sorted(
        hash_of_patient(name) for name in ("LIDC-IDRI-0001", "LIDC-IDRI-0002")
    )
    reasons = reasons_of(cache).values()
    assert len(reasons) == 2
    assert any("DX" in reason for reason in reasons)


def test_folders_that_are_only_called_so_are_looked_into(tmp_path: Path) -> None:
    for name in ("labelsTr", "label", "segmentations", "seg-lungs-LUNA16"):
        touch(tmp_path / name / "a.nrrd")
    assert len(find_sources([tmp_path])) == 4
