"""One reconstruction from click to nodes: write the volume, run the worker, read its results back.

What is added to the scene is taken out again unless everything could be read. The input is held by its id: it can
vanish, and the scene can close, while the worker runs; then the task ends with a message and leaves nothing behind.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import qt
import slicer
import vtk
from slicer.i18n import tr as _
from slicer.util import VTKObservationMixin

from MAESILWidgets.jobs.commands import ReconstructOptions, painted_file, reconstruct_arguments
from MAESILWidgets.jobs.job import CANCELLED, FAILED, FINISHED, BackgroundJob
from MAESILWidgets.messages import Failure
from MAESILWidgets.scene.export import VolumeExport
from MAESILWidgets.scene.loading import ImageFill
from MAESILWidgets.scene.results_scene import VOLUMES, ResultBuilder

STAGES = {
    "export": 0.03,
    "start": 0.17,
    "read": 0.07,
    "reconstruct": 0.45,
    "measure": 0.15,
    "write": 0.05,
    "load": 0.08,
}
"""What each stage takes of the whole, roughly: for one bar that does not run backwards."""


class ReconstructionTask(VTKObservationMixin):
    """Reconstructs a volume node in the background.

    Args:
        node: the CT.
        painted: label map volume in the CT's own space; what is painted there is hidden.
        on_progress: called with the share done (0 to 1), the stage, and the seconds left or None.
        on_log: called with each line of the worker's log.
        on_end: called once with the state, the result's text node (or None), and the Failure (or None).
    """

    def __init__(
        self,
        node: Any,
        options: ReconstructOptions,
        painted: Any = None,
        *,
        on_progress: Callable[[float, str, float | None], None] = lambda *_: None,
        on_log: Callable[[str], None] = lambda _: None,
        on_end: Callable[[str, Any, Failure | None], None] = lambda *_: None,
    ) -> None:
        VTKObservationMixin.__init__(self)
        if painted is not None:
            options = replace(options, painted=painted.GetName())
        self.options, self.node_id, self.name = options, node.GetID(), node.GetName()
        self.on_progress, self.on_log, self.on_end = on_progress, on_log, on_end
        self.state = "running"
        self.failure: Failure | None = None
        self.result: Any = None
        self.warnings: list[str] = []
        self.began = time.monotonic()
        self.folder = Path(tempfile.mkdtemp(prefix="maesil-", dir=slicer.app.temporaryPath))
        self.volume_path = self.folder / "volume.nrrd"
        self.output = self.folder / "result"
        self.arguments = reconstruct_arguments(self.volume_path, self.name, self.output, options)
        self.shareable_arguments = reconstruct_arguments(_own_file(node), self.name, Path("result"), options)
        self.job = BackgroundJob(
            self.arguments, self.folder / "stop", on_event=self._on_event, on_log=on_log, on_end=self._on_job_end
        )
        self.exports = [
            VolumeExport(node, self.volume_path, lambda share: self._progress("export", share), self._exported)
        ]
        if painted is not None:
            path = painted_file(self.volume_path, options)
            self.exports.append(VolumeExport(painted, path, lambda _share: None, self._exported))
        scene = slicer.mrmlScene
        self.addObserver(scene, scene.StartCloseEvent, self._scene_closes)
        self.addObserver(scene, scene.NodeAboutToBeRemovedEvent, self._node_removed)
        self.loader: Any = None
        self._builder: ResultBuilder | None = None
        self._metrics: dict[str, Any] = {}
        self._fill: ImageFill | None = None
        self._to_load: list[str] = []

    @property
    def is_running(self) -> bool:
        """Whether the task has not ended yet."""
        return self.state == "running"

    def start(self) -> None:
        """Begin; everything else happens in the event loop."""
        self._progress("export", 0.0)
        self.exports[-1].start()

    def cancel(self) -> None:
        """Stop; ``on_end`` is called when the worker is gone."""
        if not self.is_running:
            return
        self.result = None
        if self.job.is_running:
            self.job.cancel()
        else:
            self._end(CANCELLED, None)

    def abandon(self) -> None:
        """Slicer is closing: end the worker now and remove its files."""
        if not self.is_running:
            return
        self.state = CANCELLED
        self.removeObservers()
        for export in self.exports:
            export.cancel()
        self._stop_loading()
        if self.job.is_running:
            self.job.on_end = lambda *_: None
            self.job.kill()
            self.job.wait(2000)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _exported(self, failure: Failure | None) -> None:
        if failure is not None:
            self._end(FAILED, failure)
            return
        self.exports.pop()
        if self.exports:
            self.exports[-1].start()
            return
        try:
            self.job.start()
        except FileNotFoundError as error:
            self._end(FAILED, Failure(str(error)))
            return
        self._progress("start", 0.0)

    def _on_event(self, event: dict[str, Any]) -> None:
        if event["event"] == "progress":
            stage = event["stage"] if event["stage"] in STAGES else "measure"
            self._progress(stage, float(event["fraction"]), event["eta_s"])
        elif event["event"] == "warning":
            self.warnings.append(str(event["message"]))

    def _progress(self, stage: str, share: float, eta_s: float | None = None) -> None:
        names = list(STAGES)
        before = sum(STAGES[name] for name in names[: names.index(stage)])
        self.on_progress(min(1.0, before + STAGES[stage] * share), stage, eta_s)

    def _on_job_end(self, state: str, failure: Failure | None) -> None:
        if self.failure is not None:
            # stopped because the input was lost
            self._end(FAILED, self.failure)
        elif state == FINISHED:
            self._load()
        else:
            self._end(state, failure)

    def _scene_closes(self, caller: Any, event: str) -> None:
        self._input_lost(_("the scene was closed"))

    @vtk.calldata_type(vtk.VTK_OBJECT)  # type: ignore[untyped-decorator]
    def _node_removed(self, caller: Any, event: str, node: Any) -> None:
        if node is not None and node.GetID() == self.node_id:
            self._input_lost(_("it was deleted"))

    def _input_lost(self, reason: str) -> None:
        self.removeObservers()
        self.failure = Failure(
            _("The volume {name} is gone ({reason}), so its reconstruction was stopped").format(
                name=self.name, reason=reason
            ),
            _("load it again, then repeat"),
        )
        if self.job.is_running:
            self.job.cancel()
        else:
            self._end(FAILED, self.failure)

    def _load(self) -> None:
        try:
            self._metrics = json.loads((self.output / "metrics.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            self._end(FAILED, _unreadable(error))
            return
        self._to_load = list(VOLUMES)
        self._builder = ResultBuilder(slicer.mrmlScene.GetNodeByID(self.node_id), self.options.title())
        # a piece a turn of the event loop
        self.loader = qt.QTimer()
        self.loader.connect("timeout()", self._load_next)
        self.loader.start(0)

    def _load_next(self) -> None:
        builder = self._builder
        if builder is None:
            return
        try:
            if self._to_load:
                self._load_piece(builder)
                return
            if self.result is None:
                self.removeObservers()
                self.result = builder.finish(self._metrics)
                # whoever is told shows it: in a turn of its own, because that takes a while too
                return
        except (OSError, RuntimeError, ValueError) as error:
            self._end(FAILED, _unreadable(error))
            return
        self._builder = None
        self._progress("load", 1.0)
        self._end(FINISHED, None)

    def _load_piece(self, builder: ResultBuilder) -> None:
        kind = self._to_load[0]
        if self._fill is None:
            shape = slicer.util.arrayFromVolume(builder.input_node).shape
            self._fill = ImageFill(self.output / f"{kind}.nrrd", shape)
        elif self._fill.step():
            builder.add(kind, self._fill.finish())
            self._fill = None
            self._to_load.pop(0)
            self._progress("load", 1 - len(self._to_load) / (len(VOLUMES) + 1))

    def _stop_loading(self) -> None:
        self._fill = None
        if self.loader is not None:
            self.loader.stop()
            self.loader.deleteLater()
            self.loader = None
        if self._builder is not None:
            self._builder.discard()
            self._builder = None

    def _end(self, state: str, failure: Failure | None) -> None:
        self.state, self.failure = state, failure
        self.removeObservers()
        for export in self.exports:
            export.cancel()
        self._stop_loading()
        shutil.rmtree(self.folder, ignore_errors=True)
        self.on_end(state, self.result, failure)


def _own_file(node: Any) -> Path:
    """Return the file a volume was loaded from, or a stand-in where it has none, or was changed since."""
    storage = node.GetStorageNode()
    path = Path(storage.GetFileName() or "") if storage is not None else Path()
    return path if path.is_file() and not node.GetModifiedSinceRead() else Path("CT.nrrd")


def _unreadable(error: Exception) -> Failure:
    return Failure(_("The results cannot be read: {error}").format(error=error), _("repeat the reconstruction"))
