"""Public data sets: what is listed of miniature trees of each layout, what is left out, and how it is described."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path

import pytest
from cli_factory import QUIET, assert_refused, maesil, write_ct
from dataset_factory import (
    MAKERS,
    SMALL,
    UID,
    amos,
    btcv,
    flare,
    idc,
    lidc,
    luna16,
    make_msd,
    totalsegmentator,
    touch,
)

from MAESILLib.data.datasets.catalogue import DATASETS
from MAESILLib.data.datasets.description import Listing
from MAESILLib.data.datasets.layouts import READERS, choose, list_cases, overlaps, recognise
from MAESILLib.errors import InputError


def told(listing: Listing) -> list[tuple[str, str, str, list[str]]]:
    """Image, patient, split and labels of each case; paths from the listing's folder."""
    root = os.path.abspath(listing.folder)
    return [
        (os.path.relpath(c.image, root), c.patient, c.split, [os.path.relpath(p, root) for p in c.labels])
        for c in listing.cases
    ]


def left_out(listing: Listing) -> dict[str, str]:
    root = os.path.abspath(listing.folder)
    return {os.path.relpath(one.path, root): one.reason for one in listing.left_out}


class TestCases:
    def test_totalsegmentator(self, tmp_path: Path) -> None:
        listing = list_cases("totalsegmentator", totalsegmentator(tmp_path))
        parts = [("s0000", "train"), ("s0001", "val"), ("s0002", "test"), ("s0010", "train")]
        assert told(listing) == [
            (
                f"{s}/ct.nii.gz",
                f"totalsegmentator_{s}",
                split,
                [f"{s}/segmentations/{o}.nii.gz" for o in ("aorta", "liver")],
            )
            for s, split in parts
        ]
        assert listing.cases[0].label_names == ((1, "aorta"), (1, "liver"))
        assert listing.cases[0].labels_path == str(tmp_path / "s0000" / "segmentations")
        reasons = left_out(listing)
        assert set(reasons) == {
            ".DS_Store", "s0001/._ct.nii.gz", "s0001/segmentations/._liver.nii.gz", "s0003", "s0004", "s0005"
        }  # fmt: skip
        assert "hidden" in reasons[".DS_Store"]
        assert "macOS" in reasons["s0001/._ct.nii.gz"]
        assert "no ct.nii.gz" in reasons["s0003"]
        assert reasons["s0004"].startswith("MR")
        assert "meta.csv does not name it" in reasons["s0005"]

    def test_msd(self, tmp_path: Path) -> None:
        expected = [
            ("imagesTr/liver_0.nii.gz", "msd_liver_0", "", ["labelsTr/liver_0.nii.gz"]),
            ("imagesTr/liver_1.nii.gz", "msd_liver_1", "", ["labelsTr/liver_1.nii.gz"]),
            ("imagesTs/liver_2.nii.gz", "msd_liver_2", "test", []),
        ]
        listing = list_cases("msd", make_msd(tmp_path) / "Task03_Liver")
        assert told(listing) == expected
        assert listing.cases[0].label_names == ((1, "liver"), (2, "cancer"))
        assert left_out(listing) == {
            "imagesTr/._liver_0.nii.gz": "macOS resource file, no image",
            "imagesTr/._liver_1.nii.gz": "macOS resource file, no image",
            "labelsTr/liver_9.nii.gz": "label map without its image in imagesTr",
        }
        both = list_cases("msd", tmp_path)
        assert [case.patient for case in both.cases] == [row[1] for row in expected]
        assert left_out(both)["Task02_Heart"] == "not CT: its dataset.json gives the modality MRI"
        with pytest.raises(InputError, match=r"holds no CT of msd.*MRI"):
            list_cases("msd", tmp_path / "Task02_Heart")

    @pytest.mark.parametrize("channels", [{"0": "T2", "1": "ADC"}, {"0": "CT", "1": "PET"}, {}, "MRI"])
    def test_other_modalities_of_msd(self, tmp_path: Path, channels: object) -> None:
        path = make_msd(tmp_path) / "Task03_Liver" / "dataset.json"
        path.write_text(json.dumps({"modality": channels, "labels": {}}), encoding="utf-8")
        with pytest.raises(InputError, match=r"not CT: its dataset\.json gives the modality"):
            list_cases("msd", tmp_path)

    def test_amos(self, tmp_path: Path) -> None:
        listing = list_cases("amos", amos(tmp_path))
        assert told(listing) == [
            ("imagesTr/amos_0001.nii.gz", "amos_0001", "train", ["labelsTr/amos_0001.nii.gz"]),
            ("imagesTr/amos_0004.nii.gz", "amos_0004", "train", ["labelsTr/amos_0004.nii.gz"]),
            ("imagesVa/amos_0008.nii.gz", "amos_0008", "val", ["labelsVa/amos_0008.nii.gz"]),
            ("imagesTs/amos_0002.nii.gz", "amos_0002", "test", []),
            ("imagesTs/amos_0499.nii.gz", "amos_0499", "test", []),
        ]
        assert dict(listing.cases[0].label_names)[6] == "liver"
        mr = {"imagesTr/amos_0507.nii.gz", "imagesVa/amos_0600.nii.gz", "imagesTs/amos_0500.nii.gz"}
        reasons = left_out(listing)
        assert {path for path, reason in reasons.items() if reason.startswith("MR")} == mr
        assert reasons.keys() - mr == {"imagesTr/notes.txt"}

    def test_flare(self, tmp_path: Path) -> None:
        listing = list_cases("flare", flare(tmp_path))
        assert told(listing) == [
            ("imagesTr/FLARE22_Tr_0001_0000.nii.gz", "FLARE22_Tr_0001", "", ["labelsTr/FLARE22_Tr_0001.nii.gz"]),
            ("imagesTr/FLARE22_Tr_0002_0000.nii.gz", "FLARE22_Tr_0002", "", []),
            ("imagesTr/FLARE22_Tr_0003_0000.nii.gz", "FLARE22_Tr_0003", "", []),
            ("imagesTs/FLARETs_0001_0000.nii.gz", "FLARETs_0001", "test", []),
        ]
        assert listing.cases[0].label_names[-1] == (13, "left kidney")
        assert set(left_out(listing)) == {"imagesTr/FLARE22_Tr_0001_0001.nii.gz", "labelsTr/FLARE22_Tr_0009.nii.gz"}

    @pytest.mark.parametrize("below", ["", "Abdomen", "Abdomen/RawData"])
    def test_btcv(self, tmp_path: Path, below: str) -> None:
        listing = list_cases("btcv", btcv(tmp_path) / below)
        raw = os.path.relpath(tmp_path / "Abdomen" / "RawData", tmp_path / below)
        assert told(listing) == [
            (os.path.normpath(f"{raw}/{image}"), patient, split, [os.path.normpath(f"{raw}/{p}") for p in labels])
            for image, patient, split, labels in (
                ("Training/img/img0001.nii.gz", "btcv_0001", "", ["Training/label/label0001.nii.gz"]),
                ("Training/img/img0021.nii.gz", "btcv_0021", "", ["Training/label/label0021.nii.gz"]),
                ("Testing/img/img0061.nii.gz", "btcv_0061", "test", []),
            )
        ]
        assert dict(listing.cases[0].label_names)[13] == "left adrenal gland"
        assert list(left_out(listing).values()) == ["not named imgNNNN"]

    def test_luna16(self, tmp_path: Path) -> None:
        listing = list_cases("luna16", luna16(tmp_path))
        assert told(listing) == [
            (f"subset0/{UID}.1.mhd", f"luna16_{UID}.1", "", [f"seg-lungs-LUNA16/{UID}.1.mhd"]),
            (f"subset0/{UID}.2.mhd", f"luna16_{UID}.2", "", []),
        ]
        reasons = left_out(listing)
        assert set(reasons) == {f"subset9/{UID}.3.mhd", f"subset0/{UID}.7.raw"}
        assert "raw are missing" in reasons[f"subset9/{UID}.3.mhd"]

    @pytest.mark.parametrize("below", ["", "LIDC-IDRI"])
    def test_lidc(self, tmp_path: Path, below: str) -> None:
        listing = list_cases("lidc-idri", lidc(tmp_path) / below)
        one, two = (case.image.relative_to(tmp_path / "LIDC-IDRI") for case in listing.cases)
        assert (str(one), str(two)) == (
            "LIDC-IDRI-0001/01-01-2000-NA-30178/3000566.000000-NA-03192",
            "LIDC-IDRI-0002/01-01-2000-NA-98329/3000522.000000-NA-04919",
        )
        assert [case.patient for case in listing.cases] == ["LIDC-IDRI-0001", "LIDC-IDRI-0002"]
        assert [path.name for path in listing.cases[0].labels] == ["069.xml"]
        # from the whole download the annotations that came in an archive of their own are found too
        assert [path.name for path in listing.cases[1].labels] == ([] if below else ["158.xml"])
        assert sorted(left_out(listing).values()) == ["2 slices, fewer than 8: no volume (a localiser?)", "DX, not CT"]

    def test_idc(self, tmp_path: Path) -> None:
        expected = [("P-1", "CT_1.2.1.1"), ("P-1", "CT_1.2.2.1"), ("P-2", "CT_1.2.3.3")]
        for below in ("", "rider_pilot", "rider_pilot/P-1"):
            listing = list_cases("idc", idc(tmp_path) / below)
            found = [(case.patient, case.image.name) for case in listing.cases]
            assert found == (expected[:2] if below.endswith("P-1") else expected)
            assert {case.dataset for case in listing.cases} == {"rider_pilot"}
            shutil.rmtree(tmp_path / "rider_pilot")
        reasons = {
            os.path.basename(path): reason for path, reason in left_out(list_cases("idc", idc(tmp_path))).items()
        }
        assert reasons == {
            "SEG_1.2.1.2": "SEG, not CT",
            "MR_1.2.3.2": "MR, not CT",
            "CT_1.2.3.1": "2 slices, fewer than 8: no volume (a localiser?)",
        }

    @pytest.mark.parametrize("key", list(MAKERS))
    def test_every_case_is_described(self, tmp_path: Path, key: str) -> None:
        listing = list_cases(key, MAKERS[key](tmp_path))
        assert len({case.name for case in listing.cases}) == len({case.image for case in listing.cases})
        for case in listing.cases:
            assert case.image.exists()
            assert all(path.is_file() for path in case.labels)
            assert case.licence == ("" if key == "idc" else DATASETS[key].licence)
            assert case.dataset == ("rider_pilot" if key == "idc" else key)
        assert listing == list_cases(key, tmp_path)


