"""How a command ends that does not finish: stopped, out of memory or disk, or by a bug."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from cli_factory import (
    JSON,
    QUIET,
    REPOSITORY,
    Result,
    assert_refused,
    assert_refused_event,
    file_size_limit,
    leftovers,
    maesil,
    maesil_process,
    reconstruct,
    run_process,
    write_ct,
)

from MAESILLib.events import Reporter, parse_event
from MAESILLib.stopping import StopRequest


def read_size(path: Path) -> int:

    return sitk.ReadImage(str(path)).GetNumberOfPixels() * 2


class TestResources:
    """Status 4: memory and disk."""

    @pytest.mark.parametrize("suffix", ["nrrd", "nii.gz"])
    def test_a_write_fails(self, tmp_path: Path, scan: Path, checkpoint: Path, suffix: str) -> None:
        limit = 20_000
        assert read_size(scan) > limit
        result = run_process(
            *("reconstruct", scan, "--output", tmp_path / "new" / "out", "--checkpoint", checkpoint, "--no-figure"),
            *(*JSON, "--format", suffix, "--threads", "1"),
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        )
        error = assert_refused_event(result, "disk_full", 4)
        assert f"{tmp_path / 'new' / 'out'}" in error["message"]
        assert ".partial" not in error["message"]
        assert not result.named("artifact")
        assert not (tmp_path / "new").exists()

    def test_a_write_fails_over_older_results(self, tmp_path: Path, scan: Path, checkpoint: Path) -> None:
        assert reconstruct(scan, tmp_path, checkpoint).status == 0
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        with file_size_limit(20_000):
            result = reconstruct(scan, tmp_path, checkpoint, "--seed", "1")
        assert_refused(result, status=4)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before

    def test_memory(self, tmp_path: Path, scan: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def too_large(*_: object, **__: object) -> None:
            np.empty(1 << 60, np.uint8)

        for name in ("load_checkpoint", "ModelGrid.to_model", "reconstruct", "measure"):
            with monkeypatch.context() as patch:
                patch.setattr(f"MAESILLib.results.{name}", too_large)
                assert_refused(reconstruct(scan, tmp_path / "out", checkpoint), "too little memory", status=4)
                result = maesil("reconstruct", scan, "--output", tmp_path / "out", "--checkpoint", checkpoint, *JSON)
                assert_refused_event(result, "out_of_memory", 4)
        with monkeypatch.context() as patch:
            patch.setattr("MAESILLib.reading.read_volume", too_large)
            assert_refused(reconstruct(scan, tmp_path / "out", checkpoint), "too little memory", status=4)
        assert list(tmp_path.iterdir()) == []

    def test_memory_of_torch(
        self, tmp_path: Path, scan: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def too_large(*_: object, **__: object) -> None:
            torch.empty(1 << 60, dtype=torch.uint8)

        for name in ("load_checkpoint", "reconstruct"):
            with monkeypatch.context() as patch:
                patch.setattr(f"MAESILLib.results.{name}", too_large)
                assert_refused(reconstruct(scan, tmp_path / "out", checkpoint), "too little memory", status=4)
        assert list(tmp_path.iterdir()) == []

    def test_a_bug_keeps_its_traceback(
        self, tmp_path: Path, scan: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*_: object, **__: object) -> None:
            raise ZeroDivisionError("a bug")

        monkeypatch.setattr("MAESILLib.results.measure", broken)
        with pytest.raises(ZeroDivisionError, match="a bug"):
            reconstruct(scan, tmp_path / "out", checkpoint)
        assert list(tmp_path.iterdir()) == []

    def test_a_bug_is_status_1(self) -> None:
        code = (
            "import sys, MAESILLib.commands.info as info\nfrom MAESILLib.cli import main\n"
            "def run(*_): raise ZeroDivisionError('a bug')\ninfo.run = run\nsys.exit(main(['info', 'x']))"
        )
        done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
        assert done.returncode == 1
        assert "Traceback" in done.stderr
        assert "ZeroDivisionError: a bug" in done.stderr


@pytest.fixture
def slow_run(tmp_path: Path, checkpoint: Path) -> Iterator[list[object]]:
    """Arguments of a reconstruction that takes many seconds."""
    path = write_ct(tmp_path / "large.nrrd", (128, 128, 128))
    yield [
        *("reconstruct", path, "--output", tmp_path / "new" / "out", "--checkpoint", checkpoint, "--no-figure", *JSON),
        *("--coverage", "complete", "--plane-ratio", "0", "--axis-ratio", "0.06", "--threads", "1"),
    ]
    assert leftovers(tmp_path) == []
    assert not (tmp_path / "new").exists()


def wait_for_stage(process: subprocess.Popen[str], stage: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        event = parse_event(line)
        assert event is not None
        assert event["event"] != "done", "the run was too fast for this test"
        if event["event"] == "progress" and event["stage"] == stage:
            return
    raise AssertionError(f"{stage} was never reached: {process.stderr.read() if process.stderr else ''}")


class TestStopping:
    @pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "stop file"])
    def test_reconstruct_is_stopped(self, how: str, slow_run: list[object], tmp_path: Path) -> None:
        process = maesil_process(*slow_run, "--stop-file", tmp_path / "stop")
        wait_for_stage(process, "reconstruct")
        assert (tmp_path / "new" / "out").is_dir(), "it does not write where the test looks"
        begin = time.monotonic()
        if how == "stop file":
            (tmp_path / "stop").touch()
        else:
            process.send_signal(signal.Signals[how])
        out, err = process.communicate(timeout=30)
        assert time.monotonic() - begin < 5
        error = assert_refused_event(Result(process.returncode, out, err), "cancelled", 3)
        assert ("stop file" if how == "stop file" else how) in error["message"]
        assert len(err.splitlines()) == 1

    def test_the_parent_dies(self, slow_run: list[object]) -> None:
        """The parent is a shell that is killed; whoever holds the pipe sees it closed when the child has gone."""
        command = [sys.executable, "-m", "MAESILLib", *map(str, slow_run), "--watch-parent"]
        code = "import subprocess, sys; subprocess.Popen(sys.argv[1:]).wait()"
        parent = subprocess.Popen(
            [sys.executable, "-c", code, *command],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_for_stage(parent, "reconstruct")
        parent.kill()
        begin = time.monotonic()
        out, _ = parent.communicate(timeout=30)
        assert time.monotonic() - begin < 5
        last = parse_event(out.splitlines()[-1])
        assert last is not None
        assert (last["event"], last["kind"]) == ("error", "cancelled")
        assert "parent" in last["message"]

    def test_a_stop_file_that_is_there_already(self, tmp_path: Path, scan: Path, checkpoint: Path) -> None:
        (tmp_path / "stop").touch()
        result = reconstruct(scan, tmp_path / "out", checkpoint, "--stop-file", tmp_path / "stop")
        assert_refused(result, "stop file", status=3)
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("stage", ["measure", "write"])
    def test_stopped_late(
        self, tmp_path: Path, scan: Path, checkpoint: Path, stage: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def progress(self: Reporter, name: str, fraction: float, note: str = "") -> None:
            if name == stage:
                (tmp_path / "stop").touch()

        monkeypatch.setattr(Reporter, "progress", progress)
        result = reconstruct(scan, tmp_path / "out", checkpoint, "--stop-file", tmp_path / "stop")
        assert_refused(result, "stop file", status=3)
        assert not (tmp_path / "out").exists()

    def test_measuring_is_stopped(
        self, tmp_path: Path, scan: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It takes many seconds on a large volume, most of all the harmonic fill of each pass."""

        filled = []

        def fill(unit: np.ndarray, hidden: np.ndarray) -> np.ndarray:
            filled.append(1)
            (tmp_path / "stop").touch()
            return unit

        monkeypatch.setattr("MAESILLib.scoring.fill_harmonic", fill)
        options = ("--coverage", "complete", "--plane-ratio", "0.2", "--axis-ratio", "0")
        result = reconstruct(scan, tmp_path / "out", checkpoint, *options, "--stop-file", tmp_path / "stop")
        assert_refused(result, "stop file", status=3)
        assert len(filled) <= 2, "it went on after the pair of fills that was under way"
        assert not (tmp_path / "out").exists()

    def test_a_stopped_run_leaves_older_results(self, tmp_path: Path, scan: Path, checkpoint: Path) -> None:
        assert reconstruct(scan, tmp_path / "out", checkpoint).status == 0
        before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
        (tmp_path / "stop").touch()
        assert reconstruct(scan, tmp_path / "out", checkpoint, "--stop-file", tmp_path / "stop").status == 3
        assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before

    def test_other_commands_are_stopped(self, tmp_path: Path, scan: Path, checkpoint: Path) -> None:
        (tmp_path / "stop").touch()
        stop = ("--stop-file", tmp_path / "stop", *QUIET)
        assert_refused(maesil("prepare", scan, "--output", tmp_path / "a", *stop), "stop file", status=3)
        assert maesil("prepare", scan, "--output", tmp_path / "cache", *QUIET).status == 0
        arguments = ("--data", tmp_path / "cache", "--output", tmp_path / "b", "--checkpoint", checkpoint)
        result = maesil("evaluate", *arguments, "--split", "all", *stop)
        assert_refused(result, "stop file", status=3)
        assert not (tmp_path / "b").exists()

    def test_request(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert not StopRequest().requested()
        request = StopRequest(tmp_path / "stop", watch_parent=0)
        assert not request.requested()
        monkeypatch.setattr(os, "getppid", lambda: 1)
        assert request.requested()
