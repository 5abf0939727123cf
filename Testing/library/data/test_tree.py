"""DICOM trees: which series they hold, of whom, and which volumes are the same."""

import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from cli_factory import JSON, QUIET, assert_refused, read_rows, run_process
from dataset_factory import SMALL, series
from prepare_factory import LINKS, entries_of, prepare, reasons_of, report_of, stored, write_cts
from volume_factory import trunk, write_dicom

from MAESILLib.data import tree
from MAESILLib.data.cache import read_cache
from MAESILLib.data.index import Run, Shard, append, read_index, unfinished
from MAESILLib.data.one_source import hash_of_files, stamp_of
from MAESILLib.data.records import hash_of_patient
from MAESILLib.data.sources import find_sources
from MAESILLib.runtime.lock import only_writer


def table_of(cache: Path) -> dict[str, dict[str, str]]:
    """The rows of report.csv by the names of their inputs; report.json has the same."""
    rows = read_rows(cache / "report.csv")
    assert rows == report_of(cache)["table"]
    return {Path(LINKS[cache][row["name"]]).name: row for row in rows}


def spread(folder: Path, files: list[Path], each: int = 1) -> None:
    """Move files as discs have them: so many in each folder, without suffix."""
    for number, file in enumerate(files):
        place = folder / f"S{number // each:04d}" / f"I{number:04d}_{each}"
        place.parent.mkdir(parents=True, exist_ok=True)
        file.rename(place)


class TestSeries:
    def test_a_disc(self, tmp_path: Path) -> None:
        """Two series over many folders, a scout, a report, and a damaged series that costs itself alone."""
        disc, cache = tmp_path / "disc" / "DICOM", tmp_path / "cache"
        spread(disc, sorted(series(tmp_path / "a", "1.2.1", 16, seed=1).iterdir()))
        spread(disc, sorted(series(tmp_path / "b", "1.2.2", 16, seed=2, number="4").iterdir()), each=5)
        series(disc / "S0002", "1.2.3", 1, tags={"0008|0008": "ORIGINAL\\PRIMARY\\LOCALIZER"}, prefix="scout")
        series(disc / "S0002", "1.2.4", 1, modality="SR", prefix="dose")
        cut = sorted(series(tmp_path / "disc" / "cut", "1.2.5", 16, seed=3).iterdir())[8]
        cut.write_bytes(cut.read_bytes()[:-100])
        prepare(cache, tmp_path / "disc")
        assert set(entries_of(cache)) == {"DICOM_3", "DICOM_4"}
        for name, seed in (("DICOM_3", 1), ("DICOM_4", 2)):
            np.testing.assert_array_equal(stored(cache, name), trunk(SMALL, seed))
        rows = table_of(cache)
        assert {name: row["outcome"] for name, row in rows.items()} == {
            "DICOM#3": "taken", "DICOM#4": "taken", "cut": "skipped",
        }  # fmt: skip
        assert rows["DICOM#3"]["note"] == "passed over: 1 CT localisers, 1 SR images"
        assert rows["DICOM#3"]["patient"] == hash_of_patient("P")
        assert "missing about 1 slice (" in rows["cut"]["note"]
        assert "files left out: a file is cut short" in rows["cut"]["note"]

    @pytest.mark.parametrize(
        ("first", "second", "expected"),
        [
            (slice(10), slice(10, 20), {"in": 20}),
            (slice(20), slice(16), {"a": 20, "b": 16}),
            (slice(11), slice(9, 20), {"in": 22}),
        ],
    )
    def test_copies_and_halves(self, tmp_path: Path, first: slice, second: slice, expected: dict[str, int]) -> None:
        """Half a series in each of two folders is one; a copy in another folder is read alone."""
        for name, kept in (("a", first), ("deep/b", second)):
            files = sorted(series(tmp_path / "in" / name, "1.2.1", 20).iterdir())
            for file in set(files) - set(files[kept]):
                file.unlink()
        found = find_sources([tmp_path / "in"])
        assert {source.path.name: len(source.files) for source in found} == expected

    def test_acquisitions_are_volumes(self, tmp_path: Path) -> None:
        for number, start in ((1, 0.0), (2, 0.5)):
            stack = trunk(SMALL, number) + 1024
            tags = {"0020|0012": str(number)}
            write_dicom(tmp_path / "in", stack, prefix=f"a{number}", tags=tags, origin_lps=(0, 0, start))
        prepare(tmp_path / "cache", tmp_path / "in")
        assert set(entries_of(tmp_path / "cache")) == {"in_3.1", "in_3.2"}

    def test_each_header_is_read_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for number in range(3):
            series(tmp_path / "in", f"1.2.{number}", 8, prefix=f"{number}_")
        looks: list[Path] = []
        original = tree.look
        monkeypatch.setattr(tree, "look", lambda files, *more: looks.extend(files) or original(files, *more))
        given = [tmp_path / "in", *(tmp_path / "in").iterdir()]
        assert len(find_sources(given)) == 3
        assert len(looks) == len(set(looks)) == 24

    def test_the_stamp_changes_with_any_file(self, tmp_path: Path) -> None:
        folder = series(tmp_path / "in", "1.2.1", 8)
        (source,) = find_sources([folder / "s001.dcm"])
        before = stamp_of(source), hash_of_files(source)
        path, kept = folder / "s004.dcm", (folder / "s004.dcm").stat()
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        # older than the others, and as long
        os.utime(path, ns=(kept.st_atime_ns, kept.st_mtime_ns - 10**9))
        after = stamp_of(source), hash_of_files(source)
        assert [a != b for a, b in zip(before, after, strict=True)] == [True, True]

    def test_what_is_no_file_is_named_and_not_opened(self, tmp_path: Path) -> None:
        folder = write_cts(tmp_path / "in", 1)
        os.mkfifo(folder / "pipe.nii.gz")
        os.mkfifo(folder / "pipe.dcm")
        (folder / "gone.nrrd").symlink_to(tmp_path / "nowhere")
        (folder / "itself").symlink_to(folder / "itself")
        prepare(tmp_path / "cache", folder)
        reasons = reasons_of(tmp_path / "cache")
        assert set(reasons) == {"pipe.nii.gz", "gone.nrrd"}
        assert "it is no file" in reasons["pipe.nii.gz"]
        assert "no such file" in reasons["gone.nrrd"]