class TestRefusals:
    @pytest.mark.parametrize("key", list(DATASETS))
    def test_other_folders(self, tmp_path: Path, key: str) -> None:
        write_ct(tmp_path / "in" / "scan.nrrd", SMALL)
        result = maesil("prepare", "--layout", key, tmp_path / "in", "--output", tmp_path / "cache", *QUIET)
        assert_refused(result, f"is not laid out like {key}: expected in it {DATASETS[key].expects}")
        assert not (tmp_path / "cache").exists()
        assert_refused(maesil("datasets", tmp_path / "none", "--layout", key, *QUIET), "does not exist")

    @pytest.mark.parametrize("key", list(DATASETS))
    def test_folders_of_other_sets(self, tmp_path: Path, key: str) -> None:
        """Each tree is told from all others."""
        found = recognise(MAKERS[key](tmp_path))
        assert found is not None
        assert found.key == key
        fitting = {other for other, reader in READERS.items() if reader.fits(tmp_path)}
        assert fitting == {key}

    def test_missing_tables(self, tmp_path: Path) -> None:
        (totalsegmentator(tmp_path / "t") / "meta.csv").unlink()
        with pytest.raises(InputError, match=r"meta\.csv is missing"):
            list_cases("totalsegmentator", tmp_path / "t")
        (tmp_path / "t" / "meta.csv").write_text("image_id;split\ns0000;dev\n", encoding="utf-8")
        with pytest.raises(InputError, match="names a split 'dev'"):
            list_cases("totalsegmentator", tmp_path / "t")
        (make_msd(tmp_path / "m") / "Task03_Liver" / "dataset.json").unlink()
        with pytest.raises(InputError, match=r"Task03_Liver has no dataset\.json"):
            list_cases("msd", tmp_path / "m")

    def test_arguments(self, tmp_path: Path) -> None:
        folder = amos(tmp_path / "amos")
        assert_refused(maesil("prepare", folder, "--output", "c", "--split", "val", *QUIET), "--split is of a --layout")
        assert_refused(maesil("datasets", "liver", *QUIET), "no data set 'liver' is known", "msd")
        assert_refused(maesil("datasets", "--split", "val", *QUIET), "give the FOLDER")
        (tmp_path / "empty").mkdir()
        assert_refused(maesil("datasets", tmp_path / "empty", *QUIET), "not laid out like a data set that is known")
        assert_refused(maesil("datasets", folder, "--manifest", tmp_path / "m.txt", *QUIET), "is no .csv")
        touch(tmp_path / "m.csv")
        assert_refused(maesil("datasets", folder, "--manifest", tmp_path / "m.csv", *QUIET), "m.csv exists")
        assert_refused(
            maesil("datasets", btcv(tmp_path / "btcv"), "--split", "val", *QUIET), "no case for --split val", "test"
        )


