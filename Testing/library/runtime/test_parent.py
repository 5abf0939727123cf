"""Whether the process above this one still runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from cli_factory import REPOSITORY, assert_refused, maesil

from MAESILLib import cli
from MAESILLib.runtime import stopping
from MAESILLib.runtime.stopping import ParentWatch, StopRequest

WORKER = """
import sys, time
from MAESILLib.runtime.stopping import StopRequest
request = StopRequest(None, int(sys.argv[-1]))
print("here", flush=True)
end = time.monotonic() + 20
while not request.requested() and time.monotonic() < end:
    time.sleep(0.01)
print(time.monotonic(), request.reason, flush=True)
"""
LAUNCHER = """
import subprocess, sys
worker = subprocess.Popen([sys.executable, "-c", *sys.argv[1:]])
worker.wait()
"""
PANEL = """
import os, subprocess, sys
launcher = subprocess.Popen([sys.executable, "-c", *sys.argv[1:], str(os.getpid())])
print(launcher.pid, flush=True)
launcher.wait()
"""


@pytest.mark.parametrize("killed", ["panel", "launcher"])
def test_a_panel_its_launcher_and_the_worker(killed: str) -> None:
    """The killed panel is not waited for, so its number stays taken."""
    panel = subprocess.Popen(
        [sys.executable, "-c", PANEL, LAUNCHER, WORKER], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    assert panel.stdout is not None
    launcher = int(panel.stdout.readline())
    assert panel.stdout.readline() == "here\n"
    time.sleep(0.5)
    begin = time.monotonic()
    os.kill(panel.pid if killed == "panel" else launcher, signal.SIGKILL)
    seen, _, reason = panel.stdout.readline().partition(" ")
    assert reason == "the parent process ended\n"
    assert begin < float(seen) < begin + 2
    if killed == "panel":
        assert psutil.Process(panel.pid).status() == psutil.STATUS_ZOMBIE
    panel.stdout.close()
    panel.wait()


def test_a_parent_that_lives() -> None:
    for pid in (0, os.getppid()):
        request = StopRequest(watch_parent=pid)
        assert not request.requested()
        time.sleep(stopping.INTERVAL_S)
        assert not request.requested()


def test_one_that_is_not_above() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        for pid in (gone.pid, child.pid, os.getpid()):
            request = StopRequest(watch_parent=pid)
            assert request.requested()
            assert request.reason == "the parent process ended"


def test_asking_costs_little(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def runs(process: psutil.Process) -> bool:
        asked.append(process.pid)
        return len(asked) < 4

    seconds = iter(range(10**6))
    monkeypatch.setattr(stopping, "_runs", runs)
    watch = ParentWatch()
    monkeypatch.setattr(stopping.time, "monotonic", lambda: next(seconds) / 1024)
    answers = [watch.has_ended() for _ in range(700)]
    # five times a second
    assert asked == [os.getppid()] * 4
    assert answers.index(True) == 615
    assert all(answers[615:])


class TestArgument:
    @pytest.mark.parametrize(
        ("given", "expected"),
        [((), None), (("--watch-parent",), 0), (("--watch-parent", "12"), 12), (("--watch-parent=12",), 12)],
    )
    def test_values(self, given: tuple[str, ...], expected: int | None) -> None:
        assert cli.build_parser().parse_args(["info", "file", *given]).watch_parent == expected

    @pytest.mark.parametrize("given", ["0", "-3", "1.5", "99999999999999999999", "scan.nrrd", "\N{SUPERSCRIPT TWO}"])
    def test_what_is_none(self, given: str) -> None:
        result = maesil("info", "file", f"--watch-parent={given}", "--progress", "off")
        assert_refused(result, "invalid process id", given)

    def test_a_bare_option_before_the_input(self) -> None:
        result = maesil("info", "--watch-parent", "scan.nrrd", "--progress", "off")
        assert_refused(result, "invalid process id 'scan.nrrd'")
