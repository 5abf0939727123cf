"""Preparing a cache: what is found, what is refused and why, and going on."""

from __future__ import annotations

import csv
import json
import os
import shutil
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from cli_factory import (
    QUIET,
    Result,
    assert_refused,
    assert_refused_event,
    file_size_limit,
    leftovers,
    maesil,
    no_root,
    write_ct,
    write_image,
)
from volume_factory import geometry, trunk, write_dicom

from MAESILLib.data.cache import read_cache
from MAESILLib.data.names import plan_names
from MAESILLib.data.one_source import Setup, Task, prepare_source
from MAESILLib.data.records import hash_of_patient
from MAESILLib.data.sources import find_sources
from MAESILLib.runtime.events import Reporter

SMALL = (16, 24, 20)


def prepare(output: Path, *inputs: object, status: int = 0) -> Result:
    result = maesil("prepare", *inputs, "--output", output, *QUIET)
    assert result.status == status, result
    assert "Traceback" not in result.err
    return result


def entries_of(cache: Path) -> dict[str, dict[str, Any]]:
    return {entry.name: asdict(entry) for entry in read_cache(cache, allow_empty=True).entries}


def reasons_of(cache: Path) -> dict[str, str]:
    return {Path(refusal.source).name: refusal.reason for refusal in read_cache(cache, allow_empty=True).refused}


def stored(cache: Path, name: str) -> np.ndarray:
    return np.load(cache / "volumes" / f"{name}.npy", allow_pickle=False)


def write_manifest(path: Path, rows: list[dict[str, str]]) -> Path:
    if path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    else:
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return path


class TestWhatIsStored:
    def test_voxels_and_description(self, tmp_path: Path) -> None:
        hu = trunk(SMALL).astype(np.int16)
        hu[0, 0, 0], hu[0, 0, 1] = -2000, 9000
        write_image(tmp_path / "in" / "a.nii.gz", hu, geometry(SMALL))
        result = prepare(tmp_path / "cache", tmp_path / "in")
        np.testing.assert_array_equal(stored(tmp_path / "cache", "a"), np.clip(hu, -1024, 3071))
        assert stored(tmp_path / "cache", "a").dtype == np.int16
        entry = entries_of(tmp_path / "cache")["a"]
        assert entry["shape_dhw"] == SMALL
        assert entry["foreground_share"] == pytest.approx((np.clip(hu, -1024, 3071) > -500).mean(), abs=1e-4)
        assert entry["source"] == str(tmp_path / "in" / "a.nii.gz")
        assert "1 volumes of 1 patients (1 undecided), 1.5 mm" in result.out

    def test_orientation(self, tmp_path: Path) -> None:
        image = sitk.GetImageFromArray(trunk(SMALL))
        image.SetSpacing((1.5, 1.5, 1.5))
        (tmp_path / "in").mkdir()
        sitk.WriteImage(sitk.DICOMOrient(image, "RSA"), str(tmp_path / "in" / "turned.nrrd"))
        prepare(tmp_path / "cache", tmp_path / "in")
        np.testing.assert_array_equal(stored(tmp_path / "cache", "turned"), trunk(SMALL))

    @pytest.mark.parametrize(("spacing", "shape"), [("1.5", (32, 13, 10)), ("3", (16, 7, 5))])
    def test_spacing(self, tmp_path: Path, spacing: str, shape: tuple[int, int, int]) -> None:
        path = write_ct(tmp_path / "scan.mha", SMALL, spacing_dhw=(3.0, 0.8, 0.75))
        result = maesil("prepare", path, "--output", tmp_path / "cache", "--spacing", spacing, *QUIET)
        assert result.status == 0
        assert stored(tmp_path / "cache", "scan").shape == shape
        assert read_cache(tmp_path / "cache").spacing_mm == float(spacing)

    @pytest.mark.parametrize("spacing", ["0", "-1", "nan", "inf"])
    def test_impossible_spacings(self, tmp_path: Path, spacing: str) -> None:
        path = write_ct(tmp_path / "scan.mha", SMALL)
        result = maesil("prepare", path, "--output", tmp_path / "cache", f"--spacing={spacing}", *QUIET)
        assert_refused(result, "spacing")
        assert not (tmp_path / "cache").exists()

    def test_it_can_be_read(self, tmp_path: Path) -> None:
        for number in range(3):
            write_ct(tmp_path / "in" / f"p{number}.nrrd", SMALL, number)
        prepare(tmp_path / "cache", tmp_path / "in")
        cache = read_cache(tmp_path / "cache")
        assert [entry.name for entry in cache.entries] == ["p0", "p1", "p2"]
        for number, entry in enumerate(cache.entries):
            np.testing.assert_array_equal(cache.open(entry), trunk(SMALL, number))
        assert cache.refused == ()


