"""Being asked to stop: by a signal, by a stop file, or by the parent's death."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from types import FrameType

from MAESILLib.errors import CancelledError


class StopRequest:
    """Remembers that a stop was asked for; work checks it where it can end cleanly.

    Args:
        stop_file: asking is creating this file.
        watch_parent: the parent's end is a request too (the parent is a panel, not a shell).
    """

    def __init__(self, stop_file: Path | str | None = None, watch_parent: bool = False) -> None:
        self.stop_file = None if stop_file is None else Path(stop_file)
        self.parent = os.getppid() if watch_parent else None
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
            elif self.parent is not None and os.getppid() != self.parent:
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