class TestTheSameVolume:
    def test_in_any_format(self, tmp_path: Path) -> None:
        """The axes may be in another order, positions rounded."""
        image = sitk.GetImageFromArray(trunk(SMALL))
        image.SetSpacing((0.703125, 0.7, 1.1))
        image.SetOrigin((-179.648, 33.3, 12.1))
        folder = tmp_path / "in"
        folder.mkdir()
        sitk.WriteImage(image, str(folder / "a.nii.gz"))
        sitk.WriteImage(sitk.DICOMOrient(image, "SAR"), str(folder / "b.nrrd"))
        for name, shift in (("c.mha", (0, 0, 0.5)), ("d.mha", (0, 0, 0))):
            image.SetOrigin(np.add(image.GetOrigin(), shift))
            sitk.WriteImage(image, str(folder / name))
        prepare(tmp_path / "cache", folder)
        assert set(entries_of(tmp_path / "cache")) == {"a", "c"}
        assert reasons_of(tmp_path / "cache") == {
            "b.nrrd": f"the same data as {folder / 'a.nii.gz'}", "d.mha": f"the same data as {folder / 'c.mha'}",
        }  # fmt: skip

    def test_two_patients_of_a_manifest_are_two(self, tmp_path: Path) -> None:
        for name in ("a.nrrd", "b.nrrd"):
            sitk.WriteImage(sitk.GetImageFromArray(trunk(SMALL)), str(tmp_path / name))
        (tmp_path / "list.csv").write_text("file,patient\na.nrrd,P1\nb.nrrd,P2\n")
        result = prepare(tmp_path / "cache", tmp_path / "list.csv", *JSON)
        assert set(entries_of(tmp_path / "cache")) == {"a", "b"}
        assert any("has the same voxels as" in event["message"] for event in result.named("warning"))
        prepare(tmp_path / "another", tmp_path / "a.nrrd", tmp_path / "b.nrrd")
        assert set(entries_of(tmp_path / "another")) == {"a"}

    def test_a_header_does_not_make_it(self, tmp_path: Path) -> None:
        def write(folder: str, seed: int) -> None:
            (tmp_path / "in" / folder).mkdir(parents=True, exist_ok=True)
            image = sitk.GetImageFromArray(trunk(SMALL, seed))
            sitk.WriteImage(image, str(tmp_path / "in" / folder / "ct.mhd"), useCompression=False)

        write("0", 0)
        write("1", 1)
        headers = {path.read_bytes() for path in (tmp_path / "in").rglob("*.mhd")}
        assert len(headers) == 1
        prepare(tmp_path / "cache", tmp_path / "in", "--spacing", 1)
        assert set(entries_of(tmp_path / "cache")) == {"0_ct", "1_ct"}
        # nor does it hide that the voxels have changed
        write("0", 7)
        prepare(tmp_path / "cache", tmp_path / "in", "--spacing", 1)
        np.testing.assert_array_equal(stored(tmp_path / "cache", "0_ct"), trunk(SMALL, 7))

    def test_resampled_is_said(self, tmp_path: Path) -> None:
        """Again on the next run, which does not read it."""
        size = (20, 24, 20)
        write_dicom(tmp_path / "in", trunk(size) + 1024, spacing_dhw=(2, 2, 2), step_lps=(0, -0.6, 2))
        for _ in range(2):
            prepare(tmp_path / "cache", tmp_path / "in")
            (row,) = table_of(tmp_path / "cache").values()
            assert (row["outcome"], row["name"]) == ("resampled", "ct_0001")
            assert "resampled to a rectangular grid" in row["note"]


