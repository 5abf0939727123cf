"""Stopping: by a signal, a stop file or the parent's death, at any moment, soon, and with nothing left behind."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from cli_factory import (
    JSON,
    PYTHON,
    QUIET,
    REPOSITORY,
    Result,
    assert_refused,
    assert_refused_event,
    leftovers,
    maesil,
    maesil_process,
    reconstruct,
    reconstruction,
    write_ct,
)
from training_factory import StopAfter
from volume_factory import trunk, unit_of

from MAESILLib.ct.reading import read_volume
from MAESILLib.mae.checkpoint import load_checkpoint
from MAESILLib.mae.harmonic import harmonic_fill
from MAESILLib.mae.masking import MaskSpec
from MAESILLib.metrics.image import ssim_map
from MAESILLib.reconstruct.plan import Plan
from MAESILLib.reconstruct.reconstruction import reconstruct as reconstruct_array
from MAESILLib.reconstruct.results import Outputs, load_model, reconstruct_volume
from MAESILLib.runtime.errors import CancelledError
from MAESILLib.runtime.events import Reporter, parse_event
from MAESILLib.runtime.stopping import StopRequest


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ct(tmp_path_factory.mktemp("large") / "large.nrrd", (128, 128, 128))


@pytest.fixture
def long_run(tmp_path: Path, large: Path, checkpoint: Path) -> Iterator[list[object]]:
    """Arguments of a reconstruction that takes many seconds; whatever ends it, nothing may be left."""
    options = ("--plane-ratio", "0", "--axis-ratio", "0.06", "--threads", "1")
    yield [*reconstruction(large, tmp_path / "new" / "out", checkpoint, *JSON, *options)]
    assert leftovers(tmp_path) == []
    assert not (tmp_path / "new").exists()


def wait_for(process: subprocess.Popen[str], stage: str) -> int:
    """Read events until a stage is reached (``started`` is the first event); return the reporting process's id."""
    pid = 0
    for line in process.stdout:
        event = parse_event(line)
        assert event is not None, line
        assert event["event"] != "done", "the run was too fast for this test"
        pid = event.get("pid", pid)
        if stage in (event["event"], event.get("stage")):
            return pid
    raise AssertionError(f"{stage} was never reached: {process.stderr.read() if process.stderr else ''}")


def check_cancelled(out: str, *words: str) -> None:
    """The last event says so."""
    last = parse_event(out.splitlines()[-1])
    assert (last["event"], last["kind"]) == ("error", "cancelled")
    for word in words:
        assert word in last["message"]


SOON_S = 10
"""Three seconds on an idle machine; tests share theirs."""


