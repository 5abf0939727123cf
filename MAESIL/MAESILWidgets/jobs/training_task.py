"""One training from click to checkpoint: write the scene's volumes if they are the data, prepare, pretrain.

The run's folder holds everything: ``cache`` (prepared CTs) and what ``maesil pretrain`` writes. Resuming needs that
folder alone. A stop leaves a state to resume from.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import slicer
from slicer.i18n import tr as _

from MAESILWidgets.jobs.commands import TrainOptions, file_name, pretrain_arguments
from MAESILWidgets.jobs.job import CANCELLED, FAILED, FINISHED, BackgroundJob
from MAESILWidgets.jobs.volume_task import scratch_folder
from MAESILWidgets.messages import Failure, os_failure
from MAESILWidgets.scene.export import VolumeExport

CACHE = "cache"
GRACE_MS = 4500


class TrainingTask:
    """Trains in the background.

    Args:
        inputs: files or folders of CTs; or volume nodes of the scene. Neither is needed to resume.
        on_event: called with every event of the workers.
        on_stage: called with ``export``, ``prepare`` or ``pretrain`` when it begins.
        on_log: called with each line of the workers' log.
        on_end: called once with the state, the checkpoint's path (empty if there is none), the Failure or None.
    """

    def __init__(
        self,
        options: TrainOptions,
        inputs: list[str] | None = None,
        nodes: list[Any] | None = None,
        *,
        on_event: Callable[[dict[str, Any]], None] = lambda _: None,
        on_stage: Callable[[str], None] = lambda _: None,
        on_log: Callable[[str], None] = lambda _: None,
        on_end: Callable[[str, str, Failure | None], None] = lambda *_: None,
    ) -> None:
        self.options, self.inputs = options, list(inputs or [])
        self.node_ids = [node.GetID() for node in nodes or []]
        self.on_event, self.on_stage, self.on_log, self.on_end = on_event, on_stage, on_log, on_end
        self.run = Path(options.run_folder)
        self.state = "running"
        self.failure: Failure | None = None
        self.checkpoint = ""
        self.exports: Path | None = None
        self.export: VolumeExport | None = None
        self.job: BackgroundJob | None = None
        self.arguments = self.shareable_arguments = pretrain_arguments(self.run / CACHE, options)

    @property
    def is_running(self) -> bool:
        """Whether the task has not ended yet."""
        return self.state == "running"

    def start(self) -> None:
        """Begin; everything else happens in the event loop."""
        if self.options.resume:
            self._pretrain()
            return
        if self.node_ids:
            self.exports = scratch_folder()
            self.on_stage("export")
            self._export_next()
            return
        self._prepare(self.inputs)

    def cancel(self) -> None:
        """Stop; the state is saved, and ``on_end`` is called when the worker is gone."""
        if not self.is_running:
            return
        if self.job is not None and self.job.is_running:
            self.job.cancel()
            return
        if self.export is not None:
            self.export.cancel()
        self._end(CANCELLED, None)

    def abandon(self) -> None:
        """Slicer is closing: let the worker save its state and end."""
        if not self.is_running:
            return
        self.state = CANCELLED
        if self.export is not None:
            self.export.cancel()
        if self.job is not None:
            self.job.abandon()
        self._clean_up()

    def _export_next(self) -> None:
        if not self.node_ids:
            self._prepare([str(self.exports)])
            return
        node = slicer.mrmlScene.GetNodeByID(self.node_ids.pop(0))
        if node is None:
            self._end(FAILED, Failure(_("A volume to train on was deleted"), _("choose the volumes again")))
            return
        path = self.exports / f"{len(self.node_ids):03d}" / f"{file_name(node.GetName())}.nrrd"
        self.export = VolumeExport(node, path, lambda share: None, self._on_exported)
        self.export.start()

    def _on_exported(self, failure: Failure | None) -> None:
        self.export = None
        if failure is not None:
            self._end(FAILED, failure)
        else:
            self._export_next()

    def _prepare(self, inputs: list[str]) -> None:
        self.on_stage("prepare")
        self._start_job(["prepare", *inputs, "--output", str(self.run / CACHE)], self._on_prepared)

    def _on_prepared(self, state: str, failure: Failure | None) -> None:
        if state == FINISHED:
            self._pretrain()
        else:
            self._end(state, failure)

    def _pretrain(self) -> None:
        self.on_stage("pretrain")
        self._start_job(self.arguments, self._end)

    def _start_job(self, arguments: list[str], on_end: Callable[[str, Failure | None], None]) -> None:
        self.job = BackgroundJob(
            arguments,
            self.run / ".maesil-stop",
            on_event=self.on_event,
            on_log=self.on_log,
            on_end=on_end,
            grace_ms=GRACE_MS,
        )
        try:
            self.run.mkdir(parents=True, exist_ok=True)
            self.job.start()
        except OSError as error:
            self._end(FAILED, os_failure(error, self.run, _("choose another output folder")))

    def _end(self, state: str, failure: Failure | None) -> None:
        self.state, self.failure = state, failure
        from MAESILLib.training.run_folder import best_checkpoint

        self.checkpoint = str(best_checkpoint(self.run) or "")
        self._clean_up()
        self.on_end(state, self.checkpoint, failure)

    def _clean_up(self) -> None:
        if self.exports is not None:
            shutil.rmtree(self.exports, ignore_errors=True)
            self.exports = None


def is_resumable(run: Path) -> bool:
    """Say whether a run's folder holds a state to resume, and the data it was trained on."""
    from MAESILLib.data.cache import INDEX
    from MAESILLib.training.run_folder import holds_state

    return holds_state(run) and (run / CACHE / INDEX).is_file()
