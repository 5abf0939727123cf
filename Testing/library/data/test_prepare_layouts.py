"""Public data sets on their way into a cache: by a layout, by a manifest, and as plain folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cli_factory import QUIET, maesil, write_ct
from dataset_factory import MAKERS, SMALL, lidc, luna16, msd_task, totalsegmentator, touch
from volume_factory import trunk

from MAESILLib.data.cache import read_cache
from MAESILLib.data.layouts import find_cases
from MAESILLib.data.records import hash_of_patient
from MAESILLib.data.sources import find_sources


class TestPrepare:
    def test_two_layouts_in_one_cache(self, tmp_path: Path) -> None:
        cache = tmp_path / "cache"
        for key, folder in (
            ("totalsegmentator", totalsegmentator(tmp_path / "total", real=True)),
            ("msd", msd_task(tmp_path, "Task03_Liver", "liver", real=True)),
        ):
            result = maesil("prepare", "--layout", key, folder, "--output", cache, "--workers", 1, "--progress", "json")
            assert result.status == 0, result
            (info,) = [event for event in result.named("info") if event["what"] == "listing"]
            assert info["found"]["test"] == 1
        entries = {entry.name: entry for entry in read_cache(cache).entries}
        assert {name: (e.patient, e.split, e.dataset, e.licence) for name, e in entries.items()} == {
            "s0000_ct": (hash_of_patient("totalsegmentator_s0000"), "train", "totalsegmentator", "CC BY 4.0"),
            "s0001_ct": (hash_of_patient("totalsegmentator_s0001"), "val", "totalsegmentator", "CC BY 4.0"),
            "s0010_ct": (hash_of_patient("totalsegmentator_s0010"), "train", "totalsegmentator", "CC BY 4.0"),
            "liver_0": (hash_of_patient("msd_liver_0"), "", "msd", "CC BY-SA 4.0"),
            "liver_1": (hash_of_patient("msd_liver_1"), "", "msd", "CC BY-SA 4.0"),
        }
        assert entries["s0000_ct"].labels == str(tmp_path / "total" / "s0000" / "segmentations")
        assert entries["liver_1"].labels == str(tmp_path / "Task03_Liver" / "labelsTr" / "liver_1.nii.gz")
        np.testing.assert_array_equal(read_cache(cache).open(entries["s0010_ct"]), trunk(SMALL, 10))

        held_out = tmp_path / "test"
        arguments = ("prepare", "--layout", "totalsegmentator", tmp_path / "total", "--split", "test")
        result = maesil(*arguments, "--output", held_out, "--workers", 1)
        assert "1 CT of totalsegmentator to prepare; found 2 train, 1 val, 1 test, 1 not of this layout, " in result.err
        assert [(e.name, e.split) for e in read_cache(held_out).entries] == [("ct", "val")]

    def test_dicom(self, tmp_path: Path) -> None:
        folder, cache = lidc(tmp_path / "in"), tmp_path / "cache"
        result = maesil("prepare", "--layout", "lidc-idri", folder, "--output", cache, "--workers", 1, *QUIET)
        assert result.status == 0, result
        # not the PatientID of the file, which is P
        assert sorted(entry.patient for entry in read_cache(cache).entries) == sorted(
            hash_of_patient(name) for name in ("LIDC-IDRI-0001", "LIDC-IDRI-0002")
        )
        reasons = sorted(one.reason for one in read_cache(cache).refused)
        assert len(reasons) == 2
        assert any("DX" in reason for reason in reasons)

    def test_a_manifest_gives_the_same(self, tmp_path: Path) -> None:
        folder = msd_task(tmp_path / "in", "Task03_Liver", "liver", real=True)
        manifest = tmp_path / "liver.csv"
        rows = [
            f"in/Task03_Liver/imagesTr/liver_{n}.nii.gz,msd_liver_{n},,msd,CC BY-SA 4.0,"
            f"in/Task03_Liver/labelsTr/liver_{n}.nii.gz"
            for n in (0, 1)
        ]
        manifest.write_text("\n".join(["file,patient,split,dataset,licence,labels", *rows]), encoding="utf-8")
        maesil("prepare", manifest, "--output", tmp_path / "a", "--workers", 1, *QUIET)
        maesil("prepare", "--layout", "msd", folder, "--output", tmp_path / "b", "--workers", 1, *QUIET)
        assert read_cache(tmp_path / "a").entries == read_cache(tmp_path / "b").entries
        # edited, and prepared again: what the manifest says of a volume holds
        manifest.write_text(manifest.read_text().replace("msd_liver_0,,", "msd_liver_0,val,"), encoding="utf-8")
        result = maesil("prepare", manifest, "--output", tmp_path / "a", "--workers", 1, "--progress", "json")
        assert [entry.split for entry in read_cache(tmp_path / "a").entries] == ["val", ""]
        assert result.named("warning") == [], "a manifest needs no layout"

    def test_without_a_layout_a_note_says_what_it_looks_like(self, tmp_path: Path) -> None:
        folder = msd_task(tmp_path, "Task03_Liver", "liver", real=True)
        arguments = ("prepare", folder, "--output", tmp_path / "cache", "--workers", 1)
        result = maesil(*arguments, "--progress", "json")
        assert result.status == 0
        assert any(
            "laid out like msd" in e["message"] and "--layout msd" in e["message"] for e in result.named("warning")
        )
        assert {e.name for e in read_cache(tmp_path / "cache").entries} == {"liver_0", "liver_1", "liver_2"}
        assert read_cache(tmp_path / "cache").refused == ()
        # told of it later, the cache takes over what the layout says of the volumes that it has
        assert maesil(*arguments, "--layout", "msd", *QUIET).status == 0
        entries = {entry.name: entry for entry in read_cache(tmp_path / "cache").entries}
        assert (entries["liver_0"].patient, entries["liver_0"].dataset) == (hash_of_patient("msd_liver_0"), "msd")
        assert entries["liver_0"].labels == str(folder / "labelsTr" / "liver_0.nii.gz")
        write_ct(tmp_path / "plain" / "a.nrrd", SMALL)
        plain = maesil("prepare", tmp_path / "plain", "--output", tmp_path / "p", "--workers", 1, "--progress", "json")
        assert plain.named("warning") == []
        assert [entry.labels for entry in read_cache(tmp_path / "p").entries] == [""]

    def test_sets_that_overlap_are_warned_of(self, tmp_path: Path) -> None:
        cache = ("--output", tmp_path / "cache", "--workers", 1, "--progress", "json")
        first = maesil("prepare", "--layout", "luna16", luna16(tmp_path / "luna"), *cache)
        assert first.named("warning") == []
        second = maesil("prepare", "--layout", "lidc-idri", lidc(tmp_path / "lidc"), *cache)
        assert any("LUNA16 is a part of LIDC-IDRI" in event["message"] for event in second.named("warning"))

    @pytest.mark.parametrize("key", ["totalsegmentator", "msd", "amos", "flare", "btcv", "luna16"])
    def test_label_maps_are_no_sources_without_a_layout_either(self, tmp_path: Path, key: str) -> None:
        folder = MAKERS[key](tmp_path)
        labels = {Path(case.labels) for case in find_cases(key, folder)[0] if case.labels}
        assert labels
        found = {path for source in find_sources([folder]) for path in (source.path, *source.path.parents)}
        assert not labels & found

    def test_folders_that_are_only_called_so_are_looked_into(self, tmp_path: Path) -> None:
        for name in ("labelsTr", "label", "segmentations", "seg-lungs-LUNA16"):
            touch(tmp_path / name / "a.nrrd")
        assert len(find_sources([tmp_path])) == 4
