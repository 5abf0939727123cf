"""Cancellation by signal, stop file, parent exit or time limit."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from MAESILLib.runtime.errors import CancelledError
from MAESILLib.runtime.parent import INTERVAL_S, ParentWatch


class StopRequest:
    """Remembers that a stop was asked for; work checks it where it can end cleanly.

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
        self._first_check: threading.Event | None = None
        self._ending = threading.Lock()

    def install(self) -> None:
        """Let SIGTERM and SIGINT ask for a stop; a second SIGINT ends the process at once."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._on_signal)
            signal.signal(signal.SIGINT, self._on_signal)

    @contextmanager
    def until_first_check(self, end: Callable[[str], None]) -> Iterator[None]:
        """Call ``end`` with the reason as soon as a stop is asked for, until the work in the block first checks.

        Importing torch takes seconds on a cold disk or a busy machine, and nothing can check meanwhile. Nothing has
        to be undone yet, so ``end`` may end the process; it is called in a thread of its own.
        """
        first_check = self._first_check = threading.Event()
        threading.Thread(target=self._watch, args=(first_check, end), daemon=True).start()
        try:
            yield
        finally:
            self._stop_watching(first_check)

    def _watch(self, first_check: threading.Event, end: Callable[[str], None]) -> None:
        while not first_check.wait(INTERVAL_S):
            with self._ending:
                if not first_check.is_set() and self._ask():
                    end(self.reason)
                    return

    def _stop_watching(self, first_check: threading.Event) -> None:
        # waits where the end has begun already
        with self._ending:
            first_check.set()
            self._first_check = None

    def requested(self) -> bool:
        """Say whether to stop."""
        if self._first_check is not None:
            self._stop_watching(self._first_check)
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
        """Ask for a stop."""
        self.reason = self.reason or reason

    def ask_after(self, seconds: float, reason: str) -> None:
        """Ask for a stop when this many seconds are over."""
        self._deadline = (time.monotonic() + seconds, reason)

    def check(self) -> None:
        """Raise CancelledError if a stop was asked for."""
        if self.requested():
            raise CancelledError(f"stopped: {self.reason}")

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.reason = signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)


NEVER = StopRequest()
"""Never cancelled."""
