"""Starting tasks, for the panel and for scripts. When Slicer closes, none is left behind."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import slicer

from MAESILWidgets.jobs import checkpoints
from MAESILWidgets.jobs.commands import ReconstructOptions, for_terminal
from MAESILWidgets.jobs.reconstruction_task import ReconstructionTask
from MAESILWidgets.scene import painted
from MAESILWidgets.scene.results_scene import Result
from MAESILWidgets.scene.volume_info import describe

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


def reconstruct_checked(
    node: Any,
    options: ReconstructOptions,
    on_progress: Callable[..., None] | None,
    on_end: Callable[..., None] | None,
    painted_node: Any = None,
    segment: str = "",
) -> Any:
    """Start to reconstruct a volume node that a script gives, without what is painted in a segment of that name.

    Raises:
        ValueError: there is no such volume, it is not a CT, the checkpoint cannot be used, or nothing is painted.
    """
    if node is None:
        raise ValueError("there is no volume to reconstruct: give a scalar volume node")
    model = checkpoints.describe(options.checkpoint)
    problem = model.problem or describe(node, model.info).refusal
    if problem:
        raise ValueError(problem)

    def ended(state: str, text: Any, failure: Any) -> None:
        if on_end is not None:
            on_end(state, Result(text) if text is not None else None, failure)

    labels = None
    if painted_node is not None:
        by_name = {name: one for one, name in painted.segments(painted_node).items()}
        labels = painted.label_map(painted_node, by_name.get(segment, segment), node)
    return start(ReconstructionTask(node, options, labels, on_progress=on_progress or (lambda *_: None), on_end=ended))


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
