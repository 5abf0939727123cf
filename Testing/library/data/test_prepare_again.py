"""Preparing again: what is done is not done again, what is damaged is, and the report says which."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cli_factory import JSON, QUIET, assert_refused, assert_refused_event, maesil, write_ct
from dataset_factory import SMALL, write_labels
from prepare_factory import entries_of, file_of, prepare, reasons_of, report_of, stored, write_cts, write_manifest
from volume_factory import trunk

from MAESILLib.data import one_source
from MAESILLib.data.cache import INDEX, read_cache
from MAESILLib.data.index import WHOLE, Run, Shard, append
from MAESILLib.data.names import plan_names
from MAESILLib.data.records import CacheEntry, Record
from MAESILLib.data.report import kind_of
from MAESILLib.data.sources import Source
from MAESILLib.runtime.errors import InputError


def counts(output: Path, *inputs: object) -> tuple[int, int, int]:
    """Prepare; return how many were prepared, already there, and refused."""
    prepare(output, *inputs)
    report = report_of(output)
    return report["prepared"], report["already_there"], report["refused"]


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    return write_cts(tmp_path / "in")


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the sources whose bytes are read."""
    names: list[str] = []
    original = one_source.hash_of_files

    def hash_of(source: Source) -> str:
        names.append(source.path.name)
        return original(source)

    monkeypatch.setattr(one_source, "hash_of_files", hash_of)
    return names


