"""What a command reports while it runs: one schema for the command line and for the Slicer panel.

With ``--progress json`` every event is one JSON object on a line of stdout:

    {"event": "started", "pid": 1, "version": "0.1.0", "command": "reconstruct"}
    {"event": "progress", "stage": "reconstruct", "fraction": 0.42, "eta_s": 3.1}
    {"event": "metric", "step": 100, "loss": 0.01, "psnr_masked_db": 20.1, "lr": 0.001, "samples_per_s": 9.0}
    {"event": "artifact", "kind": "reconstruction", "path": "..."}
    {"event": "info", "what": "volume", "name": "...", "size_dhw": [95, 512, 512]}
    {"event": "warning", "message": "..."}
    {"event": "error", "kind": "out_of_memory", "message": "...", "hint": "..."}
    {"event": "done", "seconds": 12.3}

With ``bar`` progress is drawn on stderr; with ``off`` nothing but errors is said. Text for people goes to
stderr, so stdout holds events or results alone.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from MAESILLib import __version__

EVENTS = {
    "started": ("pid", "version", "command"),
    "progress": ("stage", "fraction", "eta_s"),
    "metric": ("step",),
    "artifact": ("kind", "path"),
    "info": ("what",),
    "warning": ("message",),
    "error": ("kind", "message", "hint"),
    "done": ("seconds",),
}
"""Every event's name and the keys it always has."""

MODES = ("bar", "json", "off")
MIN_INTERVAL_S = 0.1
BAR_WIDTH = 24


def parse_event(line: str) -> dict[str, Any] | None:
    """Return the event in a line of stdout, or None if the line holds none."""
    try:
        event = json.loads(line)
    except json.JSONDecodeError:
        return None
    if not isinstance(event, dict) or event.get("event") not in EVENTS:
        return None
    return event if all(key in event for key in EVENTS[event["event"]]) else None


class Reporter:
    """Tells the user, or the parent process, how a command is getting on."""

    def __init__(self, mode: str = "off", out: TextIO | None = None, log: TextIO | None = None) -> None:
        self.mode = mode
        self.out = sys.stdout if out is None else out
        self.log = sys.stderr if log is None else log
        self.on_reader_gone: Callable[[], None] | None = None
        """Called when the output pipe is closed; BrokenPipeError is raised if not set."""
        self.begin = time.monotonic()
        self._stage, self._stage_begin, self._stage_from, self._last = "", self.begin, 0.0, 0.0
        self._bar_length = 0

    def started(self, command: str) -> None:
        """Say that the command begins, and under which process id."""
        self._emit("started", pid=os.getpid(), version=__version__, command=command)

    def progress(self, stage: str, fraction: float, note: str = "") -> None:
        """Say how far a stage is, 0 to 1; at most ten times a second, but for its end."""
        now = time.monotonic()
        if stage != self._stage:
            self._stage, self._stage_begin, self._stage_from = stage, now, fraction
        elif fraction < 1 and now - self._last < MIN_INTERVAL_S:
            return
        self._last = now
        gained = fraction - self._stage_from
        eta = (now - self._stage_begin) * (1 - fraction) / gained if gained > 0 else None
        self._emit("progress", stage=stage, fraction=round(fraction, 4), eta_s=None if eta is None else round(eta, 1))
        if self.mode == "bar":
            self._draw(stage, fraction, eta, note)

    def metric(self, step: int, **values: float | None) -> None:
        """Give figures of a training step."""
        self._emit("metric", step=step, **values)

    def artifact(self, kind: str, path: Path | str) -> None:
        """Say that a file is complete."""
        self._emit("artifact", kind=kind, path=str(path))

    def info(self, what: str, **details: Any) -> None:
        """Describe a checkpoint, a cache, a volume or the system, in plain JSON values."""
        self._emit("info", what=what, **details)

    def warning(self, message: str) -> None:
        """Tell something the user should know but need not act on."""
        self._emit("warning", message=message)
        if self.mode != "off":
            self.text(f"warning: {message}")

    def failure(self, name: str, reason: str) -> None:
        """Say that one of several inputs failed; the command goes on with the others."""
        # a path may hold line breaks
        line = " ".join((reason if name in reason else f"{name}: {reason}").splitlines())
        self._emit("warning", message=line)
        self.text(f"maesil: {line}")

    def error(self, kind: str, message: str, hint: str) -> None:
        """Say why the command ends without a result."""
        message, hint = " ".join(message.splitlines()), " ".join(hint.splitlines())
        self._emit("error", kind=kind, message=message, hint=hint)
        self.text(f"maesil: {message}. {hint}" if hint else f"maesil: {message}")

    def done(self) -> None:
        """Say that everything is written."""
        self._emit("done", seconds=round(time.monotonic() - self.begin, 2))

    def text(self, line: str) -> None:
        """Write a line for people, clear of the progress bar and without control characters."""
        if self._bar_length:
            self.log.write("\r" + " " * self._bar_length + "\r")
            self._bar_length = 0
        self._print(printable(line), self.log)

    def _emit(self, event: str, **values: Any) -> None:
        if self.mode == "json":
            # flushed, because the parent reads through a pipe; escaped, whatever the encoding of stdout
            self._print(json.dumps({"event": event, **values}), self.out)

    def _print(self, line: str, stream: TextIO) -> None:
        try:
            print(line, file=stream, flush=True)
        except BrokenPipeError:
            if self.on_reader_gone is None:
                raise
            # the work ends where it can end cleanly: a training saves its state first
            self.out = self.log = open(os.devnull, "w")  # noqa: SIM115 (open until the process ends)
            self.on_reader_gone()

    def _draw(self, stage: str, fraction: float, eta: float | None, note: str) -> None:
        if not self.log.isatty():
            if fraction >= 1:
                self.text(f"{stage}: done")
            return
        full = int(fraction * BAR_WIDTH)
        left = "" if eta is None else f" {clock(eta)} left"
        line = printable(f"{stage} [{'#' * full}{'.' * (BAR_WIDTH - full)}] {fraction:4.0%}{left} {note}")
        self.log.write("\r" + line.ljust(self._bar_length))
        self.log.flush()
        self._bar_length = len(line)
        if fraction >= 1:
            self.log.write("\n")
            self._bar_length = 0


def clock(seconds: float) -> str:
    """Return a duration as h:mm:ss or m:ss."""
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def printable(text: str) -> str:
    """Return text in which what would command a terminal (escape sequences in names and tags) is spelled out."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