class TestPatients:
    @pytest.mark.parametrize(
        ("first", "second", "are_one"),
        [
            ({}, {}, True),
            ({"0010|0021": "A"}, {"0010|0021": "B"}, False),
            ({"0010|0020": ""}, {"0010|0020": ""}, True),
            ({"0010|0020": ""}, {"0010|0020": "", "0020|000d": "1.9"}, False),
            ({"0010|0020": ""}, {"0010|0020": "P"}, False),
        ],
    )
    def test_of_two_series(self, tmp_path: Path, first: dict[str, str], second: dict[str, str], are_one: bool) -> None:
        """PatientID with its issuer, else the study."""
        for number, tags in enumerate((first, second)):
            series(tmp_path / "in" / f"s{number}", f"1.2.{number}", seed=number, tags=tags)
        prepare(tmp_path / "cache", tmp_path / "in")
        cache = read_cache(tmp_path / "cache")
        assert len(cache.entries) == 2
        assert len({entry.patient for entry in cache.entries}) == (1 if are_one else 2)
        assert len(cache.select("val", 0.5)) == (0 if are_one else 1)

    def test_one_patient_on_both_sides_is_refused(self, tmp_path: Path) -> None:
        for number in range(2):
            series(tmp_path / f"s{number}", f"1.2.{number}", seed=number)
        (tmp_path / "m.csv").write_text("file,split\ns0,train\ns1,val\n")
        prepare(tmp_path / "cache", tmp_path / "m.csv")
        assert "its patient is in 'val' here, but in 'train'" in reasons_of(tmp_path / "cache")["s1"]


class TestTwoAtOnce:
    def test_the_second_is_refused_and_says_who_is_there(self, tmp_path: Path) -> None:
        folder, cache = write_cts(tmp_path / "in", 1), tmp_path / "cache"
        prepare(cache, folder)
        command = ("prepare", folder, "--output", cache, "--workers", 0, *QUIET)
        with only_writer(cache, work=read_index(cache)[1][0].inputs):
            assert_refused(run_process(*command), "is in use by process", str(os.getpid()))
            # another part has its own index, but another list the same numbers
            run_process(*command, "--shard", "1/2").checked()
            another = ("prepare", write_cts(tmp_path / "another", 2), *command[2:], "--shard", "1/2")
            assert_refused(run_process(*another), "is in use by process")
        run_process(*command).checked()


def test_a_list_that_was_complete_stays_complete(tmp_path: Path) -> None:
    """Where one of its shards has begun another list since."""
    for number, inputs, shard in ((1, "a", 1), (2, "a", 2), (3, "b", 1)):
        append(tmp_path, Shard(shard, 2), Run(number, Shard(shard, 2), inputs, 1.5, is_complete=True))
    (line,) = unfinished(read_index(tmp_path)[1])
    assert "1 of 2 shards are missing or not finished (2)" in line
