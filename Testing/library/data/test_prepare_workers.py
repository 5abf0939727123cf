"""Preparing side by side: the same cache however many workers there are, and whatever becomes of one."""

import os
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil
import pytest
from cli_factory import JSON, QUIET, leftovers, maesil, maesil_process, write_ct
from dataset_factory import SMALL
from prepare_factory import assert_same, awkward_inputs, entries_of, prepare, reasons_of, remember, write_cts
from worker_stub import look_at, pretend

from MAESILLib.data import tree
from MAESILLib.data.cache import read_cache
from MAESILLib.data.one_source import Outcome, Setup, Task, refused
from MAESILLib.data.sources import Source
from MAESILLib.data.workers import run_in_workers
from MAESILLib.runtime.errors import DiskFullError
from MAESILLib.runtime.events import Reporter
from MAESILLib.runtime.stopping import StopRequest


def test_as_many_workers_as_you_like(tmp_path: Path) -> None:
    manifest = awkward_inputs(tmp_path / "in")
    for count in (0, 1, 3):
        prepare(tmp_path / f"cache{count}", manifest, "--workers", count)
        assert_same(tmp_path / f"cache{count}", tmp_path / "cache0")
    cache = read_cache(tmp_path / "cache0")
    # numbers 6 and 7 hold the same data as 0 and 1
    assert cache.refused["p2_ct1"] == "the same data as p0_ct0"
    assert "the same data as" in cache.refused["p3_ct1"]
    assert "its patient is in 'train' here, but in 'val'" in cache.refused["p3_ct0"]
    assert "bad" in cache.refused
    assert {entry.name for entry in cache.entries} == {"p0_ct0", "p1_ct0", "p2_ct0", "p0_ct1", "p1_ct1"}


SETUP = Setup(Path("nowhere"), 1.5, False)


def tasks_of(*names: str) -> list[Task]:
    return [Task(Source(Path("/in") / name), name, order) for order, name in enumerate(names)]


def run_stub(
    *names: str, count: int = 2, stop: StopRequest | None = None, limit_s: float = 60
) -> Generator[Outcome, None, None]:
    work, stop = partial(pretend, SETUP), stop or StopRequest()
    return run_in_workers(work, tasks_of(*names), count, stop, limit_s=limit_s, failed=refused)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
class TestPool:
    """Each test starts processes, so what belongs together is one test."""

    def test_a_worker_that_dies_costs_its_file_only(self, capfd: pytest.CaptureFixture) -> None:
        outcomes = list(run_stub("a", "kill", "b", "crash", "exit", "c", "kill2", "d"))
        reasons = {o.task.source.path.name: o.record.reason for o in outcomes}
        assert len(outcomes) == 8
        assert all(reasons[name] == "" for name in "abcd")
        assert "the reader died (signal 9)" in reasons["kill"]
        assert "the reader died (signal 9)" in reasons["kill2"]
        assert "signal 11" in reasons["crash"]
        assert "exit status 7" in reasons["exit"]
        assert all(o.record.stamp == "" for o in outcomes if o.record.reason), "they are tried again"
        assert capfd.readouterr() == ("", "")

    def test_a_full_disk_ends_it(self) -> None:
        with pytest.raises(DiskFullError, match="free space"):
            list(run_stub("full", "slow", "slow2"))

    def test_a_stop_is_noticed_at_once(self) -> None:
        stop = StopRequest()
        outcomes = run_stub("a", "slow", "slow2", stop=stop)
        assert next(outcomes).task.name == "a"
        stop.ask("a test")
        begin = time.monotonic()
        with pytest.raises(Exception, match="stopped: a test"):
            list(outcomes)
        assert time.monotonic() - begin < 1

    def test_a_worker_that_takes_too_long_is_killed(self) -> None:
        (outcome,) = run_stub("slow", count=1, limit_s=1)
        assert "took too long" in outcome.record.reason

    def test_of_headers_too_the_file_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """And the others of its batch are looked at."""
        monkeypatch.setattr(tree, "LIMIT_S", 1)
        monkeypatch.setattr(tree, "_look_at", look_at)
        files = [Path("/in", name) for name in ("a", "slow", "b", "kill", "c")]
        looked = tree.look(files, 2, Reporter(), StopRequest())
        assert [looked[file].kind for file in files] == ["a", "", "b", "", "c"]
        assert looked[files[1]].problem.startswith("/in/slow: reading it took too long")
        assert looked[files[3]].problem.startswith("/in/kill: the reader died (signal 9)")

    @pytest.mark.skipif(sys.platform != "linux", reason="limits of memory")
    def test_a_worker_cannot_take_all_memory(self) -> None:
        outcomes = list(run_stub("hog", "a", count=1))
        assert [o.record.reason for o in outcomes] == ["no memory", ""]


