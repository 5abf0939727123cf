"""The tasks that run, whoever started them: when Slicer closes, none is left behind."""

from __future__ import annotations

import time
from typing import Any

import slicer

from MAESILWidgets.jobs.commands import for_terminal

_tasks: list[Any] = []
last_arguments: list[str] = []
"""Those of the command that was started last, as they can be given to someone else."""


def start(task: Any) -> Any:
    """Start a task and return it."""
    _tasks[:] = [*(one for one in _tasks if one.is_running), task]
    last_arguments[:] = task.shareable_arguments
    task.on_log(f"$ {for_terminal(task.arguments)}")
    task.start()
    return task


def wait(task: Any) -> None:
    """Return when a task has ended; Slicer responds meanwhile.

    Raises:
        RuntimeError: it failed; says why and what to do.
    """
    while task.is_running:
        slicer.app.processEvents()
        time.sleep(0.01)
    if task.state != "finished":
        raise RuntimeError(task.failure.text() if task.failure is not None else "it was cancelled")


def abandon_all() -> None:
    """End every worker: Slicer is closing."""
    for task in list(_tasks):
        if task.is_running:
            task.abandon()
    _tasks.clear()
