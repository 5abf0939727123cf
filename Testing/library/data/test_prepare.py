"""Preparing a cache: what is found, what is refused and why, and resuming."""

import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from cli_factory import (
    JSON,
    QUIET,
    assert_refused,
    assert_refused_event,
    file_size_limit,
    leftovers,
    maesil,
    no_root,
    read_rows,
    write_ct,
    write_image,
)
from dataset_factory import SMALL, series
from prepare_factory import LINKS, entries_of, prepare, reasons_of, report_of, stored, write_cts, write_manifest
from volume_factory import geometry, trunk, write_dicom

from MAESILLib.data import names, sources
from MAESILLib.data.cache import read_cache
from MAESILLib.data.one_source import Setup, Task, prepare_source
from MAESILLib.data.records import hash_of_patient, without_paths
from MAESILLib.data.sources import find_sources
from MAESILLib.runtime.events import Reporter


class TestWhatIsStored:
    def test_voxels_and_description(self, tmp_path: Path) -> None:
        hu = trunk(SMALL)
        hu[0, 0, 0], hu[0, 0, 1] = -2000, 9000
        write_image(tmp_path / "in" / "a.nii.gz", hu, geometry(SMALL))
        result = prepare(tmp_path / "cache", tmp_path / "in")
        volume, entry = stored(tmp_path / "cache", "a"), entries_of(tmp_path / "cache")["a"]
        np.testing.assert_array_equal(volume, np.clip(hu, -1024, 3071))
        assert volume.dtype == np.int16
        assert entry["shape_dhw"] == SMALL
        assert entry["foreground_share"] == pytest.approx((volume > -500).mean(), abs=1e-4)
        assert (entry["name"], entry["patient"]) == ("ct_0001", hash_of_patient(entry["source_sha256"]))
        assert "1 volumes of 1 patients (1 undecided), 1.5 mm" in result.out
        assert "refused" not in result.out
        assert reasons_of(tmp_path / "cache") == {}

    def test_orientation_and_spacing(self, tmp_path: Path) -> None:
        image = sitk.GetImageFromArray(trunk(SMALL))
        image.SetSpacing((1.5, 1.5, 1.5))
        sitk.WriteImage(sitk.DICOMOrient(image, "RSA"), str(tmp_path / "turned.nrrd"))
        write_ct(tmp_path / "scan.mha", SMALL, spacing_dhw=(3.0, 0.8, 0.75))
        for spacing, shape in ((1.5, (32, 13, 10)), (3.0, (16, 7, 5))):
            prepare(
                cache := tmp_path / f"{spacing}", tmp_path / "scan.mha", tmp_path / "turned.nrrd", "--spacing", spacing
            )
            assert stored(cache, "scan").shape == shape
            assert read_cache(cache).spacing_mm == spacing
        np.testing.assert_array_equal(stored(tmp_path / "1.5", "turned"), trunk(SMALL))


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
        write_cts(tmp_path / "in")
        keys = ("file", "patient", "split", "licence", "dataset", "x")
        rows = [
            dict(zip(keys, row, strict=True))
            for row in (
                ("in/p0.nrrd", "P1", "train", "CC BY 4.0", "D", "y"),
                ("in/p1.nrrd", "P2", "val", "", "", ""),
                ("in/missing.nrrd", "P3", "", "", "", ""),
            )
        ]
        result = prepare(tmp_path / "cache", write_manifest(tmp_path / f"list{suffix}", rows))
        found = {n: [e[key] for key in keys[1:5]] for n, e in entries_of(tmp_path / "cache").items()}
        assert found == {
            "p0": [hash_of_patient("P1"), "train", "CC BY 4.0", "D"],
            "p1": [hash_of_patient("P2"), "val", "", ""],
        }
        assert "no such file" in reasons_of(tmp_path / "cache")["missing.nrrd"]
        assert "2 volumes of 2 patients (1 train, 1 val)" in result.out
        cache = read_cache(tmp_path / "cache")
        assert [[e.name for e in cache.select(split)] for split in ("train", "val")] == [["p0"], ["p1"]]

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
        assert_refused(prepare(tmp_path / "cache", tmp_path / name, status=2), words)
        assert not (tmp_path / "cache").exists()

    def test_manifest_in_utf8_with_mark(self, tmp_path: Path) -> None:
        """As a spreadsheet saves it."""
        write_cts(tmp_path, 1)
        (tmp_path / "m.csv").write_bytes(b"\xef\xbb\xbf" + "file,patient\r\np0.nrrd,Müller\r\n".encode())
        prepare(tmp_path / "cache", tmp_path / "m.csv")
        assert [e.patient for e in read_cache(tmp_path / "cache").entries] == [hash_of_patient("Müller")]

    def test_a_file_given_twice(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = write_cts(tmp_path / "in", 1)
        monkeypatch.chdir(tmp_path)
        # in one run, and by another path in the next
        for inputs in ((folder / "p0.nrrd", folder, "in/p0.nrrd"), ("in",)):
            prepare(tmp_path / "cache", *inputs)
            assert set(entries_of(tmp_path / "cache")) == {"p0"}
            assert reasons_of(tmp_path / "cache") == {}

    def test_the_order_given(self, tmp_path: Path) -> None:
        paths = [write_ct(tmp_path / f"{name}.nrrd", SMALL) for name in "cab"]
        assert [source.path for source in find_sources(paths)] == paths
        assert [source.path.name for source in find_sources([tmp_path])] == ["a.nrrd", "b.nrrd", "c.nrrd"]

    def test_a_folder_of_very_many_files(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Every file is looked at once, not once for each other file."""
        for number in range(500):
            (tmp_path / f"{number:06d}.nii").touch()
        looks: list[object] = []
        for module, name in ((sources, "is_volume"), (names, "_label"), (names, "_parts")):
            original = getattr(module, name)
            monkeypatch.setattr(module, name, lambda *args, of=original: looks.append(args) or of(*args))
        assert len(set(names.plan_names([source.path for source in find_sources([tmp_path])]))) == 500
        assert len(looks) < 6 * 500


class TestDicom:
    """One patient's scan under two names would lie on both sides of the split."""

    def test_slices_given_one_by_one(self, tmp_path: Path) -> None:
        """As ``series/*.dcm`` makes a shell do."""
        prepare(tmp_path / "cache", *series(tmp_path / "series", "1.2.1", 16).iterdir())
        ((name, entry),) = entries_of(tmp_path / "cache").items()
        assert entry["patient"] == hash_of_patient("P")
        np.testing.assert_array_equal(stored(tmp_path / "cache", name), trunk(SMALL))

    def test_a_disc_with_its_table_of_contents(self, tmp_path: Path) -> None:
        for number in range(2):
            series(tmp_path / "disc" / f"p{number}", f"1.2.{number}", patient=f"P{number}", seed=number)
        (tmp_path / "disc" / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
        prepare(tmp_path / "cache", tmp_path / "disc")
        entries = entries_of(tmp_path / "cache")
        assert sorted(entry["patient"] for entry in entries.values()) == sorted(map(hash_of_patient, ("P0", "P1")))
        assert reasons_of(tmp_path / "cache") == {}

    def test_series_above_another(self, tmp_path: Path) -> None:
        """The larger series lies below; read with its subfolders, the upper folder would give it twice."""
        series(tmp_path / "study", "1.2.1", 10, seed=1)
        series(tmp_path / "study" / "below", "1.2.2", 16, seed=2)
        prepare(tmp_path / "cache", tmp_path / "study")
        np.testing.assert_array_equal(stored(tmp_path / "cache", "study"), trunk((10, *SMALL[1:]), 1))
        np.testing.assert_array_equal(stored(tmp_path / "cache", "below"), trunk(SMALL, 2))

    def test_a_link_that_leads_back_up(self, tmp_path: Path) -> None:
        series(tmp_path / "in" / "s", "1.2.1", 16, seed=1)
        (tmp_path / "in" / "s" / "up").symlink_to(tmp_path / "in", target_is_directory=True)
        prepare(tmp_path / "cache", tmp_path / "in")
        assert set(entries_of(tmp_path / "cache")) == {"s"}

    @pytest.mark.parametrize("given", ["s", "manifest.csv"])
    def test_two_series_in_one_folder_are_two_volumes(self, tmp_path: Path, given: str) -> None:
        """Named by their numbers, or where these are the same by their UIDs."""
        series(tmp_path / "s", "1.2.1", 10, seed=1, prefix="a")
        series(tmp_path / "s", "1.2.2", 16, seed=2, prefix="b")
        series(tmp_path / "s", "1.2.3", 12, seed=3, prefix="c", number="7")
        (tmp_path / "manifest.csv").write_text("file,patient\ns,P1\n")
        prepare(tmp_path / "cache", tmp_path / given)
        patients = {name: entry["patient"] for name, entry in entries_of(tmp_path / "cache").items()}
        assert patients == dict.fromkeys(["s_1.2.1", "s_1.2.2", "s_7"], hash_of_patient("P" if given == "s" else "P1"))
        for name, count, seed in (("s_1.2.1", 10, 1), ("s_1.2.2", 16, 2), ("s_7", 12, 3)):
            np.testing.assert_array_equal(stored(tmp_path / "cache", name), trunk((count, *SMALL[1:]), seed))


class TestRefusals:
    def test_one_bad_file_does_not_stop_the_rest(self, tmp_path: Path) -> None:
        root, cache = tmp_path / "in", tmp_path / "cache"
        good = [write_ct(root / name, SMALL, number) for number, name in enumerate(("a.nii.gz", "z.nrrd"))]
        data = write_ct(root / "cut.nii.gz", SMALL, 5).read_bytes()
        (root / "cut.nii.gz").write_bytes(data[: len(data) // 2])
        flipped = bytearray(write_ct(root / "flipped.mha", SMALL, 6, packed=True).read_bytes())
        flipped[-200] ^= 255
        (root / "flipped.mha").write_bytes(flipped)
        (root / "text.nii.gz").write_text("hello")
        (root / "empty.nrrd").write_bytes(b"")
        write_image(root / "organs.nrrd", np.digitize(trunk(SMALL), [-500, 0]).astype(np.uint8), geometry(SMALL))
        shutil.copy(good[0], root / "b.nii.gz")
        result = prepare(cache, root, *JSON)
        assert set(entries_of(cache)) == {"a", "z"}
        reasons = reasons_of(cache)
        assert set(reasons) == {"cut.nii.gz", "flipped.mha", "text.nii.gz", "empty.nrrd", "organs.nrrd", "b.nii.gz"}
        assert "cut short" in reasons["cut.nii.gz"]
        assert "damaged" in reasons["flipped.mha"]
        assert "label map" in reasons["organs.nrrd"]
        assert f"the same data as {good[0]}" in reasons["b.nii.gz"]
        assert all("\n" not in reason for reason in reasons.values())
        table = prepare(cache, root).out
        assert "refused 6:" in table
        for name, reason in reasons.items():
            assert any(name in event["message"] for event in result.named("warning"))
            said = reason.replace(str(good[0]), "ct_0001")
            assert any(name in line and said in line for line in table.splitlines())
        # a repaired file is taken
        write_ct(root / "text.nii.gz", SMALL, 8)
        assert "refused 5:" in prepare(cache, root).out
        assert set(entries_of(cache)) == {"a", "text", "z"}
        assert set(reasons_of(cache)) == set(reasons) - {"text.nii.gz"}

    def test_nothing_usable(self, tmp_path: Path) -> None:
        cache, empty = tmp_path / "cache", tmp_path / "empty"
        empty.mkdir()
        assert_refused(prepare(cache, tmp_path / "none", status=2), "no such file or folder")
        assert_refused(prepare(cache, empty, status=2), "no CT was found")
        assert not cache.exists()
        (empty / "a.nii.gz").write_text("hello")
        result = prepare(cache, empty, *JSON, status=2)
        assert "none of 1 inputs" in assert_refused_event(result, "bad_input", 2)["message"]

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            *(([f"--spacing={text}"], ["spacing"]) for text in ("0", "-1", "nan", "inf")),
            *(
                ([f"--shard={text}"], ["--shard", "2/8"])
                for text in ("", "1", "0/2", "3/2", "1/0", "a/b", "1/2/3", "-1/2", "1/2 ")
            ),
            (["--workers=-1"], ["-1 workers"]),
        ],
    )
    def test_impossible_arguments(self, tmp_path: Path, arguments: list[str], words: list[str]) -> None:
        assert_refused(prepare(tmp_path / "cache", write_cts(tmp_path / "in", 1), *arguments, status=2), *words)
        assert not (tmp_path / "cache").exists()

    def test_a_name_that_is_not_utf8(self, tmp_path: Path) -> None:
        write_cts(tmp_path / "in", 1)
        name = os.fsdecode(os.fsencode(tmp_path / "in") + b"/t\xeate.nrrd")
        try:
            shutil.copy(write_ct(tmp_path / "b.nrrd", SMALL, 1), name)
        except OSError:
            pytest.skip("this file system takes UTF-8 names only")
        result = prepare(tmp_path / "cache", tmp_path / "in")
        assert set(entries_of(tmp_path / "cache")) == {"p0"}
        (reason,) = reasons_of(tmp_path / "cache").values()
        assert "not UTF-8" in reason
        assert "refused 1:" in result.out

    def test_a_folder_that_may_not_be_read_is_named(self, tmp_path: Path) -> None:
        """It is not passed over, and does not stop the rest."""
        folder = Path(tempfile.mkdtemp())
        closed = folder / "in" / "z"
        try:
            write_cts(folder / "in", 1)
            write_cts(closed, 1)
            folder.chmod(0o755)
            closed.chmod(0o000)
            with no_root():
                found = find_sources([folder / "in"])
                assert [source.path.name for source in found] == ["p0.nrrd", "z"]
                outcome = prepare_source(Setup(tmp_path, 1.5, False), Task(found[1], "z", 1))
            assert outcome.record.reason == "no permission to read it"
        finally:
            closed.chmod(0o755)
            shutil.rmtree(folder)


class TestResuming:
    def test_what_is_done_is_not_done_again(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder, cache, whole = write_cts(tmp_path / "in"), tmp_path / "cache", tmp_path / "whole"
        prepare(whole, folder)
        done: list[str] = []

        def progress(self: Reporter, stage: str, fraction: float, note: str = "") -> None:
            done.extend([note] if stage == "prepare" else [])
            if len(done) == 3:
                (tmp_path / "stop").touch()

        with monkeypatch.context() as patch:
            patch.setattr(Reporter, "progress", progress)
            assert_refused(prepare(cache, folder, "--stop-file", tmp_path / "stop", status=3), "stop file", status=3)
        assert set(entries_of(cache)) == {"p0", "p1"}
        report = report_of(cache)
        assert (report["finished"], report["prepared"], report["inputs"]) == (False, 2, 3)
        assert "not finished" in " ".join(read_cache(cache).unfinished)
        assert leftovers(tmp_path) == []
        files = {p: p.stat().st_mtime_ns for p in (cache / "volumes").iterdir()}
        assert len(files) == 4, "two volumes and their tables"
        prepare(cache, folder)
        assert {p: p.stat().st_mtime_ns for p in files} == files
        assert replace(read_cache(whole), folder=cache) == read_cache(cache)

    def test_another_spacing(self, tmp_path: Path) -> None:
        folder = write_cts(tmp_path / "in", 1)
        prepare(tmp_path / "cache", folder)
        before = (tmp_path / "cache" / "index.jsonl").read_bytes()
        result = prepare(tmp_path / "cache", folder, "--spacing", "2", status=2)
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
        (tmp_path / "site").mkdir()
        (tmp_path / "site" / name).write_text(text)
        assert_refused(prepare(tmp_path / "site", write_cts(tmp_path / "in", 1), status=2), name)
        assert (tmp_path / "site" / name).read_text() == text
        assert [p.name for p in (tmp_path / "site").iterdir()] == [name]

    @pytest.mark.parametrize("workers", [0, 2])
    def test_a_full_disk(self, tmp_path: Path, workers: int) -> None:
        folder, cache = write_cts(tmp_path / "in"), tmp_path / "cache"
        write_ct(folder / "p1.nrrd", (40, 40, 40), 1)
        with file_size_limit(50_000):
            result = prepare(cache, folder, "--workers", workers, *JSON, status=4)
        assert "ct_0002.npy" in assert_refused_event(result, "disk_full", 4)["message"]
        if workers == 0:
            assert set(entries_of(cache)) == {"p0"}
        assert leftovers(tmp_path) == []
        prepare(cache, folder)
        assert set(entries_of(cache)) == {"p0", "p1", "p2"}

    def test_output_that_is_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("mine")
        assert_refused(prepare(tmp_path / "file", write_cts(tmp_path / "in", 1), status=2), "file is a file")
        assert (tmp_path / "file").read_text() == "mine"


def contents(folder: Path) -> str:
    """All that a folder holds, as text, and the names of its files."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return "\n".join(path.name + path.read_bytes().decode("latin-1") for path in files)


class TestPrivacy:
    def test_what_comes_from_paths_and_tags_is_not_kept(self, tmp_path: Path) -> None:
        """Nor of what is refused, damaged or a copy; the terminal and --link have the paths."""
        root, cache, link = tmp_path / "in" / "Dr Schmidt", tmp_path / "cache", tmp_path / "link.csv"
        write_ct(root / "Mueller 1960.nrrd", SMALL)
        shutil.copy(root / "Mueller 1960.nrrd", root / "Meier.nrrd")
        (root / "Weber.nii.gz").write_text("no volume")
        series(root / "Becker CT", "1.2.33.44.55.1", 16, patient="BECKER", seed=1, tags={"0008|103e": "Chest Becker"})
        cut = sorted(series(root / "Wolf", "1.2.33.44.55.2", 16, patient="WOLF", seed=2).iterdir())[8]
        cut.write_bytes(cut.read_bytes()[:-100])
        result = prepare(cache, root, *JSON)
        table = maesil("prepare", root, "--output", cache, "--workers", 0, "--link", link, *QUIET).out
        assert "refused" in "".join(event["message"] for event in result.named("warning"))
        kept = contents(cache).lower()
        words = ("schmidt", "mueller", "meier", "weber", "becker", "wolf", str(tmp_path).lower(), "1.2.33", cut.name)
        assert [word for word in words if word in kept] == []
        assert [word for word in words[:6] if word not in table.lower()] == []
        rows = {row["name"]: row["source"] for row in read_rows(link)}
        assert rows == LINKS[cache]
        assert set(rows.values()) == {str(root / name) for name in (
            "Mueller 1960.nrrd", "Meier.nrrd", "Weber.nii.gz", "Becker CT", "Wolf",
        )}  # fmt: skip

    def test_what_a_manifest_says_is_kept(self, tmp_path: Path) -> None:
        write_ct(tmp_path / "in" / "a.nrrd", SMALL)
        series(tmp_path / "in" / "s", "1.2.1", 16, seed=1)
        rows = [{"file": "a.nrrd", "name": "case 1", "patient": "P 1"}, {"file": "s", "name": "", "patient": ""}]
        prepare(tmp_path / "cache", write_manifest(tmp_path / "in" / "m.csv", rows), *JSON)
        entries = read_cache(tmp_path / "cache").entries
        assert [(e.name, e.patient_name) for e in entries] == [("case_1", "P 1"), ("s", "")]
        assert [e.patient for e in entries] == [hash_of_patient("P 1"), hash_of_patient("P")]
        info = maesil("info", tmp_path / "cache", *QUIET).out
        assert "patient P 1" in info

    def test_the_key_does_not_lie_in_the_cache(self, tmp_path: Path) -> None:
        folder, cache = write_cts(tmp_path / "in", 1), tmp_path / "cache"
        assert_refused(prepare(cache, folder, "--link", cache / "key.csv", status=2), "--link", "outside")

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("/in/Dr X/a.nii is cut short: 100 of 200 bytes", "it is cut short: 100 of 200 bytes"),
            ("/in/Dr X/a.nii/b c.dcm is damaged", "a file a file is damaged"),
            ("/in/Dr X/a.nii2/Meier has no voxels", "a file has no voxels"),
            (r"C:\Users\Meier\ct.nii.gz has 2 values", "a file has 2 values"),
            (r"'\\server\share\x' is gone", "'a file' is gone"),
            ("it names its data file Meier.raw, which is missing", "it names its data file a file, which is missing"),
            ("a spacing of 0.5 x 0.5 mm, NaN/infinite, 2/8", "a spacing of 0.5 x 0.5 mm, NaN/infinite, 2/8"),
            ("series 1.2.840.113619.2.55 has 3 slices", "series a UID has 3 slices"),
        ],
    )
    def test_reasons(self, text: str, expected: str) -> None:
        assert without_paths(text, "/in/Dr X/a.nii") == expected
