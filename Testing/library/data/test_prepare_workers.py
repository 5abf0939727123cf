"""Preparing side by side: the same cache however many workers there are, and whatever becomes of one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from cli_factory import QUIET, REPOSITORY, assert_refused, assert_refused_event, leftovers, maesil, write_ct
from test_prepare import SMALL, entries_of, reasons_of, write_manifest
from worker_stub import pretend

from MAESILLib.data import workers
from MAESILLib.data.cache import read_cache
from MAESILLib.data.one_source import Setup, Task
from MAESILLib.data.sources import Source
from MAESILLib.data.workers import prepare_in_workers
from MAESILLib.runtime.errors import DiskFullError
from MAESILLib.runtime.parent import state_and_parent
from MAESILLib.runtime.stopping import StopRequest

posix = pytest.mark.skipif(sys.platform == "win32", reason="signals")


def files_of(cache: Path) -> dict[str, bytes]:
    """Every volume and foreground table."""
    return {path.name: path.read_bytes() for path in (cache / "volumes").iterdir()}


def assert_same(left: Path, right: Path) -> None:
    assert replace(read_cache(left), folder=right) == read_cache(right)
    assert files_of(left) == files_of(right)


def awkward_inputs(folder: Path) -> Path:
    """Good CTs, a duplicate, a patient on both sides, a bad file, and names that collide."""
    rows = []
    for number in range(8):
        path = write_ct(folder / f"p{number % 4}" / f"ct{number // 4}.nrrd", SMALL, number % 6)
        split = "val" if number == 7 else "train" if number else "val"
        rows.append({"file": str(path), "patient": f"P{number % 3}", "split": split})
    (folder / "bad.nrrd").write_text("no volume")
    rows.insert(2, {"file": str(folder / "bad.nrrd"), "patient": "", "split": ""})
    return write_manifest(folder / "m.csv", rows)


def test_as_many_workers_as_you_like(tmp_path: Path) -> None:
    manifest = awkward_inputs(tmp_path / "in")
    for count in (1, 3):
        output = tmp_path / f"cache{count}"
        assert maesil("prepare", manifest, "--output", output, "--workers", count, *QUIET).status == 0
    assert_same(tmp_path / "cache1", tmp_path / "cache3")
    # numbers 6 and 7 hold the same data as 0 and 1
    reasons = reasons_of(tmp_path / "cache1")
    assert "the same data as" in reason_of(tmp_path / "cache1", "p2/ct1.nrrd")
    assert "the same data as" in reason_of(tmp_path / "cache1", "p3/ct1.nrrd")
    assert "its patient is in 'train' here, but in 'val'" in reason_of(tmp_path / "cache1", "p3/ct0.nrrd")
    assert "bad.nrrd" in reasons
    assert set(entries_of(tmp_path / "cache1")) == {"p0_ct0", "p1_ct0", "p2_ct0", "p0_ct1", "p1_ct1"}


def reason_of(cache: Path, source: str) -> str:
    return next(refusal.reason for refusal in read_cache(cache).refused if refusal.source.endswith(source))


def test_a_wrong_number_of_workers(tmp_path: Path) -> None:
    path = write_ct(tmp_path / "a.nrrd", SMALL)
    result = maesil("prepare", path, "--output", tmp_path / "cache", "--workers", 0, *QUIET)
    assert_refused(result, "0 workers")
    assert not (tmp_path / "cache").exists()


def tasks_of(*names: str) -> list[Task]:
    return [Task(Source(Path("/in") / name), name, order) for order, name in enumerate(names)]


@posix
class TestPool:
    """Each test starts processes, so what belongs together is one test."""

    SETUP = Setup(Path("nowhere"), 1.5, False, {})

    @pytest.fixture(autouse=True)
    def _stub(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(workers, "prepare_source", pretend)

    def test_a_worker_that_dies_costs_its_file_only(self) -> None:
        tasks = tasks_of("a", "kill", "b", "crash", "exit", "c", "kill2", "d")
        outcomes = list(prepare_in_workers(self.SETUP, tasks, 2, StopRequest()))
        reasons = {Path(o.record.source).name: o.record.reason for o in outcomes}
        assert len(outcomes) == 8
        assert all(reasons[name] == "" for name in "abcd")
        assert "the reader died (signal 9)" in reasons["kill"]
        assert "the reader died (signal 9)" in reasons["kill2"]
        assert "signal 11" in reasons["crash"]
        assert "exit status 7" in reasons["exit"]
        assert all(o.record.stamp == "" for o in outcomes if o.record.reason), "they are tried again"

    def test_a_full_disk_ends_it(self) -> None:
        with pytest.raises(DiskFullError, match="free space"):
            list(prepare_in_workers(self.SETUP, tasks_of("full", "slow", "slow2"), 2, StopRequest()))

    def test_a_stop_is_noticed_at_once(self) -> None:
        stop = StopRequest()
        outcomes = prepare_in_workers(self.SETUP, tasks_of("a", "slow", "slow2"), 2, stop)
        assert next(outcomes).record.source == "/in/a"
        stop.ask("a test")
        begin = time.monotonic()
        with pytest.raises(Exception, match="stopped: a test"):
            list(outcomes)
        assert time.monotonic() - begin < 1

    def test_a_worker_that_takes_too_long_is_killed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(workers, "FILE_LIMIT_S", 1)
        (outcome,) = prepare_in_workers(self.SETUP, tasks_of("slow"), 1, StopRequest())
        assert "took too long" in outcome.record.reason

    @pytest.mark.skipif(sys.platform != "linux", reason="limits of memory")
    def test_a_worker_cannot_take_all_memory(self) -> None:
        outcomes = list(prepare_in_workers(self.SETUP, tasks_of("hog", "a"), 1, StopRequest()))
        assert [o.record.reason for o in outcomes] == ["no memory", ""]


def start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "MAESILLib", "prepare", *map(str, arguments), "--progress", "json"],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def children_of(pid: int) -> list[int]:
    """Processes below this one that have a file open below the folder of inputs are its workers."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] not in "ZX":
            found.append(int(folder.name))
    return found


