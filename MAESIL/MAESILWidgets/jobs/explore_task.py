"""One command of Explore from click to files: write the volume, run the worker."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from MAESILWidgets.jobs.commands import STROKES, explore_arguments
from MAESILWidgets.jobs.volume_task import VolumeTask
from MAESILWidgets.messages import Failure

STARTED, DONE = 0.15, 0.95
"""Shares of the whole at which the worker has begun, and has ended."""


class ExploreTask(VolumeTask):
    """Runs a command on a volume node in the background.

    Args:
        command: features, segment or surprise.
        node: the CT.
        output: folder for the worker's files, which stays.
        strokes: label map volume in the CT's own space.
        on_progress: called with the share done (0 to 1).
        on_log: called with each line of the worker's log.
        on_end: called once with the state and the Failure (or None).
    """

    def __init__(
        self,
        command: str,
        node: Any,
        output: Path,
        checkpoint: str,
        device: str,
        strokes: Any = None,
        *,
        on_progress: Callable[[float], None],
        on_log: Callable[[str], None],
        on_end: Callable[[str, Failure | None], None],
    ) -> None:
        self.command, self.on_progress = command, on_progress

        def arguments(volume: Path, output: Path) -> list[str]:
            return explore_arguments(command, volume, output, checkpoint, device)

        super().__init__(node, arguments, output, None if strokes is None else (strokes, STROKES), on_log, on_end)

    def exporting(self, share: float) -> None:
        """Show the beginning."""
        self.on_progress(STARTED / 3 * share)

    def on_event(self, event: dict[str, Any]) -> None:
        """Hear of an event of the worker."""
        super().on_event(event)
        if event["event"] == "progress":
            is_work = event["stage"] not in ("read", "write")
            share = float(event["fraction"]) if is_work else float(event["stage"] == "write")
            self.on_progress(STARTED + (DONE - STARTED) * share)
