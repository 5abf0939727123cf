"""The tasks that run, whoever started them: when Slicer closes, none is left behind."""

from __future__ import annotations

from typing import Any

_tasks: list[Any] = []


def add(task: Any) -> None:
    """Remember a task that was started; those that have ended are forgotten."""
    _tasks[:] = [*(one for one in _tasks if one.is_running), task]


def abandon_all() -> None:
    """End every worker: Slicer is closing."""
    for task in list(_tasks):
        if task.is_running:
            task.abandon()
    _tasks.clear()
