"""Cancellation by signal, stop file, parent exit or time limit."""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from MAESILLib.runtime.errors import CancelledError

INTERVAL_S = 0.2
"""The system is asked about other processes this often at most."""


class StopRequest:
    """Remembers that a stop was asked for; what takes one checks it where it can end cleanly: by CancelledError.

    Args:
        stop_file: asking is creating this file.
        watch_parent: the end of this process is a request too: its id, or 0 for the direct parent. It has to be
            the parent or further up (a panel that started a launcher). None watches none.
    """

    def __init__(self, stop_file: Path | str | None = None, watch_parent: int | None = None) -> None:
        self.stop_file = None if stop_file is None else Path(stop_file)
        self.parent = None if watch_parent is None else ParentWatch(watch_parent)
        self.reason = ""
        self._deadline: tuple[float, str] | None = None
        self._end: Callable[[str], None] | None = None
        self._is_starting, self._lock = False, threading.Lock()

    def install(self) -> None:
        """Let SIGTERM and SIGINT ask for a stop; a second SIGINT ends the process at once."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._on_signal)
            signal.signal(signal.SIGINT, self._on_signal)

    @contextmanager
    def until_first_check(self, end: Callable[[str], None] | None = None) -> Iterator[None]:
        """Call ``end`` with the reason as soon as a stop is asked for, until the work in the block first checks.

        Importing torch takes seconds on a cold disk or a busy machine, reading a large file too, and nothing can check
        meanwhile. Nothing has to be undone, so ``end`` may end the process; it is called in a thread of its own.

        Args:
            end: that of an earlier block if None; without any, the block is left alone.
        """
        self._end = end or self._end
        if self._end is None:
            yield
            return
        self._is_starting = True
        threading.Thread(target=self._watch, args=(self._end,), daemon=True).start()
        try:
            yield
        finally:
            with self._lock:
                self._is_starting = False

    def _watch(self, end: Callable[[str], None]) -> None:
        while self._is_starting:
            with self._lock:
                if self._is_starting and self._ask():
                    end(self.reason)
                    return
            time.sleep(INTERVAL_S)

    def requested(self) -> bool:
        # waits where the end has begun already
        with self._lock:
            self._is_starting = False
        return self._ask()

    def _ask(self) -> bool:
        if not self.reason:
            if self.stop_file is not None and self.stop_file.exists():
                self.reason = f"stop file {self.stop_file}"
            elif self.parent is not None and self.parent.has_ended():
                self.reason = "the parent process ended"
            elif self._deadline is not None and time.monotonic() >= self._deadline[0]:
                self.reason = self._deadline[1]
        return bool(self.reason)

    def ask(self, reason: str) -> None:
        self.reason = self.reason or reason

    def ask_after(self, seconds: float, reason: str) -> None:
        self._deadline = (time.monotonic() + seconds, reason)

    def check(self) -> None:
        """Raise CancelledError if a stop was asked for."""
        if self.requested():
            raise CancelledError(f"stopped: {self.reason}")

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.reason = signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)


class ParentWatch:
    """Tells when a process above this one has ended: the parent, or one further up and all between.

    A panel starts a launcher, and the launcher starts this process. When the panel is killed the launcher may stay,
    and a parent that ended before this process could look is a parent never seen: so the panel says its own id.

    Args:
        pid: of the process; 0 for the direct parent. One that is not above has ended.
    """

    def __init__(self, pid: int = 0) -> None:
        import psutil

        above = psutil.Process().parents()
        count = next((number for number, process in enumerate(above, 1) if pid in (0, process.pid)), 0)
        self._watched = above[:count]
        self._asked, self._runs = -math.inf, bool(self._watched)

    def has_ended(self) -> bool:
        """Say whether it has ended; costs next to nothing, however often it is asked."""
        now = time.monotonic()
        if self._runs and now - self._asked >= INTERVAL_S:
            self._asked, self._runs = now, all(_runs(process) for process in self._watched)
        return not self._runs


def _runs(process: Any) -> bool:
    import psutil

    try:
        # one that was killed keeps its number until its own parent has looked at it
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        # another user's: it is there
        return True


NEVER = StopRequest()
"""Never cancelled."""