class TestFinding:
    def test_folders(self, tmp_path: Path) -> None:
        root = tmp_path / "in"
        for number, name in enumerate(("a.nii.gz", "deep/er/b.nrrd", "deep/c.mha", "deep/d.nii")):
            write_ct(root / name, SMALL, number)
        write_dicom(root / "study" / "series", trunk(SMALL, 9) + 1024, spacing_dhw=(1.5, 1.5, 1.5))
        for name in ("a_seg.nii.gz", "deep/c_labels.mha", ".hidden.nrrd", "notes.txt", "table.csv"):
            (root / name).write_text("no volume")
        prepare(tmp_path / "cache", root)
        assert set(entries_of(tmp_path / "cache")) == {"a", "b", "c", "d", "series"}
        assert reasons_of(tmp_path / "cache") == {}
        np.testing.assert_array_equal(stored(tmp_path / "cache", "series"), trunk(SMALL, 9))
        assert entries_of(tmp_path / "cache")["series"]["patient"] == hash_of_patient("TEST")

    @pytest.mark.parametrize("suffix", [".csv", ".json"])
    def test_manifest(self, tmp_path: Path, suffix: str) -> None:
        for number, name in enumerate(("a", "b", "c")):
            write_ct(tmp_path / "data" / f"{name}.nrrd", SMALL, number)
        rows = [
            {
                "file": "data/a.nrrd",
                "patient": "P1",
                "split": "train",
                "licence": "CC BY 4.0",
                "dataset": "D",
                "x": "y",
            },
            {"file": "data/b.nrrd", "patient": "P2", "split": "val", "licence": "", "dataset": "", "x": ""},
            {"file": "data/missing.nrrd", "patient": "P3", "split": "", "licence": "", "dataset": "", "x": ""},
        ]
        result = prepare(tmp_path / "cache", write_manifest(tmp_path / f"list{suffix}", rows))
        entries = entries_of(tmp_path / "cache")
        assert set(entries) == {"a", "b"}
        assert (entries["a"]["patient"], entries["a"]["split"]) == (hash_of_patient("P1"), "train")
        assert (entries["a"]["licence"], entries["a"]["dataset"]) == ("CC BY 4.0", "D")
        assert (entries["b"]["patient"], entries["b"]["split"]) == (hash_of_patient("P2"), "val")
        assert "no such file" in reasons_of(tmp_path / "cache")["missing.nrrd"]
        assert "2 volumes of 2 patients (1 train, 1 val)" in result.out
        cache = read_cache(tmp_path / "cache")
        assert [e.name for e in cache.select("val")] == ["b"]
        assert [e.name for e in cache.select("train")] == ["a"]

    @pytest.mark.parametrize(
        ("name", "content", "words"),
        [
            ("m.csv", b"path\na.nrrd\n", "entry 1 has no 'file'"),
            ("m.csv", "file;patient\na.nrrd;Müller\n".encode(), "entry 1 has no 'file'"),
            ("m.csv", "file,patient\na.nrrd,Müller\n".encode("latin-1"), "UTF-8"),
            ("m.csv", b"file,split\na.nrrd,test\n", "entry 1 has split 'test'"),
            ("m.csv", b"", "no CT was found"),
            ("m.json", b"{", "not valid JSON"),
            ("m.json", b'{"file": "a.nrrd"}', "not a list of objects"),
            ("m.json", b'["a.nrrd"]', "not a list of objects"),
            ("m.json", b'[{"file": 5}]', "entry 1 has no 'file'"),
            ("m.json", b"\xff\xfe", "not valid JSON"),
        ],
    )
    def test_bad_manifests(self, tmp_path: Path, name: str, content: bytes, words: str) -> None:
        (tmp_path / name).write_bytes(content)
        result = prepare(tmp_path / "cache", tmp_path / name, status=2)
        assert_refused(result, words)
        assert not (tmp_path / "cache").exists()

    def test_manifest_in_utf8_with_mark(self, tmp_path: Path) -> None:
        """As a spreadsheet saves it."""
        write_ct(tmp_path / "a.nrrd", SMALL)
        (tmp_path / "m.csv").write_bytes(b"\xef\xbb\xbf" + "file,patient\r\na.nrrd,Müller\r\n".encode())
        prepare(tmp_path / "cache", tmp_path / "m.csv")
        assert entries_of(tmp_path / "cache")["a"]["patient"] == hash_of_patient("Müller")
        assert [e.patient for e in read_cache(tmp_path / "cache").entries] == [hash_of_patient("Müller")]

    def test_names_that_collide(self, tmp_path: Path) -> None:
        for number in range(3):
            write_ct(tmp_path / "in" / f"p{number}" / "ct scan (1).nrrd", SMALL, number)
        prepare(tmp_path / "cache", tmp_path / "in")
        entries = entries_of(tmp_path / "cache")
        assert len(entries) == 3
        for name, entry in entries.items():
            number = int(Path(entry["source"]).parent.name[1:])
            np.testing.assert_array_equal(stored(tmp_path / "cache", name), trunk(SMALL, number))
        assert len({entry["patient"] for entry in entries.values()}) == 3

    def test_a_file_given_twice(self, tmp_path: Path) -> None:
        path = write_ct(tmp_path / "in" / "a.nrrd", SMALL)
        prepare(tmp_path / "cache", path, tmp_path / "in", os.path.relpath(path))
        assert set(entries_of(tmp_path / "cache")) == {"a"}
        assert reasons_of(tmp_path / "cache") == {}


