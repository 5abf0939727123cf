"""Whether the process above this one still runs; test_stopping.py of the contract ends some."""

import os
import time

import psutil
import pytest
from cli_factory import assert_refused, maesil

from MAESILLib import cli
from MAESILLib.runtime import stopping
from MAESILLib.runtime.stopping import ParentWatch, StopRequest


def test_a_parent_that_lives() -> None:
    for pid in (0, os.getppid()):
        request = StopRequest(watch_parent=pid)
        assert not request.requested()
        time.sleep(stopping.INTERVAL_S)
        assert not request.requested()
    assert StopRequest(watch_parent=os.getpid()).requested(), "it is not above itself"


def test_a_process_that_may_not_be_looked_at_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = ParentWatch()

    def refuse(process: psutil.Process) -> str:
        raise psutil.AccessDenied(process.pid)

    monkeypatch.setattr(psutil.Process, "status", refuse)
    assert not watch.has_ended()


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
