"""One command of MAESILLib as a background process: its events, its log, and its end.

``PythonSlicer`` is a launcher and the worker its child, so ending the launcher is not enough: the worker reports
its own process id, and it watches Slicer's. Slicer's event loop starves Python threads; all is signals and timers.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import qt
from slicer.i18n import tr as _

from MAESILWidgets.messages import Failure, failure_of

FINISHED, FAILED, CANCELLED = "finished", "failed", "cancelled"
TERMINATE_AFTER_MS = 700
"""A worker that has not seen the stop file by then gets SIGTERM: it is importing, or in a long step."""


def python_program() -> str:
    """Return the Python that Slicer gives to background processes.

    Raises:
        FileNotFoundError: there is none.
    """
    found = shutil.which("PythonSlicer")
    if found:
        return found
    if "python" in Path(sys.executable or "").name.lower():
        return sys.executable
    raise FileNotFoundError(_("PythonSlicer was not found: this installation of Slicer is incomplete"))


class BackgroundJob:
    """Runs ``python -m MAESILLib ARGUMENTS``.

    Args:
        arguments: command and its options, without ``--progress``, ``--stop-file`` and ``--watch-parent``.
        stop_file: its appearance asks the worker to stop; removed at the end.
        on_event: called with every event (a dictionary, see MAESILLib/runtime/events.py).
        on_log: called with every line of text.
        on_end: called once with ``finished``, ``failed`` or ``cancelled``, and a :class:`Failure` or None.
        grace_ms: how long a worker has to end by itself after :meth:`cancel`.
    """

    PROGRAM = ("-m", "MAESILLib")
    """What Python runs; the self test has a stand-in where torch is missing."""

    def __init__(
        self,
        arguments: list[str],
        stop_file: Path,
        *,
        on_event: Callable[[dict[str, Any]], None],
        on_log: Callable[[str], None],
        on_end: Callable[[str, Failure | None], None],
        grace_ms: int = 2000,
    ) -> None:
        self.arguments = self.shareable_arguments = list(arguments)
        self.stop_file = Path(stop_file)
        self.on_event, self.on_log, self.on_end = on_event, on_log, on_end
        self.grace_ms = grace_ms
        self.worker_pid = 0
        self.is_running = False
        self.is_cancelling = False
        self.last_lines: list[str] = []
        self._error: dict[str, Any] | None = None
        self._is_done = False
        self._out, self._err = b"", b""
        self._process: Any = None

    def start(self) -> None:
        """Start the process.

        Raises:
            FileNotFoundError: PythonSlicer is missing.
        """
        import MAESILLib

        program = python_program()
        options = ["--progress", "json", "--stop-file", str(self.stop_file), "--watch-parent", str(os.getpid())]
        arguments = ["-u", *self.PROGRAM, *self.arguments, *options]
        environment = qt.QProcessEnvironment.systemEnvironment()
        inherited = environment.value("PYTHONPATH", "")
        paths = [str(Path(MAESILLib.__file__).parents[1]), *([inherited] if inherited else [])]
        environment.insert("PYTHONPATH", os.pathsep.join(paths))
        environment.insert("PYTHONUTF8", "1")
        environment.insert("PYTHONUNBUFFERED", "1")
        self.stop_file.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            self.stop_file.unlink()
        process = qt.QProcess()
        process.setProcessEnvironment(environment)
        process.connect("readyReadStandardOutput()", self._read_out)
        process.connect("readyReadStandardError()", self._read_err)
        process.connect("finished(int,QProcess::ExitStatus)", self._on_finished)
        process.connect("errorOccurred(QProcess::ProcessError)", self._on_process_error)
        # without this reference the process would be ended at once
        self._process = process
        self.is_running = True
        process.start(program, arguments)

    def cancel(self) -> None:
        """Ask the worker to stop; end it when it does not."""
        if not self.is_running or self.is_cancelling:
            return
        self.is_cancelling = True
        # where the disk is full or gone, the signals do without
        with suppress(OSError):
            self.stop_file.touch()
        qt.QTimer.singleShot(TERMINATE_AFTER_MS, self._terminate)
        qt.QTimer.singleShot(self.grace_ms, self.kill)

    def kill(self) -> None:
        """End worker and launcher at once."""
        if not self.is_running:
            return
        self.is_cancelling = True
        self._signal(getattr(signal, "SIGKILL", signal.SIGTERM))
        self._process.kill()

    def abandon(self) -> None:
        """Slicer is closing: ask the worker to end and let go of it; what it had to save it saves.

        The worker watches this process too, so it ends in any case; a stop file would stay behind.
        """
        if not self.is_running:
            return
        self.is_cancelling = True
        self._terminate()
        # no slot reads from a process that goes with Slicer
        self.is_running = False
        self.on_event = self.on_log = self.on_end = lambda *_: None

    def end_now(self, milliseconds: int) -> None:
        """End worker and launcher without a word, and wait for that without an event loop."""
        if self.is_running:
            self.on_end = lambda *_: None
            self.kill()
            self._process.waitForFinished(milliseconds)

    def _terminate(self) -> None:
        # on Windows SIGTERM ends a process at once, so there only the stop file asks
        if os.name != "nt" and self.is_running:
            self._signal(signal.SIGTERM)

    def _signal(self, number: int) -> None:
        if self.worker_pid:
            with suppress(OSError):
                os.kill(self.worker_pid, number)

    def _read_out(self) -> None:
        self._out = self._take_lines(self._out + self._process.readAllStandardOutput().data(), self._on_out_line)

    def _read_err(self) -> None:
        self._err = self._take_lines(self._err + self._process.readAllStandardError().data(), self._log)

    @staticmethod
    def _take_lines(data: bytes, action: Callable[[str], None]) -> bytes:
        """Call ``action`` for every whole line; return what is left."""
        *lines, rest = data.split(b"\n")
        for line in lines:
            action(line.decode("utf-8", "replace").rstrip("\r"))
        return rest

    def _on_out_line(self, line: str) -> None:
        from MAESILLib.runtime.events import parse_event

        event = parse_event(line)
        if event is None:
            if line.strip():
                self._log(line)
            return
        kind = event["event"]
        if kind == "started":
            self.worker_pid = int(event["pid"])
            if self.is_cancelling:
                self._terminate()
        elif kind == "error":
            self._error = event
        elif kind == "done":
            self._is_done = True
        self.on_event(event)

    def _log(self, line: str) -> None:
        if line:
            self.last_lines = [*self.last_lines[-30:], line]
            self.on_log(line)

    def _on_process_error(self, error: Any) -> None:
        # a program that cannot be started never says finished
        if int(error) == int(qt.QProcess.FailedToStart) and self.is_running:
            message = _("{program} could not be started").format(program=python_program())
            self._end(FAILED, Failure(message, _("install Slicer again")))

    def _on_finished(self, exit_code: int, exit_status: Any) -> None:
        if not self.is_running:
            return
        self._read_out()
        self._read_err()
        # a last line without its end
        self._take_lines(self._out + b"\n", self._on_out_line)
        self._take_lines(self._err + b"\n", self._log)
        crashed = int(exit_status) == int(qt.QProcess.CrashExit)
        if self.is_cancelling:
            self._end(CANCELLED, None)
        elif exit_code == 0 and not crashed and self._is_done:
            self._end(FINISHED, None)
        else:
            self._end(FAILED, failure_of(exit_code, self._error, self.last_lines))

    def _end(self, state: str, failure: Failure | None) -> None:
        self.is_running = False
        if state == CANCELLED:
            # the launcher may have gone before its child
            self._signal(getattr(signal, "SIGKILL", signal.SIGTERM))
        with suppress(OSError):
            self.stop_file.unlink()
        # a signal keeps what it is connected to alive, and with it this job and the panel behind it
        self._process.deleteLater()
        self._process = None
        self.on_end(state, failure)


def ask(
    arguments: list[str], on_event: Callable[[dict[str, Any]], None], on_end: Callable[..., None] = lambda *_: None
) -> BackgroundJob:
    """Start a short command that answers by its events, and return its job.

    Raises:
        FileNotFoundError: PythonSlicer is missing.
    """
    stop_file = Path(tempfile.gettempdir()) / f"maesil-{arguments[0]}-{id(on_event)}-{os.getpid()}.stop"
    job = BackgroundJob(arguments, stop_file, on_event=on_event, on_log=lambda _: None, on_end=on_end)
    job.start()
    return job