class TestSplits:
    def test_test_cases_are_apart(self, tmp_path: Path) -> None:
        listing = list_cases("amos", amos(tmp_path))
        assert [(c.name, c.split) for c in choose(listing).cases] == [
            ("amos_0001", "train"), ("amos_0004", "train"), ("amos_0008", "val")
        ]  # fmt: skip
        assert left_out(choose(listing))["imagesTs/amos_0002.nii.gz"] == "test case: --split test takes these alone"
        assert [(c.name, c.split) for c in choose(listing, "test").cases] == [
            ("amos_0002", "val"),
            ("amos_0499", "val"),
        ]
        assert [c.name for c in choose(listing, "val").cases] == ["amos_0008"]
        assert [c.name for c in choose(listing, "train").cases] == ["amos_0001", "amos_0004"]

    def test_sets_without_validation_leave_it_to_the_cache(self, tmp_path: Path) -> None:
        """If a part were called train and none val, nothing could be held out."""
        for key in ("msd", "flare", "btcv", "luna16", "lidc-idri", "idc"):
            assert {case.split for case in choose(list_cases(key, MAKERS[key](tmp_path / key))).cases} == {""}

    def test_overlaps(self) -> None:
        assert overlaps(["luna16", "amos", "msd"]) == []
        (line,) = overlaps(["luna16", "lidc_idri"])
        assert "LUNA16 is a part of LIDC-IDRI" in line
        for dataset in DATASETS.values():
            assert all(dataset.key in DATASETS[other].overlaps for other in dataset.overlaps)


