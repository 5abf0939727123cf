"""One command of Explore from click to nodes: write the volume, run the worker, have its files loaded."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import slicer
import vtk
from slicer.i18n import tr as _
from slicer.util import VTKObservationMixin

from MAESILWidgets.jobs.commands import STROKES, explore_arguments
from MAESILWidgets.jobs.job import CANCELLED, FAILED, FINISHED, BackgroundJob
from MAESILWidgets.messages import Failure
from MAESILWidgets.scene.export import VolumeExport

STARTED, DONE = 0.15, 0.95
"""Shares of the whole at which the worker has begun, and has ended."""


class ExploreTask(VTKObservationMixin):
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
        VTKObservationMixin.__init__(self)
        self.command, self.node_id, self.output = command, node.GetID(), output
        self.on_progress, self.on_log, self.on_end = on_progress, on_log, on_end
        self.state = "running"
        self.failure: Failure | None = None
        self.warnings: list[str] = []
        self.folder = Path(tempfile.mkdtemp(prefix="maesil-", dir=slicer.app.temporaryPath))
        volume = self.folder / "volume.nrrd"
        self.arguments = explore_arguments(command, volume, output, checkpoint, device)
        self.shareable_arguments = explore_arguments(command, Path("CT.nrrd"), Path("result"), checkpoint, device)
        self.job = BackgroundJob(
            self.arguments, self.folder / "stop", on_event=self._on_event, on_log=on_log, on_end=self._on_job_end
        )
        exports = [(node, volume), *([(strokes, self.folder / STROKES)] if strokes is not None else [])]
        self.exports = [VolumeExport(one, path, lambda _share: None, self._exported) for one, path in exports]
        scene = slicer.mrmlScene
        self.addObserver(scene, scene.StartCloseEvent, lambda *_: self.cancel())
        self.addObserver(scene, scene.NodeAboutToBeRemovedEvent, self._node_removed)

    @property
    def is_running(self) -> bool:
        """Whether the task has not ended yet."""
        return self.state == "running"

    @property
    def node(self) -> Any:
        """The CT."""
        return slicer.mrmlScene.GetNodeByID(self.node_id)

    def start(self) -> None:
        """Begin; everything else happens in the event loop."""
        self.on_progress(0.0)
        self.exports[-1].start()

    def cancel(self) -> None:
        """Stop; ``on_end`` is called when the worker is gone."""
        if self.is_running and self.job.is_running:
            self.job.cancel()
        elif self.is_running:
            self._end(CANCELLED, None)

    def abandon(self) -> None:
        """Slicer is closing: end the worker now and remove its files."""
        if not self.is_running:
            return
        self.on_end = lambda *_: None
        if self.job.is_running:
            self.job.on_end = lambda *_: None
            self.job.kill()
            self.job.wait(2000)
        self._end(CANCELLED, None)

    def _exported(self, failure: Failure | None) -> None:
        self.exports.pop()
        if failure is not None:
            self._end(FAILED, failure)
        elif self.exports:
            self.exports[-1].start()
        else:
            try:
                self.job.start()
            except FileNotFoundError as error:
                self._end(FAILED, Failure(str(error)))

    def _on_event(self, event: dict[str, Any]) -> None:
        if event["event"] == "progress":
            is_work = event["stage"] not in ("read", "write")
            share = float(event["fraction"]) if is_work else float(event["stage"] == "write")
            self.on_progress(STARTED + (DONE - STARTED) * share)
        elif event["event"] == "warning":
            self.warnings.append(str(event["message"]))

    def _on_job_end(self, state: str, failure: Failure | None) -> None:
        self._end(state, failure)

    @vtk.calldata_type(vtk.VTK_OBJECT)  # type: ignore[untyped-decorator]
    def _node_removed(self, caller: Any, event: str, node: Any) -> None:
        if node is not None and node.GetID() == self.node_id:
            self.cancel()

    def _end(self, state: str, failure: Failure | None) -> None:
        if state == FINISHED and self.node is None:
            state, failure = FAILED, Failure(_("The volume is gone"), _("load it again, then repeat"))
        self.state, self.failure = state, failure
        self.removeObservers()
        for export in self.exports:
            export.cancel()
        shutil.rmtree(self.folder, ignore_errors=True)
        self.on_end(state, failure)