class TestProcess:
    """As a process of its own: soon, with status 3."""

    @pytest.mark.parametrize(
        ("how", "stage"),
        [
            *(("SIGTERM", stage) for stage in ("started", "read", "reconstruct", "measure", "write")),
            *(("SIGINT", stage) for stage in ("started", "reconstruct")),
            *(("stop file", stage) for stage in ("started", "reconstruct", "measure")),
        ],
    )
    def test_reconstruct_is_stopped(
        self, how: str, stage: str, long_run: list[object], tmp_path: Path, warm_python: list[str]
    ) -> None:
        # with every token's own pass the network works for long; with one mask the later stages come soon
        coverage = "single" if stage in ("measure", "write") else "complete"
        # what comes before the first stage is importing
        start = PYTHON if stage == "started" else warm_python
        process = maesil_process(*long_run, "--coverage", coverage, "--stop-file", tmp_path / "stop", start=start)
        pid = wait_for(process, stage)
        if stage in ("reconstruct", "measure", "write"):
            assert (tmp_path / "new" / "out").is_dir(), "it does not write where the test looks"
        if how == "stop file":
            (tmp_path / "stop").touch()
        else:
            os.kill(pid, signal.Signals[how])
        out, err = process.communicate(timeout=SOON_S)
        error = assert_refused_event(Result(process.returncode, out, err), "cancelled", 3)
        assert (f"stop file {tmp_path}" if how == "stop file" else how) in error["message"]
        assert len(err.splitlines()) == 1

    def test_sigterm_before_it_listens(self, long_run: list[object]) -> None:
        process = maesil_process(*long_run)
        time.sleep(0.01)
        process.terminate()
        process.communicate(timeout=30)
        assert process.returncode in (-signal.SIGTERM, 3)

    @pytest.mark.parametrize(
        ("who", "stage"),
        [("parent", "started"), ("panel", "started"), *((w, "reconstruct") for w in ("parent", "panel", "launcher"))],
    )
    def test_the_parent_dies(self, who: str, stage: str, long_run: list[object]) -> None:
        """Whoever holds the pipe sees it closed when the child has gone."""
        child = [sys.executable, "-m", "MAESILLib", *map(str, long_run), "--coverage", "complete", "--watch-parent"]
        above = "import subprocess, sys; subprocess.Popen(sys.argv[1:]).wait()"
        panel = (
            "import os, subprocess, sys\n"
            "subprocess.Popen([sys.executable, '-c', *sys.argv[1:], str(os.getpid())]).wait()"
        )
        code = [above, *child] if who == "parent" else [panel, above, *child]
        top = subprocess.Popen(
            [sys.executable, "-c", *code], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        pid = wait_for(top, stage)
        if who == "launcher":
            psutil.Process(psutil.Process(pid).ppid()).kill()
        else:
            top.kill()
        out, _ = top.communicate(timeout=SOON_S)
        check_cancelled(out, "parent")

    def test_the_parent_died_before(self, long_run: list[object]) -> None:
        """Its number alone is known, and nobody has it, or somebody else."""
        gone = subprocess.Popen([sys.executable, "-c", ""])
        gone.wait()
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
            for pid in (gone.pid, other.pid):
                process = maesil_process(*long_run, f"--watch-parent={pid}")
                out, _ = process.communicate(timeout=30)
                assert process.returncode == 3
                check_cancelled(out, "parent")
                assert len(out.splitlines()) == 2


class TestChecks:
    def test_whenever_it_is_stopped_nothing_is_left(
        self, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, checkpoint: Path
    ) -> None:
        small = write_ct(tmp_path_factory.mktemp("small") / "scan.nrrd", (28, 32, 36))
        volume, plan = read_volume(small), Plan(MaskSpec("uniform", 0.12, 0.0), "complete")

        model = load_model(checkpoint, torch.device("cpu"))

        def run(stop: StopRequest) -> None:
            outputs = Outputs(tmp_path / "new" / "out", "nii.gz")
            reconstruct_volume(volume, model, plan, outputs, Reporter(), stop, time.monotonic())

        whole = StopAfter(np.inf)
        run(whole)
        shutil.rmtree(tmp_path / "new")
        assert whole.checks > 100
        for count in np.linspace(0, whole.checks - 1, 15).astype(int):
            stop = StopAfter(count)
            with pytest.raises(CancelledError):
                run(stop)
            assert list(tmp_path.iterdir()) == [], f"after check {count} of {whole.checks}"

    @pytest.mark.parametrize("work", ["harmonic fill", "SSIM", "reconstruction"])
    def test_long_steps_check_by_themselves(self, checkpoint: Path, work: str) -> None:
        image = unit_of(trunk((40, 40, 48)))
        hidden = np.zeros(image.shape, bool)
        hidden[8:24, 8:24] = True
        tensor, known = (torch.from_numpy(array)[None, None] for array in (image, ~hidden))
        stop = StopAfter(2)
        model, _ = load_checkpoint(checkpoint)
        start = {
            "harmonic fill": lambda: harmonic_fill(tensor, known, stop=stop),
            "SSIM": lambda: ssim_map(image.repeat(2, 0), image.repeat(2, 0), stop),
            "reconstruction": lambda: reconstruct_array(model, image, Plan(), name="x", stop=stop),
        }[work]
        with pytest.raises(CancelledError):
            start()
        assert stop.checks == 3

    def test_before_the_first_check_the_end_does_not_wait(self, tmp_path: Path) -> None:
        request, ended = StopRequest(tmp_path / "stop"), threading.Event()
        reasons = []

        def end(reason: str) -> None:
            reasons.append(reason)
            ended.set()

        with request.until_first_check(end):
            time.sleep(0.3)
            assert not reasons
            (tmp_path / "stop").touch()
            assert ended.wait(3)
        assert reasons == [f"stop file {tmp_path / 'stop'}"]

    @pytest.mark.parametrize("checked", [True, False])
    def test_after_the_first_check_or_the_work_it_does(self, tmp_path: Path, checked: bool) -> None:
        request, reasons = StopRequest(tmp_path / "stop"), []
        with request.until_first_check(reasons.append):
            if checked:
                assert not request.requested()
                (tmp_path / "stop").touch()
                time.sleep(0.5)
        (tmp_path / "stop").touch()
        time.sleep(0.5)
        assert reasons == []
        assert request.requested()


class TestStopping:
    def test_a_stop_file_that_is_there_already(self, tmp_path: Path, scan: Path, checkpoint: Path) -> None:
        reconstruct(scan, tmp_path / "out", checkpoint).checked()
        before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
        maesil("prepare", scan, "--output", tmp_path / "cache", *QUIET).checked()
        (tmp_path / "stop").touch()
        stop = ("--stop-file", tmp_path / "stop")
        evaluate = ("evaluate", "--data", tmp_path / "cache", "--checkpoint", checkpoint, "--split", "all", *QUIET)
        for result in (
            reconstruct(scan, tmp_path / "out", checkpoint, *stop),
            reconstruct(scan, tmp_path / "new", checkpoint, *stop),
            maesil("prepare", scan, "--output", tmp_path / "new", *QUIET, *stop),
            maesil(*evaluate, "--output", tmp_path / "new", *stop),
        ):
            assert_refused(result, "stop file", status=3)
        assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
        assert not (tmp_path / "new").exists()

    def test_the_fills_of_a_cover_are_stopped(
        self, tmp_path: Path, scan: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """They take many seconds on a large volume, one for each pass."""
        filled = []

        def fill(image: torch.Tensor, known: torch.Tensor, stop: StopRequest) -> torch.Tensor:
            filled.append(1)
            (tmp_path / "stop").touch()
            return image

        monkeypatch.setattr("MAESILLib.reconstruct.reconstruction.harmonic_fill", fill)
        options = ("--coverage", "complete", "--plane-ratio", "0.2", "--axis-ratio", "0")
        result = reconstruct(scan, tmp_path / "out", checkpoint, *options, "--stop-file", tmp_path / "stop")
        assert_refused(result, "stop file", status=3)
        assert len(filled) == 1, "it went on after the fill that was under way"
        assert not (tmp_path / "out").exists()