class TestNotAgain:
    def test_only_what_has_changed_is_read(self, tmp_path: Path, inputs: Path, hashed: list[str]) -> None:
        cache = tmp_path / "cache"
        (inputs / "bad.nrrd").write_text("no volume")
        (inputs / "q.nrrd").write_bytes((inputs / "p0.nrrd").read_bytes())
        assert counts(cache, inputs) == (3, 0, 2)
        index = (cache / INDEX).read_text()
        assert index.count('"source"') == 5, "a line for each source"
        assert len(hashed) == 5
        assert counts(cache, inputs) == (0, 3, 2)
        assert hashed[5:] == ["bad.nrrd"], "what was refused is read again"
        added = (cache / INDEX).read_text().removeprefix(index).splitlines()
        assert [json.loads(line)["is_complete"] for line in added] == [False, True]
        # a touched file is hashed once, but not prepared
        os.utime(inputs / "p1.nrrd", (1, 1))
        before = file_of(cache, "p1").stat().st_mtime_ns
        assert [counts(cache, inputs) for _ in range(2)] == [(0, 3, 2)] * 2
        assert hashed[6:] == ["bad.nrrd", "p1.nrrd", "bad.nrrd"]
        assert file_of(cache, "p1").stat().st_mtime_ns == before

    def test_a_file_that_is_away_does_not_lose_its_volume(self, tmp_path: Path, inputs: Path) -> None:
        prepare(tmp_path / "cache", inputs / "p0.nrrd", inputs / "p1.nrrd")
        manifest = write_manifest(tmp_path / "m.json", [{"file": f"in/p{number}.nrrd"} for number in range(3)])
        away = (inputs / "p1.nrrd").rename(tmp_path / "away.nrrd")
        prepare(tmp_path / "cache", manifest)
        assert set(entries_of(tmp_path / "cache")) == {"p0", "p1", "p2"}
        assert "no such file" in reasons_of(tmp_path / "cache")["p1.nrrd"]
        away.rename(inputs / "p1.nrrd")
        prepare(tmp_path / "cache", manifest)
        assert reasons_of(tmp_path / "cache") == {}

    def test_a_copy_of_a_source_that_is_away(self, tmp_path: Path, inputs: Path) -> None:
        prepare(tmp_path / "cache", inputs)
        moved = (inputs / "p1.nrrd").rename(tmp_path / "moved.nrrd")
        assert counts(tmp_path / "cache", moved) == (0, 0, 1)
        assert f"the same data as {inputs / 'p1.nrrd'}" in reasons_of(tmp_path / "cache")["moved.nrrd"]
        assert set(entries_of(tmp_path / "cache")) == {"p0", "p1", "p2"}
        (inputs / "p2.nrrd").write_bytes(moved.read_bytes())
        prepare(tmp_path / "cache", inputs / "p2.nrrd")
        assert set(entries_of(tmp_path / "cache")) == {"p0", "p1"}

    def test_a_copy_takes_the_place_of_data_that_changed(self, tmp_path: Path, inputs: Path) -> None:
        (inputs / "q.nrrd").write_bytes((inputs / "p0.nrrd").read_bytes())
        prepare(tmp_path / "cache", inputs)
        assert set(entries_of(tmp_path / "cache")) == {"p0", "p1", "p2"}
        write_ct(inputs / "p0.nrrd", (24, 24, 24), 7)
        assert counts(tmp_path / "cache", inputs) == (1, 3, 0)
        cache = read_cache(tmp_path / "cache")
        assert set(entries_of(tmp_path / "cache")) == {"p0", "p1", "p2", "q"}
        np.testing.assert_array_equal(cache.open(cache.entries[0]), trunk((24, 24, 24), 7))
        np.testing.assert_array_equal(stored(tmp_path / "cache", "q"), trunk(SMALL, 0))

    def test_a_bug_in_one_file_does_not_stop_the_rest(
        self, tmp_path: Path, inputs: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def store_volume(folder: Path, name: str, hu: np.ndarray) -> int:
            if name == "ct_0001":
                raise MemoryError
            if name == "ct_0002":
                raise ZeroDivisionError("two\nlines")
            return original(folder, name, hu)

        original = one_source.store_volume
        monkeypatch.setattr(one_source, "store_volume", store_volume)
        prepare(tmp_path / "cache", inputs)
        assert set(entries_of(tmp_path / "cache")) == {"p2"}
        reasons = reasons_of(tmp_path / "cache")
        assert "too little memory" in reasons["p0.nrrd"]
        assert reasons["p1.nrrd"] == "ZeroDivisionError: two lines"


class TestDamage:
    @pytest.mark.parametrize("suffix", [".npy", ".foreground.npy", ".labels.npy"])
    def test_what_is_missing_or_cut_is_made_again(self, tmp_path: Path, inputs: Path, suffix: str) -> None:
        write_labels(inputs / "p1_seg.nrrd")
        prepare(tmp_path / "cache", inputs)
        path = file_of(tmp_path / "cache", "p1", suffix)
        good = path.read_bytes()
        for kept in (None, 0, 100, -1):
            path.unlink()
            if kept is not None:
                path.write_bytes(good[:kept])
            assert counts(tmp_path / "cache", inputs) == (1, 2, 0)
            assert path.read_bytes() == good

    def test_a_flipped_bit(self, tmp_path: Path, inputs: Path) -> None:
        write_labels(inputs / "p0_seg.nrrd")
        prepare(tmp_path / "cache", inputs)
        folder = tmp_path / "cache" / "volumes"
        good = {path: path.read_bytes() for path in folder.iterdir()}
        for name in ("ct_0001.labels.npy", "ct_0002.npy", "ct_0003.foreground.npy"):
            data = bytearray((folder / name).read_bytes())
            data[-1] ^= 1
            (folder / name).write_bytes(data)
        maesil("info", tmp_path / "cache", *QUIET).checked()
        result = maesil("info", tmp_path / "cache", "--verify", *QUIET)
        assert_refused(result, "3 of 3 volumes are damaged: ct_0001, ct_0002", "maesil prepare again with --verify")
        result = maesil("info", tmp_path / "cache", "--verify", *JSON)
        assert_refused_event(result, "bad_input", 2)
        warnings = [event["message"] for event in result.named("warning")]
        assert ["labels.npy" in warnings[0], "0002.npy" in warnings[1], "foreground" in warnings[2]] == [True] * 3
        assert counts(tmp_path / "cache", inputs) == (0, 3, 0), "it shows only when all is read"
        assert "prepared 3" in prepare(tmp_path / "cache", inputs, "--verify").out
        assert {path: path.read_bytes() for path in folder.iterdir()} == good
        maesil("info", tmp_path / "cache", "--verify", *QUIET).checked()

    def test_what_is_no_cache_cannot_be_verified(self, inputs: Path) -> None:
        assert_refused(maesil("info", inputs / "p0.nrrd", "--verify", *QUIET), "folder of one")
        assert_refused(maesil("info", "--system", "--verify", *QUIET), "--verify")


class TestIndex:
    def run(self, number: int, shard: Shard = WHOLE) -> Run:
        return Run(number, shard, "inputs", 1.5)

    def record(self, number: int, patient: str = "p") -> Record:
        entry = CacheEntry(f"v{number}", (8, 8, 8), f"{patient}{number}", "", f"{number:064x}", 0.5, crc32=1)
        return Record(f"{number:016x}", number, f"v{number}", "stamp", entry)

    @pytest.mark.parametrize("cut", [1, 20, 200])
    def test_a_torn_last_line(self, tmp_path: Path, cut: int) -> None:
        for value in (self.run(1), *map(self.record, range(3))):
            append(tmp_path, WHOLE, value)
        os.truncate(tmp_path / INDEX, (tmp_path / INDEX).stat().st_size - cut)
        assert [entry.name for entry in read_cache(tmp_path).entries] == ["v0", "v1"]
        append(tmp_path, WHOLE, self.run(2))
        append(tmp_path, WHOLE, self.record(2))
        assert [entry.name for entry in read_cache(tmp_path).entries] == ["v0", "v1", "v2"]
        assert read_cache(tmp_path).unfinished
        append(tmp_path, WHOLE, replace(self.run(2), is_complete=True))
        assert read_cache(tmp_path).unfinished == ()
        # nor is the first line one
        os.truncate(tmp_path / INDEX, 30)
        with pytest.raises(InputError, match="is not a cache"):
            read_cache(tmp_path)
        append(tmp_path, WHOLE, self.run(1))
        append(tmp_path, WHOLE, self.record(0))
        assert [entry.name for entry in read_cache(tmp_path).entries] == ["v0"]

    @pytest.mark.parametrize("shards", [(WHOLE, Shard(2, 3)), (Shard(2, 3), WHOLE)])
    def test_the_last_run_counts(self, tmp_path: Path, shards: tuple[Shard, Shard]) -> None:
        for number, shard in enumerate(shards, start=1):
            append(tmp_path, shard, self.run(number, shard))
            append(tmp_path, shard, self.record(5, f"of run {number}, "))
        # whatever was written to the other file since then
        append(tmp_path, shards[0], self.run(3, shards[0]))
        append(tmp_path, shards[0], self.record(6))
        assert [entry.patient for entry in read_cache(tmp_path).entries] == ["of run 2, 5", "p6"]


class TestReport:
    def test_reasons_are_grouped(self, tmp_path: Path, inputs: Path) -> None:
        for number in range(12):
            (inputs / f"bad{number}.nii.gz").write_text("no volume")
        result = prepare(tmp_path / "cache", inputs, "--workers", 2, *JSON)
        report = report_of(tmp_path / "cache")
        ((kind, count),) = report["refused_by_reason"].items()
        assert count == 12
        assert str(tmp_path) not in kind
        (event,) = (event for event in result.named("info") if event["what"] == "preparation")
        assert {key: event[key] for key in report if key != "table"} | {"table": report["table"]} == report
        paths = {event["kind"]: event["path"] for event in result.named("artifact")}
        assert paths["report"] == str(tmp_path / "cache" / "report.json")
        assert (report["volumes"], report["patients"], report["workers"]) == (3, 3, 2)
        assert report["finished"]
        text = prepare(tmp_path / "cache", inputs).out
        assert "already there 3, refused 12 of 15 inputs" in text
        assert f"  12 x {kind}" in text
        assert "and 2 more" in text

    @pytest.mark.parametrize(
        ("reason", "kind"),
        [
            ("it is cut short: 100 of 200 bytes. copy it again", "it is cut short: N of N bytes"),
            ("the same data as ct_0001", "the same data as another"),
            ("in 'val' here, but in 'train' with c", "in 'val' here, but in 'train' with another"),
            ("the reader died (signal 9) while it read. x", "the reader died (signal N) while it read"),
            ("a spacing of -0.5 mm", "a spacing of N mm"),
        ],
    )
    def test_kinds(self, reason: str, kind: str) -> None:
        assert kind_of(reason) == kind


class TestNames:
    @pytest.mark.parametrize(
        ("paths", "names"),
        [
            ("a.nii.gz x/ct.nrrd y/ct.nrrd y/z/ct.mha s1/y/b.nii s2/y/b.nii", "a x_ct y_ct z_ct s1_y_b s2_y_b"),
            ("p1/CT p2/CT p3/1.2.840 p4/CHEST/0001.dcm", "p1_CT p2_CT 1.2.840 CHEST_0001"),
        ],
    )
    def test_as_many_folders_as_it_takes(self, paths: str, names: str) -> None:
        assert plan_names([Path("/d", path) for path in paths.split()]) == names.split()

    def test_they_never_collide(self) -> None:
        paths = [
            *("/d/a b.nii", "/d/a_b.nii", "/d/a_b.nrrd", "/d/A_B.mha", "/d/x/a.nii", "/d/x_a.nii", "/e/x/a.nii"),
            *("/d/...nii", "/d/é.nii", "/d/c.foreground.nii", "/d/c.nii", "/a.nii", "/d/" + "n" * 240 + ".nii"),
            *("/d/" + "n" * 239 + "m.nii", "/d/c_foreground.nii"),
        ]
        names = plan_names([Path(p) for p in paths])
        assert len({name.casefold() for name in names}) == len(paths)
        assert all(0 < len(name) < 200 and "/" not in name and not name.startswith(".") for name in names)
        assert not any(name.endswith(".foreground") for name in names)

    def test_a_name_that_another_source_has_taken(self, tmp_path: Path) -> None:
        for number in range(2):
            write_ct(tmp_path / f"in{number}" / "a.nrrd", SMALL, number)
            manifest = write_manifest(tmp_path / f"in{number}" / "m.csv", [{"file": "a.nrrd"}])
            prepare(tmp_path / "cache", manifest)
        for number, name in enumerate(("a", "a_2")):
            volume = np.load(tmp_path / "cache" / "volumes" / f"{name}.npy")
            np.testing.assert_array_equal(volume, trunk(SMALL, number))