def reader_of(path: Path, pid: int, within_s: float = 20) -> int:
    """Return the child of ``pid`` that has ``path`` open."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        for child in children_of(pid):
            try:
                if any(os.path.samefile(fd, path) for fd in Path(f"/proc/{child}/fd").iterdir()):
                    return child
            except OSError:
                continue
    raise AssertionError(f"nobody reads {path}")


def wait_until_gone(pids: list[int]) -> None:
    end = time.monotonic() + 5
    while any((state_and_parent(pid) or ("Z", 0))[0] not in "ZX" for pid in pids):
        assert time.monotonic() < end, "a worker outlives its parent"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CT that takes a second to read and prepare."""
    return write_ct(tmp_path_factory.mktemp("large") / "large.nii.gz", (160, 256, 256))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
class TestProcesses:
    def test_one_that_is_killed(self, tmp_path: Path, large: Path) -> None:
        (tmp_path / "in").mkdir()
        os.link(large, tmp_path / "in" / "large.nii.gz")
        for number in range(3):
            write_ct(tmp_path / "in" / f"p{number}.nrrd", SMALL, number)
        process = start(tmp_path / "in", "--output", tmp_path / "cache", "--workers", 2)
        os.kill(reader_of(large, process.pid), signal.SIGKILL)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert set(entries_of(tmp_path / "cache")) == {"p0", "p1", "p2"}
        assert "the reader died (signal 9)" in reasons_of(tmp_path / "cache")["large.nii.gz"]
        assert leftovers(tmp_path) == []
        assert "large.nii.gz" in "".join(line for line in out.splitlines() if '"warning"' in line)
        # and it is tried again, because it may have been the memory
        assert maesil("prepare", tmp_path / "in", "--output", tmp_path / "cache", *QUIET).status == 0
        assert len(read_cache(tmp_path / "cache").entries) == 4
        assert reasons_of(tmp_path / "cache") == {}

    @pytest.mark.parametrize("how", ["signal", "stop file"])
    @pytest.mark.parametrize("workers", [1, 2])
    def test_stopped_within_two_seconds(self, tmp_path: Path, large: Path, how: str, workers: int) -> None:
        (tmp_path / "in").mkdir()
        write_ct(tmp_path / "in" / "a.nrrd", SMALL)
        for number in range(3):
            os.link(large, tmp_path / "in" / f"large{number}.nii.gz")
        stop_file = tmp_path / "stop"
        process = start(tmp_path / "in", "--output", tmp_path / "cache", "--workers", workers, "--stop-file", stop_file)
        index = tmp_path / "cache" / "index.jsonl"
        while not (index.exists() and "a.nrrd" in index.read_text()):
            assert process.poll() is None
            time.sleep(0.01)
        pids = children_of(process.pid)
        begin = time.monotonic()
        if how == "signal":
            process.terminate()
        else:
            stop_file.touch()
        out, _ = process.communicate(timeout=30)
        assert time.monotonic() - begin < 2
        assert process.returncode == 3, out
        assert '"cancelled"' in out
        wait_until_gone(pids)
        assert "a" in entries_of(tmp_path / "cache")
        assert leftovers(tmp_path) == []

    def test_killed_altogether_and_started_again(self, tmp_path: Path, large: Path) -> None:
        (tmp_path / "in").mkdir()
        for number in range(3):
            write_ct(tmp_path / "in" / f"p{number}.nrrd", SMALL, number)
        os.link(large, tmp_path / "in" / "z.nii.gz")
        cache = tmp_path / "cache"
        process = start(tmp_path / "in", "--output", cache, "--workers", 2)
        worker = reader_of(large, process.pid)
        while len((cache / "index.jsonl").read_text().splitlines()) < 4:
            time.sleep(0.01)
        process.kill()
        process.communicate()
        wait_until_gone([worker])
        # what was done is there
        assert [entry.name for entry in read_cache(cache).entries] == ["p0", "p1", "p2"]
        assert read_cache(cache).unfinished
        with open(cache / "index.jsonl", "a") as file:
            file.write('{"source": "/in/torn.nrrd", "order": 3, "ent')
        (cache / "volumes" / ".0123abcd.partial.z.npy").write_bytes(b"half")
        (cache / "volumes" / ".0123abcd.partial.another.npy").write_bytes(b"of another shard")
        before = {p: p.stat().st_mtime_ns for p in (cache / "volumes").glob("p*")}
        assert maesil("prepare", tmp_path / "in", "--output", cache, *QUIET).status == 0
        assert {p: p.stat().st_mtime_ns for p in before} == before
        assert leftovers(cache) == ["volumes/.0123abcd.partial.another.npy"]
        (cache / "volumes" / ".0123abcd.partial.another.npy").unlink()
        assert maesil("prepare", tmp_path / "in", "--output", tmp_path / "whole", *QUIET).status == 0
        assert_same(cache, tmp_path / "whole")


def test_a_full_disk(tmp_path: Path) -> None:
    from cli_factory import file_size_limit

    write_ct(tmp_path / "in" / "a.nrrd", (40, 40, 40), 1)
    with file_size_limit(50_000):
        result = maesil(
            "prepare", tmp_path / "in", "--output", tmp_path / "cache", "--progress", "json", "--workers", 2
        )
    assert "a.npy" in assert_refused_event(result, "disk_full", 4)["message"]
    assert leftovers(tmp_path) == []
