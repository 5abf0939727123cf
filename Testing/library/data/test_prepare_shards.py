"""Shards: parts of one list prepared apart give the cache that one run gives."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from cli_factory import QUIET, Result, assert_refused, maesil, run_process, write_ct
from dataset_factory import SMALL
from prepare_factory import assert_same, awkward_inputs, names_of, prepare, stored, write_cts, write_manifest
from volume_factory import trunk

from MAESILLib.data.cache import read_cache
from MAESILLib.data.index import Run, Shard, index_paths, parse_shard, unfinished
from MAESILLib.data.records import hash_of_patient
from MAESILLib.runtime.errors import InputError


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return awkward_inputs(tmp_path_factory.mktemp("in"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, manifest: Path) -> Path:
    """What one run makes of the manifest."""
    prepare(folder := tmp_path_factory.mktemp("whole"), manifest)
    return folder


class TestTheSameCache:
    @pytest.mark.parametrize("order", [(1, 2, 3), (3, 2, 1)])
    def test_one_after_the_other(self, tmp_path: Path, manifest: Path, whole: Path, order: tuple[int, ...]) -> None:
        # the second time, everybody can see what everybody did
        for _ in range(2):
            for number in order:
                prepare(tmp_path / "cache", manifest, "--shard", f"{number}/3")
            assert_same(tmp_path / "cache", whole)
            assert not (tmp_path / "cache" / "index.jsonl").exists()

    def test_all_at_once(self, tmp_path: Path, manifest: Path, whole: Path) -> None:
        def run(number: int) -> Result:
            arguments = ("--output", tmp_path / "cache", "--shard", f"{number}/3", "--workers", 0, *QUIET)
            return run_process("prepare", manifest, *arguments)

        with ThreadPoolExecutor(3) as threads:
            assert [result.status for result in threads.map(run, (1, 2, 3))] == [0, 0, 0]
        assert_same(tmp_path / "cache", whole)

    def test_in_folders_of_their_own(self, tmp_path: Path, manifest: Path, whole: Path) -> None:
        """Copied together, they are one cache."""
        for number in (1, 2):
            prepare(tmp_path / f"part{number}", manifest, "--shard", f"{number}/2")
            shutil.copytree(tmp_path / f"part{number}", tmp_path / "cache", dirs_exist_ok=True)
        assert_same(tmp_path / "cache", whole)

    def test_more_shards_than_inputs(self, tmp_path: Path) -> None:
        path = write_ct(tmp_path / "a.nrrd", SMALL)
        for number in (1, 2):
            prepare(tmp_path / "cache", path, "--shard", f"{number}/2")
        cache = read_cache(tmp_path / "cache")
        assert ([entry.name for entry in cache.entries], cache.unfinished) == (["ct_0001"], ())

    def test_a_whole_run_takes_over(self, tmp_path: Path, manifest: Path, whole: Path) -> None:
        """And does again only what no shard did."""
        prepare(tmp_path / "cache", manifest, "--shard", "1/3")
        before = {p: p.stat().st_mtime_ns for p in (tmp_path / "cache" / "volumes").iterdir()}
        prepare(tmp_path / "cache", manifest)
        assert {p: p.stat().st_mtime_ns for p in before} == before
        assert_same(tmp_path / "cache", whole)

    def test_a_later_manifest_counts(self, tmp_path: Path) -> None:
        """Where two indexes know a source, the one written last; a folder says nothing, so it changes nothing."""
        folder, cache = write_cts(tmp_path / "in", 2), tmp_path / "cache"
        rows = [{"file": f"in/p{n}.nrrd", "patient": f"P{n}", "split": s} for n, s in enumerate(("val", "train"))]
        manifest = write_manifest(tmp_path / "m.csv", rows)
        shards = [(folder, "--shard", "1/2"), (folder, "--shard", "2/2")]
        for runs in ([*shards, (manifest,)], shards):
            for arguments in runs:
                prepare(cache, *arguments)
            found = [(entry.patient, entry.split) for entry in read_cache(cache).entries]
            assert found == [(hash_of_patient("P0"), "val"), (hash_of_patient("P1"), "train")]

    @pytest.mark.parametrize("order", [(1, 2), (2, 1)])
    def test_numbers_stay_and_do_not_depend_on_the_shard(self, tmp_path: Path, order: tuple[int, int]) -> None:
        folder, cache = write_cts(tmp_path / "in", 3), tmp_path / "cache"
        (folder / "p1.nrrd").write_text("no volume")
        for new in ((), ("a", "p11", "q")):
            for seed, name in enumerate(new, start=3):
                write_ct(folder / f"{name}.nrrd", SMALL, seed)
            for number in order:
                prepare(cache, folder, "--shard", f"{number}/2")
        numbers = {name: f"ct_{n:04d}" for n, name in enumerate(("p0", "p1", "p2", "a", "p11", "q"), start=1)}
        assert names_of(cache) == numbers
        assert set(read_cache(cache).refused) == {"ct_0002"}
        for seed, name in ((0, "p0"), (2, "p2"), (3, "a"), (5, "q")):
            np.testing.assert_array_equal(stored(cache, name), trunk(SMALL, seed))


class TestWhatIsMissing:
    def test_it_is_said_wherever_the_cache_is_used(self, tmp_path: Path, manifest: Path, checkpoint: Path) -> None:
        prepare(tmp_path / "cache", manifest, "--shard", "2/4")
        line = "3 of 4 shards are missing or not finished (1, 3, 4)"
        (found,) = read_cache(tmp_path / "cache").unfinished
        assert line in found
        assert line in maesil("info", tmp_path / "cache", *QUIET).out
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
        prepare(tmp_path / "cache", manifest, "--shard", "1/2")
        result = prepare(tmp_path / "cache", manifest, "--shard", "2/2", "--spacing", "2", status=2)
        assert_refused(result, "1.5 mm", "2.0 mm")
        prepare(tmp_path / "cache", manifest, "--shard", "2/2")
        path = tmp_path / "cache" / "index.shard-1-of-2.jsonl"
        path.write_text(path.read_text().replace('"spacing_mm": 1.5', '"spacing_mm": 2.5'))
        with pytest.raises(InputError, match=r"2\.5 mm"):
            read_cache(tmp_path / "cache")


def test_file_names(tmp_path: Path) -> None:
    shards = (Shard(), Shard(2, 8), Shard(10, 1000))
    names = {shard.file_name("index", ".jsonl") for shard in shards}
    assert names == {"index.jsonl", "index.shard-2-of-8.jsonl", "index.shard-10-of-1000.jsonl"}
    for name in (*names, "index.shard-2.jsonl", "index2.jsonl", "index.jsonl.bak", "index.shard-2-of-8.jsonx"):
        (tmp_path / name).touch()
    assert {path.name for path in index_paths(tmp_path)} == names
