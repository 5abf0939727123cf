"""Starting reconstructions and trainings, for the panel and for scripts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from MAESILWidgets.jobs import checkpoints, running
from MAESILWidgets.jobs.commands import ReconstructOptions, TrainOptions
from MAESILWidgets.jobs.reconstruction_task import ReconstructionTask
from MAESILWidgets.jobs.training_task import TrainingTask
from MAESILWidgets.scene.results_scene import Result
from MAESILWidgets.scene.volume_info import describe


def start_reconstruction(node: Any, options: ReconstructOptions, **callbacks: Any) -> Any:
    """Start to reconstruct a volume node; return the running task."""
    return running.start(ReconstructionTask(node, options, **callbacks))


def start_training(options: TrainOptions, inputs: list[str], nodes: list[Any], **callbacks: Any) -> Any:
    """Start a training on files, folders or volume nodes; return the running task."""
    return running.start(TrainingTask(options, inputs, nodes, **callbacks))


def reconstruct_checked(
    node: Any,
    options: ReconstructOptions,
    on_progress: Callable[..., None] | None,
    on_end: Callable[..., None] | None,
) -> Any:
    """Start to reconstruct a volume node that a script gives.

    Raises:
        ValueError: there is no such volume, it is not a CT, or the checkpoint cannot be used.
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

    return start_reconstruction(node, options, on_progress=on_progress or (lambda *_: None), on_end=ended)
