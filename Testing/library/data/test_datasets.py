"""Public data sets: what is taken of miniature trees of each layout, and what is not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from cli_factory import QUIET, assert_refused, maesil, write_ct
from conftest import REPOSITORY
from dataset_factory import MAKERS, SMALL, UID, amos, btcv, idc, lidc, msd, totalsegmentator

from MAESILLib.data.layouts import LAYOUTS, OTHER, OVERLAPS, UNLISTED, find_cases, find_layout, overlaps
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
        cases, found = find_cases(name, MAKERS[name](tmp_path))
        assert rows(cases, tmp_path) == TAKEN[name]
        assert found == FOUND[name]
        assert {(c.dataset, c.licence) for c in cases} == {
            ("rider_pilot" if name == "idc" else name, LAYOUTS[name].licence)
        }
        assert all(c.path.exists() for c in cases)

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

    def test_it_is_told_from_the_others(self, tmp_path: Path, name: str) -> None:
        found = {find_layout(source.path) for source in find_sources([MAKERS[name](tmp_path)])}
        assert found - {""} == {name}
        assert find_layout(tmp_path / LAYOUTS[name].example) == name

    def test_other_folders(self, tmp_path: Path, name: str) -> None:
        scan = write_ct(tmp_path / "in" / "scan.nrrd", SMALL)
        arguments = ("prepare", "--output", tmp_path / "cache", *QUIET, "--layout", name)
        assert_refused(maesil(*arguments, tmp_path / "in"), f"has no CT of {name}", OTHER, LAYOUTS[name].example)
        assert_refused(maesil(*arguments, scan), "is not a folder", LAYOUTS[name].example)
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

    @pytest.mark.parametrize("below", ["Task03_Liver", "Task03_Liver/imagesTr"])
    def test_msd(self, tmp_path: Path, below: str) -> None:
        assert rows(find_cases("msd", msd(tmp_path) / below)[0], tmp_path) == TAKEN["msd"]

    @pytest.mark.parametrize("below", ["Abdomen", "Abdomen/RawData", "Abdomen/RawData/Training"])
    def test_btcv(self, tmp_path: Path, below: str) -> None:
        assert rows(find_cases("btcv", btcv(tmp_path) / below)[0], tmp_path) == TAKEN["btcv"]

    def test_dicom(self, tmp_path: Path) -> None:
        one = find_cases("lidc-idri", lidc(tmp_path) / "LIDC-IDRI" / "LIDC-IDRI-0002")[0]
        assert rows(one, tmp_path) == TAKEN["lidc-idri"][2:]
        assert rows(find_cases("idc", idc(tmp_path) / "rider_pilot" / "P-1")[0], tmp_path) == TAKEN["idc"][:2]

    def test_relative(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(amos(tmp_path) / "imagesTr")
        assert rows(find_cases("amos", ".")[0], tmp_path) == TAKEN["amos"][:2]


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
        arguments = ("prepare", amos(tmp_path), "--output", tmp_path / "cache", *QUIET)
        assert_refused(maesil(*arguments, "--split", "val"), "--split is of a --layout")
        assert_refused(maesil(*arguments, "--layout", "liver"), "invalid choice: 'liver'", "totalsegmentator")


def test_overlaps() -> None:
    assert overlaps(["luna16", "amos", "msd"]) == []
    (line,) = overlaps(["luna16", "lidc_idri"])
    assert "LUNA16 is a part of LIDC-IDRI" in line
    assert {name for pair in OVERLAPS for name in pair} <= LAYOUTS.keys()
