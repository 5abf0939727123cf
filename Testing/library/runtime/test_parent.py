"""Whether the process above this one still runs, as Linux, systems without /proc, and Windows say it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_factory import REPOSITORY, assert_refused, maesil

from MAESILLib import cli
from MAESILLib.runtime import parent
from MAESILLib.runtime.parent import ParentWatch, WindowsProcess, is_above
from MAESILLib.runtime.stopping import StopRequest

needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc here")


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process that lives, below this one."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process


@pytest.fixture
def gone() -> int:
    """The number of a process that ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


class TestAbove:
    def test_those_above_are_and_others_are_not(self, child: subprocess.Popen[bytes], gone: int) -> None:
        assert is_above(os.getppid())
        assert not is_above(gone)
        if parent.state_and_parent(os.getpid()):
            assert not is_above(child.pid)
            assert not is_above(os.getpid())

    @needs_proc
    def test_further_up(self) -> None:
        code = "import sys; from MAESILLib.runtime.parent import is_above; sys.exit(not is_above(int(sys.argv[1])))"
        between = "import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', *sys.argv[1:]]).returncode)"
        command = [sys.executable, "-c", between, code, str(os.getpid())]
        assert subprocess.run(command, cwd=REPOSITORY).returncode == 0

    @needs_proc
    def test_one_that_was_killed_but_is_still_listed(
        self, child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = parent.state_and_parent
        # who is above is not told, so the number counts, but for this
        monkeypatch.setattr(parent, "state_and_parent", lambda pid: real(pid) if pid == child.pid else None)
        assert is_above(child.pid)
        child.kill()
        end = time.monotonic() + 10
        while real(child.pid) != ("Z", os.getpid()):
            assert time.monotonic() < end
            time.sleep(0.01)
        os.kill(child.pid, 0)
        assert not is_above(child.pid)

    @needs_proc
    def test_any_name_is_read(self, tmp_path: Path) -> None:
        sleep = shutil.which("sleep")
        assert sleep is not None
        program = Path(shutil.copy(sleep, tmp_path / "a) Z 1 (b"))
        process = subprocess.Popen([program, "20"])
        try:
            found = parent.state_and_parent(process.pid)
            assert found is not None
            assert found[0] in "SRD"
            assert found[1] == os.getpid()
        finally:
            process.kill()
            process.wait()

    def test_without_proc_the_number_counts(
        self, child: subprocess.Popen[bytes], gone: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(parent, "state_and_parent", lambda pid: None)
        assert is_above(child.pid)
        assert not is_above(gone)

    def test_a_process_of_another_user_is_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(pid: int, number: int) -> None:
            raise PermissionError

        monkeypatch.setattr(os, "kill", refuse)
        assert is_above(os.getppid())


WORKER = """
import sys, time
from MAESILLib.runtime.stopping import StopRequest
request = StopRequest(None, int(sys.argv[-1]))
print("here", flush=True)
end = time.monotonic() + 20
while not request.requested() and time.monotonic() < end:
    time.sleep(0.01)
print(request.reason, flush=True)
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


class TestWatch:
    @pytest.mark.parametrize("killed", ["panel", "launcher"])
    def test_a_panel_its_launcher_and_the_worker(self, killed: str) -> None:
        """The killed panel is not waited for, so its number stays taken."""
        panel = subprocess.Popen(
            [sys.executable, "-c", PANEL, LAUNCHER, WORKER], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
        )
        assert panel.stdout is not None
        launcher = int(panel.stdout.readline())
        assert panel.stdout.readline() == "here\n"
        time.sleep(0.5)
        os.kill(panel.pid if killed == "panel" else launcher, signal.SIGKILL)
        begin = time.monotonic()
        assert panel.stdout.readline() == "the parent process ended\n"
        assert time.monotonic() - begin < 2
        panel.stdout.close()
        panel.wait()

    def test_a_parent_that_lives(self) -> None:
        for pid in (0, os.getppid()):
            request = StopRequest(watch_parent=pid)
            assert not request.requested()
            time.sleep(parent.INTERVAL_S)
            assert not request.requested()

    @needs_proc
    def test_one_that_is_not_above(self, gone: int, child: subprocess.Popen[bytes]) -> None:
        for pid in (gone, child.pid):
            request = StopRequest(watch_parent=pid)
            assert request.requested()
            assert request.reason == "the parent process ended"

    def test_handed_to_another(self, monkeypatch: pytest.MonkeyPatch) -> None:
        request = StopRequest(watch_parent=0)
        assert not request.requested()
        monkeypatch.setattr(os, "getppid", lambda: 1)
        assert request.requested()

    def test_asking_costs_little(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[int] = []

        def above(pid: int) -> bool:
            asked.append(pid)
            return len(asked) < 4

        seconds = iter(range(10**6))
        monkeypatch.setattr(parent, "is_above", above)
        monkeypatch.setattr(parent.time, "monotonic", lambda: next(seconds) / 1024)
        watch = ParentWatch()
        answers = [watch.has_ended() for _ in range(700)]
        # five times a second
        assert asked == [os.getppid()] * 4
        assert answers.index(True) == 615
        assert all(answers[615:])


class Kernel32:
    """What Windows answers, for a process that ends when told."""

    def __init__(self, handle: int | None, error: int = 0) -> None:
        self.ended = False
        self.opened: list[tuple[int, int, int]] = []

        def open_process(access: int, inherited: int, pid: int) -> int | None:
            self.opened.append((access, inherited, pid))
            return handle

        def wait(given: int, milliseconds: int) -> int:
            assert (given, milliseconds) == (handle, 0)
            return 0 if self.ended else parent.WAIT_TIMEOUT

        self.OpenProcess: Callable[..., Any] = open_process
        self.WaitForSingleObject: Callable[..., Any] = wait


class TestWindows:
    def test_a_process_is_held_and_asked(self) -> None:
        kernel32 = Kernel32(77)
        process = WindowsProcess(4321, kernel32)
        assert kernel32.opened == [(0x00100000, 0, 4321)]
        assert process.runs()
        kernel32.ended = True
        assert not process.runs()
        assert len(kernel32.opened) == 1

    @pytest.mark.parametrize(("error", "runs"), [(87, False), (5, True)])
    def test_none_or_one_that_may_not_be_watched(self, error: int, runs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(parent, "_last_error", lambda: error)
        assert WindowsProcess(4321, Kernel32(None)).runs() == runs


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