class TestRefusals:
    def test_one_bad_file_does_not_stop_the_rest(self, tmp_path: Path) -> None:
        root = tmp_path / "in"
        good = [write_ct(root / name, SMALL, number) for number, name in enumerate(("a.nii.gz", "z.nrrd"))]
        data = write_ct(root / "cut.nii.gz", SMALL, 5).read_bytes()
        (root / "cut.nii.gz").write_bytes(data[: len(data) // 2])
        flipped = bytearray(write_ct(root / "flipped.mha", SMALL, 6).read_bytes())
        flipped[-200] ^= 255
        (root / "flipped.mha").write_bytes(flipped)
        (root / "text.nii.gz").write_text("hello")
        (root / "empty.nrrd").write_bytes(b"")
        write_image(root / "organs.nrrd", np.digitize(trunk(SMALL), [-500, 0]).astype(np.uint8), geometry(SMALL))
        shutil.copy(good[0], root / "b.nii.gz")
        result = maesil("prepare", root, "--output", tmp_path / "cache", "--progress", "json")
        assert result.status == 0
        assert set(entries_of(tmp_path / "cache")) == {"a", "z"}
        reasons = reasons_of(tmp_path / "cache")
        bad = {"cut.nii.gz", "flipped.mha", "text.nii.gz", "empty.nrrd", "organs.nrrd", "b.nii.gz"}
        assert set(reasons) == bad
        assert "cut short" in reasons["cut.nii.gz"]
        assert "damaged" in reasons["flipped.mha"]
        assert "label map" in reasons["organs.nrrd"]
        assert f"the same data as {good[0]}" in reasons["b.nii.gz"]
        assert all("\n" not in reason for reason in reasons.values())
        for name in bad:
            assert any(name in event["message"] for event in result.named("warning"))
        table = prepare(tmp_path / "cache", root).out
        assert "refused 6:" in table
        for name in bad:
            assert any(name in line and reasons[name] in line for line in table.splitlines())

    def test_nothing_usable(self, tmp_path: Path) -> None:
        (tmp_path / "a.nii.gz").write_text("hello")
        result = maesil("prepare", tmp_path / "a.nii.gz", "--output", tmp_path / "cache", "--progress", "json")
        assert "none of 1 inputs" in assert_refused_event(result, "bad_input", 2)["message"]

    def test_nothing_there(self, tmp_path: Path) -> None:
        assert_refused(prepare(tmp_path / "cache", tmp_path / "none", status=2), "no such file or folder")
        (tmp_path / "empty").mkdir()
        assert_refused(prepare(tmp_path / "cache", tmp_path / "empty", status=2), "no CT was found")
        assert not (tmp_path / "cache").exists()

    def test_a_repaired_file_is_taken(self, tmp_path: Path) -> None:
        write_ct(tmp_path / "in" / "a.nrrd", SMALL)
        (tmp_path / "in" / "b.nrrd").write_text("hello")
        prepare(tmp_path / "cache", tmp_path / "in")
        assert set(reasons_of(tmp_path / "cache")) == {"b.nrrd"}
        write_ct(tmp_path / "in" / "b.nrrd", SMALL, 1)
        result = prepare(tmp_path / "cache", tmp_path / "in")
        assert set(entries_of(tmp_path / "cache")) == {"a", "b"}
        assert reasons_of(tmp_path / "cache") == {}
        assert "refused" not in result.out

    def test_a_name_that_is_not_utf8(self, tmp_path: Path) -> None:
        write_ct(tmp_path / "in" / "a.nrrd", SMALL)
        name = os.fsdecode(os.fsencode(tmp_path / "in") + b"/t\xeate.nrrd")
        try:
            shutil.copy(write_ct(tmp_path / "b.nrrd", SMALL, 1), name)
        except OSError:
            pytest.skip("this file system takes UTF-8 names only")
        result = prepare(tmp_path / "cache", tmp_path / "in")
        assert set(entries_of(tmp_path / "cache")) == {"a"}
        (reason,) = reasons_of(tmp_path / "cache").values()
        assert "not UTF-8" in reason
        assert "refused 1:" in result.out

    def test_a_patient_on_both_sides(self, tmp_path: Path) -> None:
        for number, name in enumerate(("a", "b", "c")):
            write_ct(tmp_path / f"{name}.nrrd", SMALL, number)
        rows = [
            {"file": "a.nrrd", "patient": "P1", "split": "train"},
            {"file": "b.nrrd", "patient": "P1", "split": "val"},
            {"file": "c.nrrd", "patient": "P2", "split": "val"},
        ]
        prepare(tmp_path / "cache", write_manifest(tmp_path / "m.csv", rows))
        assert set(entries_of(tmp_path / "cache")) == {"a", "c"}
        assert "its patient is in 'val' here, but in 'train'" in reasons_of(tmp_path / "cache")["b.nrrd"]


class TestGoingOn:
    def test_what_is_done_is_not_done_again(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for number in range(3):
            write_ct(tmp_path / "in" / f"p{number}.nrrd", SMALL, number)
        whole = tmp_path / "whole"
        prepare(whole, tmp_path / "in")

        done: list[str] = []

        def progress(self: Reporter, stage: str, fraction: float, note: str = "") -> None:
            done.append(note)
            if len(done) == 3:
                (tmp_path / "stop").touch()

        with monkeypatch.context() as patch:
            patch.setattr(Reporter, "progress", progress)
            arguments = ("prepare", tmp_path / "in", "--output", tmp_path / "cache", "--stop-file", tmp_path / "stop")
            assert_refused(maesil(*arguments, "--workers", 1, *QUIET), "stop file", status=3)
        assert set(entries_of(tmp_path / "cache")) == {"p0", "p1"}
        assert "not finished" in " ".join(read_cache(tmp_path / "cache").unfinished)
        assert leftovers(tmp_path) == []
        files = {p: p.stat().st_mtime_ns for p in (tmp_path / "cache" / "volumes").iterdir()}
        assert len(files) == 4, "two volumes and their tables"
        prepare(tmp_path / "cache", tmp_path / "in")
        assert {p: p.stat().st_mtime_ns for p in files} == files
        assert replace(read_cache(whole), folder=tmp_path / "cache") == read_cache(tmp_path / "cache")

    def test_a_volume_that_was_lost_is_made_again(self, tmp_path: Path) -> None:
        write_ct(tmp_path / "in" / "a.nrrd", SMALL)
        prepare(tmp_path / "cache", tmp_path / "in")
        (tmp_path / "cache" / "volumes" / "a.npy").unlink()
        prepare(tmp_path / "cache", tmp_path / "in")
        np.testing.assert_array_equal(stored(tmp_path / "cache", "a"), trunk(SMALL))

    def test_the_same_folder_by_another_path(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_ct(tmp_path / "in" / "a.nrrd", SMALL)
        monkeypatch.chdir(tmp_path)
        prepare(tmp_path / "cache", "in")
        prepare(tmp_path / "cache", tmp_path / "in")
        assert set(entries_of(tmp_path / "cache")) == {"a"}
        assert reasons_of(tmp_path / "cache") == {}

    def test_a_file_that_changed_replaces_what_it_was(self, tmp_path: Path) -> None:
        write_ct(tmp_path / "in" / "a.nrrd", SMALL)
        prepare(tmp_path / "cache", tmp_path / "in")
        write_ct(tmp_path / "in" / "a.nrrd", (24, 24, 24), 4)
        prepare(tmp_path / "cache", tmp_path / "in")
        assert set(entries_of(tmp_path / "cache")) == {"a"}
        cache = read_cache(tmp_path / "cache")
        np.testing.assert_array_equal(cache.open(cache.entries[0]), trunk((24, 24, 24), 4))

    def test_a_manifest_may_come_later(self, tmp_path: Path) -> None:
        for number, name in enumerate(("a", "b")):
            write_ct(tmp_path / "in" / f"{name}.nrrd", SMALL, number)
        prepare(tmp_path / "cache", tmp_path / "in")
        rows = [
            {"file": "in/a.nrrd", "patient": "P1", "split": "val"},
            {"file": "in/b.nrrd", "patient": "P2", "split": "train"},
        ]
        prepare(tmp_path / "cache", write_manifest(tmp_path / "m.csv", rows))
        entries = entries_of(tmp_path / "cache")
        assert (entries["a"]["patient"], entries["a"]["split"]) == (hash_of_patient("P1"), "val")
        assert (entries["b"]["patient"], entries["b"]["split"]) == (hash_of_patient("P2"), "train")
        prepare(tmp_path / "cache", tmp_path / "in")
        assert entries_of(tmp_path / "cache") == entries, "a folder says nothing of patients, so it changes nothing"

    def test_another_spacing(self, tmp_path: Path) -> None:
        path = write_ct(tmp_path / "a.nrrd", SMALL)
        prepare(tmp_path / "cache", path)
        before = (tmp_path / "cache" / "index.jsonl").read_bytes()
        result = maesil("prepare", path, "--output", tmp_path / "cache", "--spacing", "2", *QUIET)
        assert_refused(result, "1.5 mm", "2.0 mm", "another output folder")
        assert (tmp_path / "cache" / "index.jsonl").read_bytes() == before

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("index.json", '{"schema": "maesil-cache/3", "volumes": []}'),
            ("index.shard-1-of-2.json", "not json"),
            ("index.jsonl", "[]\n"),
            ("index.jsonl", "{}\n"),
            ("index.jsonl", '{"schema": "other/1"}\n'),
            ("index.jsonl", "not json\n"),
        ],
    )
    def test_a_folder_with_another_index(self, tmp_path: Path, name: str, text: str) -> None:
        path = write_ct(tmp_path / "a.nrrd", SMALL)
        (tmp_path / "site").mkdir()
        (tmp_path / "site" / name).write_text(text)
        assert_refused(prepare(tmp_path / "site", path, status=2), name)
        assert (tmp_path / "site" / name).read_text() == text
        assert [p.name for p in (tmp_path / "site").iterdir()] == [name]

    def test_a_full_disk(self, tmp_path: Path) -> None:
        write_ct(tmp_path / "in" / "a.nrrd", SMALL)
        write_ct(tmp_path / "in" / "b.nrrd", (40, 40, 40), 1)
        write_ct(tmp_path / "in" / "c.nrrd", SMALL, 2)
        arguments = ("prepare", tmp_path / "in", "--output", tmp_path / "cache", "--workers", 1)
        with file_size_limit(50_000):
            result = maesil(*arguments, "--progress", "json")
        assert "b.npy" in assert_refused_event(result, "disk_full", 4)["message"]
        assert set(entries_of(tmp_path / "cache")) == {"a"}
        assert leftovers(tmp_path) == []
        prepare(tmp_path / "cache", tmp_path / "in")
        assert set(entries_of(tmp_path / "cache")) == {"a", "b", "c"}

    def test_output_that_is_a_file(self, tmp_path: Path) -> None:
        path = write_ct(tmp_path / "a.nrrd", SMALL)
        (tmp_path / "file").write_text("mine")
        assert_refused(prepare(tmp_path / "file", path, status=2), "file is a file")
        assert (tmp_path / "file").read_text() == "mine"


def test_sources_are_in_the_order_given(tmp_path: Path) -> None:
    paths = [write_ct(tmp_path / f"{name}.nrrd", SMALL) for name in "cab"]
    assert [source.path for source in find_sources(paths)] == paths
    assert [source.path.name for source in find_sources([tmp_path])] == ["a.nrrd", "b.nrrd", "c.nrrd"]


def test_a_folder_that_may_not_be_read_is_refused_and_named(tmp_path: Path) -> None:
    """It is not passed over, and does not stop the rest."""
    folder = Path(tempfile.mkdtemp())
    try:
        write_ct(folder / "in" / "a.nrrd", SMALL)
        write_ct(folder / "in" / "closed" / "b.nrrd", SMALL, 1)
        folder.chmod(0o755)
        (folder / "in" / "closed").chmod(0o000)
        with no_root():
            sources = find_sources([folder / "in"])
            assert [source.path.name for source in sources] == ["a.nrrd", "closed"]
            outcome = prepare_source(Setup(tmp_path, 1.5, False, {}), Task(sources[1], "closed", 1))
        assert outcome.record.reason == "no permission to read it"
    finally:
        (folder / "in" / "closed").chmod(0o755)
        shutil.rmtree(folder)


def test_a_folder_of_very_many_files(tmp_path: Path) -> None:
    """Every file is looked at once, not once for each other file."""
    for number in range(20_000):
        (tmp_path / f"{number:06d}.nii").touch()
    begin = time.process_time()
    assert len(plan_names([source.path for source in find_sources([tmp_path])])) == 20_000
    assert time.process_time() - begin < 10
