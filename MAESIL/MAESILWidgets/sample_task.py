"""The sample: a made-up CT of a torso, generated in the background, so that no network is needed."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import slicer
from slicer.i18n import tr as _

from MAESILWidgets.job import FINISHED, BackgroundJob
from MAESILWidgets.messages import Failure

NAME = "MAESILSampleCT"


class SampleTask:
    """Generates the sample and loads it.

    Args:
        on_end: called once with the volume node, or with None and why it failed.
    """

    def __init__(self, on_end: Callable[[Any, Failure | None], None]) -> None:
        self.on_end = on_end
        self.node: Any = None
        self.is_running = True
        self.folder = Path(tempfile.mkdtemp(prefix="maesil-", dir=slicer.app.temporaryPath))
        self.path = self.folder / f"{NAME}.nrrd"
        self.job = BackgroundJob(
            ["sample", "--output", str(self.path), "--no-compress"],
            self.folder / "stop",
            on_event=lambda _: None,
            on_log=lambda _: None,
            on_end=self._ended,
        )

    def start(self) -> None:
        """Begin; the rest happens in the event loop."""
        try:
            self.job.start()
        except FileNotFoundError as error:
            self._finish(None, Failure(str(error)))

    def abandon(self) -> None:
        """End the worker now and remove its files."""
        self.on_end = lambda *_: None
        self.job.kill()
        self.job.wait(2000)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _ended(self, state: str, failure: Failure | None) -> None:
        if state != FINISHED:
            self._finish(None, failure or Failure(_("The sample was not loaded")))
            return
        try:
            node = slicer.util.loadVolume(str(self.path), {"name": NAME})
        except RuntimeError as error:
            self._finish(None, Failure(_("The sample cannot be loaded: {error}").format(error=error)))
            return
        # its file goes away; saving the scene then writes the volume as any new one
        if node.GetStorageNode() is not None:
            slicer.mrmlScene.RemoveNode(node.GetStorageNode())
        self._finish(node, None)

    def _finish(self, node: Any, failure: Failure | None) -> None:
        self.node, self.is_running = node, False
        shutil.rmtree(self.folder, ignore_errors=True)
        self.on_end(node, failure)
