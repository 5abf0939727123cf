"""One reconstruction from click to nodes: write the volume, run the worker, read its results back.

What is added to the scene is taken out again unless everything could be read.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from MAESILWidgets.jobs.commands import ReconstructOptions, painted_file, reconstruct_arguments
from MAESILWidgets.jobs.job import FAILED, FINISHED
from MAESILWidgets.jobs.volume_task import VolumeTask
from MAESILWidgets.messages import Failure
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


class ReconstructionTask(VolumeTask):
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
        if painted is not None:
            options = replace(options, painted=painted.GetName())
        labels = None if painted is None else (painted, painted_file(options))
        self.options, self.on_progress = options, on_progress
        self.result: Any = None
        self.loader: Any = None
        self._builder: ResultBuilder | None = None
        self._metrics: dict[str, Any] = {}
        self._fill: ImageFill | None = None
        self._to_load: list[str] = []

        def arguments(volume: Path, output: Path) -> list[str]:
            return reconstruct_arguments(volume, node.GetName(), output, options)

        super().__init__(node, arguments, None, labels, on_log, on_end)

    def exporting(self, share: float) -> None:
        """Hear how much of the volume is written; then the worker starts."""
        self._progress("export" if share < 1 else "start", share % 1)

    def on_event(self, event: dict[str, Any]) -> None:
        """Hear of an event of the worker."""
        super().on_event(event)
        if event["event"] == "progress":
            stage = event["stage"] if event["stage"] in STAGES else "measure"
            self._progress(stage, float(event["fraction"]), event["eta_s"])

    def load(self) -> None:
        """Read the results, a piece a turn of the event loop."""
        try:
            self._metrics = json.loads((self.output / "metrics.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            self.end(FAILED, _unreadable(error))
            return
        self._to_load = list(VOLUMES)
        self._builder = ResultBuilder(self.node, self.options.title())
        self.loader = qt.QTimer()
        self.loader.connect("timeout()", self._load_next)
        self.loader.start(0)

    def outcome(self) -> tuple[Any, ...]:
        """Return what ``on_end`` is told."""
        return self.state, self.result, self.failure

    def end(self, state: str, failure: Failure | None = None) -> None:
        """End; of a result that is not whole nothing is left."""
        if state != FINISHED:
            self.result = None
        self._stop_loading()
        super().end(state, failure)

    def _progress(self, stage: str, share: float, eta_s: float | None = None) -> None:
        names = list(STAGES)
        before = sum(STAGES[name] for name in names[: names.index(stage)])
        self.on_progress(min(1.0, before + STAGES[stage] * share), stage, eta_s)

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
            self.end(FAILED, _unreadable(error))
            return
        self._builder = None
        self._progress("load", 1.0)
        self.end(FINISHED)

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


def _unreadable(error: Exception) -> Failure:
    return Failure(_("The results cannot be read: {error}").format(error=error), _("repeat the reconstruction"))
