"""What every task on a volume does: write it for the worker, run it, and end however that comes about.

The CT is held by its id: it can vanish, and the scene can close, while the worker runs; then the task ends with a
message and leaves nothing behind.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import slicer
import vtk
from slicer.i18n import tr as _
from slicer.util import VTKObservationMixin

from MAESILWidgets.jobs.job import CANCELLED, FAILED, FINISHED, BackgroundJob
from MAESILWidgets.messages import Failure
from MAESILWidgets.scene.export import VolumeExport


class VolumeTask(VTKObservationMixin):
    """Runs a command on a volume node in the background.

    Args:
        node: the CT.
        command: returns the arguments of ``maesil`` from the CT's file and the folder for the results.
        output: that folder; one that is removed at the end if None.
        labels: label map volume in the CT's own space, and the name of its file beside the CT's; or None.
        on_progress: called with the share done (0 to 1), the stage, and the seconds left or None.
        on_log: called with each line of the worker's log.
        on_end: called once with what :meth:`outcome` gives.
    """

    STAGES: ClassVar[dict[str, float]] = {"export": 0.05, "start": 0.1, "read": 0.0, "work": 0.8, "write": 0.0}
    """What each stage takes of the whole, roughly: for one bar that does not run backwards."""
    MAIN = "work"
    """Stands for the stages that are not listed."""

    def __init__(
        self,
        node: Any,
        command: Callable[[Path, Path], list[str]],
        output: Path | None = None,
        labels: tuple[Any, str] | None = None,
        *,
        on_progress: Callable[[float, str, float | None], None],
        on_log: Callable[[str], None],
        on_end: Callable[..., None],
    ) -> None:
        VTKObservationMixin.__init__(self)
        self.node_id, self.name = node.GetID(), node.GetName()
        self.on_progress, self.on_log, self.on_end = on_progress, on_log, on_end
        self.state = "running"
        self.failure: Failure | None = None
        self.warnings: list[str] = []
        self.folder = scratch_folder()
        self.output = output or self.folder / "result"
        volume = self.folder / "volume.nrrd"
        self.arguments = command(volume, self.output)
        self.shareable_arguments = command(_own_file(node), Path("result"))
        self.job = BackgroundJob(
            self.arguments, self.folder / "stop", on_event=self.on_event, on_log=on_log, on_end=self._on_job_end
        )
        self.exports = [VolumeExport(node, volume, self.exporting, self._exported)]
        if labels is not None:
            path = self.folder / labels[1]
            self.exports.append(VolumeExport(labels[0], path, lambda _share: None, self._exported))
        scene = slicer.mrmlScene
        self.addObserver(scene, scene.StartCloseEvent, self._scene_closes)
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
        self.exporting(0.0)
        self.exports[-1].start()

    def cancel(self) -> None:
        """Stop; ``on_end`` is called when the worker is gone."""
        if self.is_running and self.job.is_running:
            self.job.cancel()
        elif self.is_running:
            self.end(CANCELLED)

    def abandon(self) -> None:
        """Slicer is closing: end the worker now and remove its files."""
        if not self.is_running:
            return
        self.on_end = lambda *_: None
        self.job.end_now(2000)
        self.end(CANCELLED)

    def exporting(self, share: float) -> None:
        """Hear how much of the volume is written; then the worker starts."""
        self.progress("export" if share < 1 else "start", share % 1)

    def progress(self, stage: str, share: float, eta_s: float | None = None) -> None:
        """Tell how much is done, from the share of a stage."""
        names = list(self.STAGES)
        before = sum(self.STAGES[name] for name in names[: names.index(stage)])
        self.on_progress(min(1.0, before + self.STAGES[stage] * share), stage, eta_s)

    def on_event(self, event: dict[str, Any]) -> None:
        """Hear of an event of the worker."""
        if event["event"] == "warning":
            self.warnings.append(str(event["message"]))
        elif event["event"] == "progress":
            stage = event["stage"] if event["stage"] in self.STAGES else self.MAIN
            self.progress(stage, float(event["fraction"]), event["eta_s"])

    def load(self) -> None:
        """Take what the worker has written, then end."""
        self.end(FINISHED)

    def outcome(self) -> tuple[Any, ...]:
        """Return what ``on_end`` is told."""
        return self.state, self.failure

    def end(self, state: str, failure: Failure | None = None) -> None:
        """End; nothing of the task is left but what it was for."""
        self.state, self.failure = state, failure
        self.removeObservers()
        for export in self.exports:
            export.cancel()
        shutil.rmtree(self.folder, ignore_errors=True)
        self.on_end(*self.outcome())

    def _exported(self, failure: Failure | None) -> None:
        self.exports.pop()
        if failure is not None:
            self.end(FAILED, failure)
        elif self.exports:
            self.exports[-1].start()
        else:
            try:
                self.job.start()
            except FileNotFoundError as error:
                self.end(FAILED, Failure(str(error)))

    def _on_job_end(self, state: str, failure: Failure | None) -> None:
        if self.failure is not None:
            # stopped because the input was lost
            self.end(FAILED, self.failure)
        elif state == FINISHED:
            self.load()
        else:
            self.end(state, failure)

    def _scene_closes(self, caller: Any, event: str) -> None:
        self._input_lost(_("the scene was closed"))

    @vtk.calldata_type(vtk.VTK_OBJECT)  # type: ignore[untyped-decorator]
    def _node_removed(self, caller: Any, event: str, node: Any) -> None:
        if node is not None and node.GetID() == self.node_id:
            self._input_lost(_("it was deleted"))

    def _input_lost(self, reason: str) -> None:
        self.removeObservers()
        text = _("The volume {name} is gone ({reason}), so the task was stopped")
        self.failure = Failure(text.format(name=self.name, reason=reason), _("load it again and repeat"))
        if self.job.is_running:
            self.job.cancel()
        else:
            self.end(FAILED, self.failure)


def scratch_folder() -> Path:
    """Make a folder for files of a task and return it."""
    return Path(tempfile.mkdtemp(prefix="maesil-", dir=slicer.app.temporaryPath))


def _own_file(node: Any) -> Path:
    """Return the file a volume was loaded from, or a stand-in where it has none, or was changed since."""
    storage = node.GetStorageNode()
    path = Path(storage.GetFileName() or "") if storage is not None else Path()
    return path if path.is_file() and not node.GetModifiedSinceRead() else Path("CT.nrrd")
