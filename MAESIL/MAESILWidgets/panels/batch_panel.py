"""The Batch section: several CTs, one after the other, with what the Reconstruct section asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import slicer
from slicer.i18n import tr as _

from MAESILWidgets.jobs import running
from MAESILWidgets.jobs.commands import batch_arguments
from MAESILWidgets.jobs.job import CANCELLED, FAILED, FINISHED, BackgroundJob
from MAESILWidgets.jobs.reconstruction_task import ReconstructionTask
from MAESILWidgets.messages import Failure, os_failure
from MAESILWidgets.panels.choices import DATA_SOURCES, Choice
from MAESILWidgets.panels.section import JobSection


class BatchPanel(JobSection):
    """Reconstructs checked volumes of the scene into the scene, or the CTs of a folder into another folder."""

    def __init__(self, panel: Any) -> None:
        ui = panel.ui
        super().__init__(panel, ui.batchProgressBar, ui.batchStatusLabel)
        self.waiting: list[str] = []
        self.count = 0
        self.failures: list[str] = []
        self.source = Choice(ui.batchSourceSelector, DATA_SOURCES, lambda _value: self.update())
        ui.batchVolumesSelector.connect("checkedNodesChanged()", lambda: self.update())
        for selector in (ui.batchFolderSelector, ui.batchOutputSelector):
            selector.connect("currentPathChanged(QString)", lambda _path: self.update())
        ui.batchButton.connect("clicked(bool)", lambda _checked: self.start())
        ui.batchStopButton.connect("clicked(bool)", lambda _checked: self.cancel())

    def update(self) -> None:
        if self.parameters is None:
            return
        ui, is_folder = self.ui, self.source.value() == "folder"
        for widget in (ui.batchFolderLabel, ui.batchFolderSelector, ui.batchOutputLabel, ui.batchOutputSelector):
            widget.setVisible(is_folder)
        for widget in (ui.batchVolumesLabel, ui.batchVolumesSelector):
            widget.setVisible(not is_folder)
        problem = self.problem()
        ui.batchButton.enabled = not problem and self.task is None
        ui.batchButton.toolTip = problem or _(
            "Reconstruct the CTs in turn, with the settings of the Reconstruct section."
        )
        ui.batchStopButton.enabled = self.task is not None

    def problem(self) -> str:
        """Return why Run is disabled; empty if it is not."""
        if missing := self.missing_packages():
            return missing
        if self.source.value() == "scene":
            return "" if self.ui.batchVolumesSelector.checkedNodes() else _("Check at least one volume of the scene")
        if self.parameters.painted is not None:
            return _("A painted segmentation belongs to one volume: set Painted to Nothing")
        if not Path(self.ui.batchFolderSelector.currentPath or "?").is_dir():
            return _("Choose the folder of CTs")
        return "" if self.ui.batchOutputSelector.currentPath else _("Choose the folder for the results")

    def start(self) -> None:
        """Start."""
        self.failures, self.count = [], 0
        self.begin()
        if self.source.value() == "scene":
            self.waiting = [node.GetID() for node in self.ui.batchVolumesSelector.checkedNodes()]
            self.count = len(self.waiting)
            self._next()
            return
        folder, output = (Path(s.currentPath) for s in (self.ui.batchFolderSelector, self.ui.batchOutputSelector))
        arguments = batch_arguments(folder, output, self.panel.reconstruct.options())
        callbacks = {"on_event": self._on_event, "on_log": self.panel.log, "on_end": self._ended}
        self.task = BackgroundJob(arguments, output / ".maesil-stop", **callbacks)
        try:
            running.start(self.task)
        except OSError as error:
            self._ended(FAILED, os_failure(error, output, _("choose another output folder")))
        self.update()

    def cancel(self) -> None:
        """Stop; what is done stays."""
        self.waiting = []
        super().cancel()

    def stop(self) -> None:
        """Slicer or the module is closing."""
        self.waiting = []
        super().stop()

    def _next(self) -> None:
        node = slicer.mrmlScene.GetNodeByID(self.waiting.pop(0))
        self._name, self._number = node.GetName(), self.count - len(self.waiting)
        # known before it is started: it may end at once
        self.task = ReconstructionTask(
            node,
            self.panel.reconstruct.options(),
            on_progress=lambda share, _stage, _eta: self._show(share),
            on_log=self.panel.log,
            on_end=lambda state, _text, failure: self._volume_ended(state, failure),
        )
        running.start(self.task)
        self.update()

    def _volume_ended(self, state: str, failure: Failure | None) -> None:
        if failure is not None:
            self.failures.append(f"{self._name}: {failure.text()}")
        self.waiting = [one for one in self.waiting if slicer.mrmlScene.GetNodeByID(one) is not None]
        if self.waiting:
            self._next()
        else:
            self._ended(CANCELLED if state == CANCELLED else FINISHED, None)

    def _on_event(self, event: dict[str, Any]) -> None:
        if event["event"] == "info" and event.get("what") == "input":
            self.waiting, self.count = [], int(event["inputs"])
            self._name, self._number = Path(event["path"]).name, int(event["number"])
        elif event["event"] == "progress" and self.count:
            self._show(float(event["fraction"]))
        elif event["event"] == "warning":
            self.failures.append(str(event["message"]))

    def _show(self, share: float) -> None:
        self.bar.value = int(1000 * (self._number - 1 + share) / self.count)
        text = _("{n} of {count}: {name}").format(n=self._number, count=self.count, name=self._name)
        self.bar.setFormat(text.replace("%", ""))
        self.panel.tell(text)

    def _ended(self, state: str, failure: Failure | None) -> None:
        ends = {FINISHED: _("Done."), CANCELLED: _("Stopped. Finished results are kept.")}
        lines = [f"⚠ {text}" for text in (*self.failures, *([failure.text()] if failure is not None else []))]
        self.finish("\n".join(filter(None, (ends.get(state), *lines))), _("the batch has ended"))
