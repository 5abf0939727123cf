"""Shards: parts of one list prepared apart give the cache that one run gives."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from cli_factory import QUIET, Result, assert_refused, maesil, run_process, write_checkpoint, write_ct
from test_prepare import SMALL, write_manifest
from test_prepare_workers import awkward_inputs
from volume_factory import trunk

from MAESILLib.data.cache import Cache, read_cache
from MAESILLib.data.index import Run, Shard, index_paths, parse_shard, unfinished
from MAESILLib.data.records import hash_of_patient
from MAESILLib.runtime.errors import InputError


def prepare_shard(output: Path, shard: str, *inputs: object) -> Result:
    result = maesil("prepare", *inputs, "--output", output, "--shard", shard, "--workers", 1, *QUIET)
    assert result.status == 0, result
    return result


def volumes_of(cache: Cache) -> dict[str, bytes]:
    return {entry.name: np.asarray(cache.open(entry)).tobytes() for entry in cache.entries}


def same(left: Cache, right: Cache) -> None:
    assert left.fingerprint() == right.fingerprint()
    assert left.entries == right.entries
    assert left.refused == right.refused
    assert left.unfinished == right.unfinished == ()
    assert volumes_of(left) == volumes_of(right)


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    return awkward_inputs(tmp_path / "in")


@pytest.fixture
def whole(tmp_path: Path, manifest: Path) -> Cache:
    assert maesil("prepare", manifest, "--output", tmp_path / "whole", "--workers", 1, *QUIET).status == 0
    return read_cache(tmp_path / "whole")


class TestTheSameCache:
    @pytest.mark.parametrize("order", [(1, 2, 3), (3, 2, 1)])
    def test_one_after_the_other(self, tmp_path: Path, manifest: Path, whole: Cache, order: tuple[int, ...]) -> None:
        for number in order:
            prepare_shard(tmp_path / "cache", f"{number}/3", manifest)
        same(read_cache(tmp_path / "cache"), whole)
        assert not (tmp_path / "cache" / "index.jsonl").exists()
        # once more, when everybody can see what everybody did
        for number in order:
            prepare_shard(tmp_path / "cache", f"{number}/3", manifest)
        same(read_cache(tmp_path / "cache"), whole)

    def test_all_at_once(self, tmp_path: Path, manifest: Path, whole: Cache) -> None:
        def run(number: int) -> Result:
            arguments = ("--output", tmp_path / "cache", "--shard", f"{number}/3", "--workers", 1, *QUIET)
            return run_process("prepare", manifest, *arguments)

        with ThreadPoolExecutor(3) as threads:
            assert [result.status for result in threads.map(run, (1, 2, 3))] == [0, 0, 0]
        same(read_cache(tmp_path / "cache"), whole)

    def test_in_folders_of_their_own(self, tmp_path: Path, manifest: Path, whole: Cache) -> None:
        """Copied together, they are one cache."""
        for number in (1, 2):
            prepare_shard(tmp_path / f"part{number}", f"{number}/2", manifest)
            shutil.copytree(tmp_path / f"part{number}", tmp_path / "cache", dirs_exist_ok=True)
        same(read_cache(tmp_path / "cache"), whole)

    def test_more_shards_than_inputs(self, tmp_path: Path) -> None:
        path = write_ct(tmp_path / "a.nrrd", SMALL)
        for number in (1, 2):
            prepare_shard(tmp_path / "cache", f"{number}/2", path)
        cache = read_cache(tmp_path / "cache")
        assert ([entry.name for entry in cache.entries], cache.unfinished) == (["a"], ())

    def test_a_whole_run_takes_over(self, tmp_path: Path, manifest: Path, whole: Cache) -> None:
        """And does again only what no shard did."""
        prepare_shard(tmp_path / "cache", "1/3", manifest)
        before = {p: p.stat().st_mtime_ns for p in (tmp_path / "cache" / "volumes").iterdir()}
        assert maesil("prepare", manifest, "--output", tmp_path / "cache", "--workers", 1, *QUIET).status == 0
        assert [p for p, time_ns in before.items() if p.exists() and p.stat().st_mtime_ns != time_ns] == []
        same(read_cache(tmp_path / "cache"), whole)

    def test_a_later_manifest_counts(self, tmp_path: Path) -> None:
        """Where two indexes know a source, the one written last."""
        for number in range(2):
            write_ct(tmp_path / "in" / f"p{number}.nrrd", SMALL, number)
        for number in (1, 2):
            prepare_shard(tmp_path / "cache", f"{number}/2", tmp_path / "in")
        rows = [{"file": f"in/p{number}.nrrd", "patient": f"P{number}"} for number in range(2)]
        hashed = [hash_of_patient("P0"), hash_of_patient("P1")]
        manifest = write_manifest(tmp_path / "m.csv", rows)
        assert maesil("prepare", manifest, "--output", tmp_path / "cache", "--workers", 1, *QUIET).status == 0
        assert [entry.patient for entry in read_cache(tmp_path / "cache").entries] == hashed
        for number in (1, 2):
            prepare_shard(tmp_path / "cache", f"{number}/2", tmp_path / "in")
        assert [entry.patient for entry in read_cache(tmp_path / "cache").entries] == hashed


class TestWhatIsMissing:
    def test_it_is_said_wherever_the_cache_is_used(self, tmp_path: Path, manifest: Path) -> None:
        prepare_shard(tmp_path / "cache", "2/4", manifest)
        line = "3 of 4 shards are missing or not finished (1, 3, 4)"
        (found,) = read_cache(tmp_path / "cache").unfinished
        assert line in found
        assert line in maesil("info", tmp_path / "cache", *QUIET).out
        checkpoint = write_checkpoint(tmp_path / "tiny.safetensors")
        data = ("--data", tmp_path / "cache", "--output", tmp_path / "out", "--progress", "json", "--device", "cpu")
        evaluated = maesil("evaluate", "--checkpoint", checkpoint, "--settings", "none", *data)
        # it gets no further: what is said of the data is said first
        trained = maesil("pretrain", "--preset", "tiny", "--init", tmp_path / "none.safetensors", *data)
        for result in (evaluated, trained):
            assert any(line in event["message"] for event in result.named("warning"))

    def test_words(self) -> None:
        def found(*runs: tuple[str, bool, str]) -> tuple[str, ...]:
            return unfinished([Run(1, parse_shard(shard), inputs, 1.5, done) for shard, done, inputs in runs])

        assert found(("1/1", True, "x")) == ()
        assert found(("1/2", True, "x"), ("2/2", True, "x")) == ()
        assert "not finished" in found(("1/1", False, "x"))[0]
        (line,) = found(("1/4", True, "x"), ("3/4", False, "x"))
        assert "3 of 4 shards are missing or not finished (2, 3, 4)" in line
        assert "1, 2, 3, 4, 5, 6, 7, 8, 9, ..." in found(("12/12", True, "x"))[0]
        # the same list in other parts, or in one
        assert found(("1/4", True, "x"), ("1/1", True, "x")) == ()
        assert found(("1/4", True, "x"), ("1/2", True, "x"), ("2/2", True, "x")) == ()
        # parts of different lists do not make a whole
        assert len(found(("1/2", True, "x"), ("2/2", True, "y"))) == 2
        assert len(found(("1/2", True, "x"), ("1/1", True, "y"))) == 1

    def test_different_spacings(self, tmp_path: Path, manifest: Path) -> None:
        prepare_shard(tmp_path / "cache", "1/2", manifest)
        result = maesil("prepare", manifest, "--output", tmp_path / "cache", "--shard", "2/2", "--spacing", "2", *QUIET)
        assert_refused(result, "1.5 mm", "2.0 mm")
        path = tmp_path / "cache" / "index.shard-1-of-2.jsonl"
        text = path.read_text().replace('"spacing_mm": 1.5', '"spacing_mm": 2.5')
        prepare_shard(tmp_path / "cache", "2/2", manifest)
        path.write_text(text)
        with pytest.raises(InputError, match=r"2\.5 mm"):
            read_cache(tmp_path / "cache")


@pytest.mark.parametrize("text", ["", "1", "0/2", "3/2", "1/0", "a/b", "1/2/3", "-1/2", "1/2 "])
def test_what_is_no_shard(tmp_path: Path, text: str) -> None:
    path = write_ct(tmp_path / "a.nrrd", SMALL)
    result = maesil("prepare", path, "--output", tmp_path / "cache", f"--shard={text}", *QUIET)
    assert_refused(result, "--shard", "2/8")
    assert not (tmp_path / "cache").exists()


def test_file_names(tmp_path: Path) -> None:
    shards = (Shard(), Shard(2, 8), Shard(10, 1000))
    names = {shard.file_name("index", ".jsonl") for shard in shards}
    assert names == {"index.jsonl", "index.shard-2-of-8.jsonl", "index.shard-10-of-1000.jsonl"}
    for name in (*names, "index.shard-2.jsonl", "index2.jsonl", "index.jsonl.bak", "index.shard-2-of-8.jsonx"):
        (tmp_path / name).touch()
    assert {path.name for path in index_paths(tmp_path)} == names


def test_names_do_not_depend_on_the_shard(tmp_path: Path) -> None:
    for number in range(6):
        write_ct(tmp_path / "in" / f"case{number}" / "ct.nrrd", SMALL, number)
    for number in (1, 2, 3):
        prepare_shard(tmp_path / "cache", f"{number}/3", tmp_path / "in")
    cache = read_cache(tmp_path / "cache")
    assert [entry.name for entry in cache.entries] == [f"case{number}_ct" for number in range(6)]
    for number, entry in enumerate(cache.entries):
        np.testing.assert_array_equal(cache.open(entry), trunk(SMALL, number))
