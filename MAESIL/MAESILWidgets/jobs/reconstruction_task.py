"""One reconstruction from click to nodes: write the volume, run the worker, read its results back.

What is added to the scene is taken out again unless everything could be read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import qt
import slicer
from slicer.i18n import tr as _

from MAESILWidgets.jobs.commands import ReconstructOptions, painted_file, reconstruct_arguments
from MAESILWidgets.jobs.job import FAILED, FINISHED
from MAESILWidgets.jobs.volume_task import VolumeTask
from MAESILWidgets.messages import Failure
from MAESILWidgets.scene.loading import ImageFill
from MAESILWidgets.scene.results_scene import VOLUMES, ResultBuilder


class ReconstructionTask(VolumeTask):
    """Reconstructs a volume node in the background.

    Args:
        node: the CT.
        painted: label map volume in the CT's own space; what is painted there is hidden.
        on_end: called once with the state, the result's text node (or None), and the Failure (or None).
    """

    STAGES: ClassVar[dict[str, float]] = {
        "export": 0.03,
        "start": 0.17,
        "read": 0.07,
        "reconstruct": 0.45,
        "measure": 0.15,
        "write": 0.05,
        "load": 0.08,
    }
    MAIN = "measure"

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
        self.options = options
        self.result: Any = None
        self.loader: Any = None
        self._builder: ResultBuilder | None = None
        self._pieces: Iterator[None] | None = None

        def arguments(volume: Path, output: Path) -> list[str]:
            return reconstruct_arguments(volume, node.GetName(), output, options)

        super().__init__(node, arguments, None, labels, on_progress=on_progress, on_log=on_log, on_end=on_end)

    def load(self) -> None:
        """Read the results, a piece a turn of the event loop."""
        self._pieces = self._load_pieces()
        self.loader = qt.QTimer()
        self.loader.connect("timeout()", self._load_piece)
        self.loader.start(0)

    def outcome(self) -> tuple[Any, ...]:
        """Return what ``on_end`` is told."""
        return self.state, self.result, self.failure

    def end(self, state: str, failure: Failure | None = None) -> None:
        """End; of a result that is not whole nothing is left."""
        if state != FINISHED:
            self.result = None
        # lets go of the files
        self._pieces = None
        if self.loader is not None:
            self.loader.stop()
            self.loader.deleteLater()
            self.loader = None
        if self._builder is not None:
            self._builder.discard()
            self._builder = None
        super().end(state, failure)

    def _load_piece(self) -> None:
        try:
            next(self._pieces)
        except StopIteration:
            self._builder = None
            self.progress("load", 1.0)
            self.end(FINISHED)
        except (OSError, RuntimeError, ValueError) as error:
            text = _("The results cannot be read: {error}").format(error=error)
            self.end(FAILED, Failure(text, _("try again")))

    def _load_pieces(self) -> Iterator[None]:
        metrics = json.loads((self.output / "metrics.json").read_text(encoding="utf-8"))
        builder = self._builder = ResultBuilder(self.node, self.options.title())
        shape = slicer.util.arrayFromVolume(self.node).shape
        for number, kind in enumerate(VOLUMES, start=1):
            fill = ImageFill(self.output / f"{kind}.nrrd", shape)
            yield
            while not fill.step():
                yield
            builder.add(kind, fill.finish())
            self.progress("load", number / (len(VOLUMES) + 1))
            yield
        self.removeObservers()
        self.result = builder.finish(metrics)
        # whoever is told shows it: in a turn of its own, because that takes a while too
        yield
