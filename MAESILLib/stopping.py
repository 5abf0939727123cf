"""Being asked to stop: by a signal, by a stop file, or by the parent's death."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType

from MAESILLib.errors import CancelledError
from MAESILLib.parent import ParentWatch


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

    def install(self) -> None:
        """Let SIGTERM and SIGINT ask for a stop; a second SIGINT ends the process at once."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._on_signal)
            signal.signal(signal.SIGINT, self._on_signal)

    def requested(self) -> bool:
        """Say whether to stop."""
        if not self.reason:
            if self.stop_file is not None and self.stop_file.exists():
                self.reason = f"stop file {self.stop_file}"
            elif self.parent is not None and self.parent.has_ended():
                self.reason = "the parent process ended"
        return bool(self.reason)

    def ask(self, reason: str) -> None:
        """Ask for a stop."""
        self.reason = self.reason or reason

    def check(self) -> None:
        """Raise CancelledError if a stop was asked for."""
        if self.requested():
            raise CancelledError(f"stopped: {self.reason}")

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.reason = signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