class TestCommand:
    @pytest.mark.parametrize("key", list(DATASETS))
    def test_each_set_is_described(self, key: str) -> None:
        dataset = DATASETS[key]
        words = (
            "name",
            "scans",
            "body",
            "modality",
            "expects",
            "labels",
            "patients",
            "splits",
            "licence",
            "licence_at",
        )
        assert all(getattr(dataset, word).strip() for word in (*words, "source", "citation"))
        assert dataset.source.startswith(("https://", "http://"))
        assert dataset.tree
        assert dataset.get
        values = [value for value, _ in dataset.label_values]
        assert values == sorted(set(values))
        assert 0 not in values
        shown = maesil("datasets", key, *QUIET)
        assert shown.status == 0
        for text in (dataset.name, dataset.source, dataset.licence, dataset.citation, *dataset.tree, *dataset.get):
            assert text in shown.out
        assert f"maesil prepare --layout {key} FOLDER" in shown.out
        (event,) = maesil("datasets", key, "--progress", "json").named("info")
        assert event["key"] == key

    def test_the_table_has_all(self) -> None:
        shown = maesil("datasets", *QUIET)
        assert shown.status == 0
        starts = [line.split("  ")[0] for line in shown.out.splitlines()]
        assert starts[1 : 1 + len(DATASETS)] == list(DATASETS)
        (event,) = maesil("datasets", "--progress", "json").named("info")
        assert [row["key"] for row in event["datasets"]] == list(DATASETS)

    def test_a_folder_is_listed(self, tmp_path: Path) -> None:
        shown = maesil("datasets", amos(tmp_path), *QUIET)
        assert "amos, 3 CT of 3 patients (2 train, 1 val), 3 with labels" in shown.out
        assert "3 x MR: ids from 500 on are MR" in shown.out
        assert str(tmp_path / "imagesTr" / "amos_0507.nii.gz") in shown.out

    @pytest.mark.parametrize(("split", "splits"), [(None, ["train", "train", "val"]), ("test", ["val", "val"])])
    def test_a_manifest_has_the_split(self, tmp_path: Path, split: str | None, splits: list[str]) -> None:
        arguments = ("--split", split) if split else ()
        amos(tmp_path / "amos")
        assert maesil("datasets", tmp_path / "amos", "--manifest", tmp_path / "m.csv", *arguments, *QUIET).status == 0
        with open(tmp_path / "m.csv", newline="", encoding="utf-8") as file:
            assert [row["split"] for row in csv.DictReader(file)] == splits

    def test_readers_and_descriptions_match(self) -> None:
        assert READERS.keys() == DATASETS.keys() == MAKERS.keys()

    def test_the_page_has_every_set(self) -> None:
        page = (Path(__file__).resolve().parent.parent / "docs" / "Datasets.md").read_text(encoding="utf-8")
        for dataset in DATASETS.values():
            assert f"--layout {dataset.key} " in page
            assert dataset.licence in page
            assert dataset.source in page