def start(folder: Path, cache: Path, *arguments: object) -> subprocess.Popen[str]:
    link = cache.with_name("link.csv")
    process = maesil_process("prepare", folder, "--output", cache, "--link", link, *JSON, *arguments)
    while not (cache / "index.jsonl").exists():
        assert process.poll() is None
        time.sleep(0.01)
    remember(cache, link)
    return process


def reader_of(path: Path, pid: int) -> psutil.Process:
    """Return the child of ``pid`` that has ``path`` open."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        for child in psutil.Process(pid).children():
            with suppress(OSError):
                if any(os.path.samefile(fd, path) for fd in Path(f"/proc/{child.pid}/fd").iterdir()):
                    return child
    raise AssertionError(f"nobody reads {path}")


def wait_until_gone(processes: list[psutil.Process]) -> None:
    end = time.monotonic() + 5
    while any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes):
        assert time.monotonic() < end, "a worker outlives its parent"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CT that takes a while to read and prepare."""
    return write_ct(tmp_path_factory.mktemp("large") / "large.nii.gz", (144, 224, 224))


@pytest.mark.skipif(not Path(f"/proc/self/task/{os.getpid()}/children").exists(), reason="needs /proc")
class TestProcesses:
    def test_one_that_is_killed(self, tmp_path: Path, large: Path) -> None:
        folder, cache = write_cts(tmp_path / "in"), tmp_path / "cache"
        os.link(large, folder / "large.nii.gz")
        process = start(folder, cache, "--workers", 2)
        reader_of(large, process.pid).kill()
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert set(entries_of(cache)) == {"p0", "p1", "p2"}
        assert "the reader died (signal 9)" in reasons_of(cache)["large.nii.gz"]
        assert leftovers(tmp_path) == []
        assert "large.nii.gz" in "".join(line for line in out.splitlines() if '"warning"' in line)
        # and it is tried again, because it may have been the memory
        prepare(cache, folder)
        assert set(entries_of(cache)) == {"large", "p0", "p1", "p2"}
        assert reasons_of(cache) == {}

    @pytest.mark.parametrize("how", ["signal", "stop file"])
    @pytest.mark.parametrize("workers", [0, 2])
    def test_stopped_within_two_seconds(self, tmp_path: Path, large: Path, how: str, workers: int) -> None:
        folder, cache, stop_file = tmp_path / "in", tmp_path / "cache", tmp_path / "stop"
        write_ct(folder / "a.nrrd", SMALL)
        for number in range(6):
            os.link(large, folder / f"large{number}.nii.gz")
        process = start(folder, cache, "--workers", workers, "--stop-file", stop_file)
        while "ct_0001" not in (cache / "index.jsonl").read_text():
            assert process.poll() is None
            time.sleep(0.01)
        workers_of_it = psutil.Process(process.pid).children()
        begin = time.monotonic()
        if how == "signal":
            process.terminate()
        else:
            stop_file.touch()
        out, _ = process.communicate(timeout=30)
        assert time.monotonic() - begin < 2
        assert process.returncode == 3, out
        assert '"cancelled"' in out
        wait_until_gone(workers_of_it)
        assert "a" in entries_of(cache)
        assert leftovers(tmp_path) == []

    def test_killed_altogether_and_started_again(self, tmp_path: Path, large: Path) -> None:
        folder, cache = write_cts(tmp_path / "in"), tmp_path / "cache"
        os.link(large, folder / "z.nii.gz")
        process = start(folder, cache, "--workers", 2)
        worker = reader_of(large, process.pid)
        while len((cache / "index.jsonl").read_text().splitlines()) < 4:
            time.sleep(0.01)
        process.kill()
        process.communicate()
        wait_until_gone([worker])
        # what was done is there
        assert [entry.name for entry in read_cache(cache).entries] == ["ct_0001", "ct_0002", "ct_0003"]
        assert read_cache(cache).unfinished
        with open(cache / "index.jsonl", "a") as file:
            file.write('{"source": "/in/torn.nrrd", "order": 3, "ent')
        (cache / "volumes" / ".0123abcd.partial.ct_0004.npy").write_bytes(b"half")
        other = cache / "volumes" / ".0123abcd.partial.another.npy"
        other.write_bytes(b"of another shard")
        before = {p: p.stat().st_mtime_ns for p in (cache / "volumes").glob("ct*")}
        # by as many workers as there are cores
        maesil("prepare", folder, "--output", cache, *QUIET).checked()
        assert {p: p.stat().st_mtime_ns for p in before} == before
        assert leftovers(cache) == [str(other.relative_to(cache))]
        other.unlink()
        prepare(tmp_path / "whole", folder)
        assert_same(cache, tmp_path / "whole")
