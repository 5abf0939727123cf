"""The Input section: which volume, which checkpoint, what they are and whether they go together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from MAESILWidgets.jobs import checkpoints
from MAESILWidgets.panels.choices import Choice, show_text
from MAESILWidgets.panels.section import Section
from MAESILWidgets.scene.display import is_ours
from MAESILWidgets.scene.volume_info import VolumeInfo, describe


class InputPanel(Section):
    """Shows and checks the input."""

    def __init__(self, panel: Any) -> None:
        super().__init__(panel)
        self.volume = VolumeInfo("")
        self.checkpoint = checkpoints.Checkpoint("")
        self._described: tuple[Any, ...] = ()
        self._checkpoint_read: tuple[Any, ...] = ()
        self.choice = Choice(self.ui.checkpointSelector, {}, lambda path: self.set("checkpoint", path))
        self.ui.inputSelector.connect("currentNodeChanged(vtkMRMLNode*)", lambda _node: panel.update())
        self.ui.browseCheckpointButton.connect("clicked(bool)", lambda _checked: self._browse())
        self.ui.sampleButton.connect("clicked(bool)", lambda _checked: self.load_sample())

    def update(self) -> None:
        """Show what is chosen now."""
        if self.parameters is None:
            return
        if not self.choice.select(self.parameters.checkpoint):
            self.list_checkpoints()
        self._read_checkpoint()
        node = self.parameters.inputVolume
        self._describe(node, self.parameters.overlap)
        ours = [volume.GetID() for volume in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode") if is_ours(volume)]
        ui = self.ui
        for selector in (ui.inputSelector, ui.sceneVolumesSelector, ui.batchVolumesSelector, ui.paintedSelector):
            if list(selector.sortFilterProxyModel().hiddenNodeIDs) != ours:
                selector.sortFilterProxyModel().hiddenNodeIDs = ours
        show_text(self.ui.volumeInfoLabel, self.volume.line)
        show_text(self.ui.checkpointInfoLabel, self.checkpoint.line)
        problems = [t for t in (self.volume.refusal, self.checkpoint.problem, *self.volume.warnings) if t]
        show_text(self.ui.volumeWarningLabel, "\n".join(f"⚠ {text}" for text in problems))

    def problem(self) -> str:
        """Return why nothing can be reconstructed now; empty if it can."""
        if self.parameters is None or self.parameters.inputVolume is None:
            return _("Select a CT volume, or load the sample")
        return self.volume.refusal or self.checkpoint.problem

    def add_checkpoint(self, path: str, choose: bool = True) -> None:
        """Put a checkpoint into the selector, and choose it."""
        checkpoints.remember(path)
        if self.parameters is not None and choose:
            self.parameters.checkpoint = str(Path(path).resolve())
        self.list_checkpoints()
        self.panel.update()

    def load_sample(self) -> None:
        """Load the sample and choose it."""
        with slicer.util.tryWithErrorDisplay(_("The sample could not be loaded."), waitCursor=True):
            self.parameters.inputVolume = self.panel.logic.loadSample()

    def _browse(self) -> None:
        path = qt.QFileDialog.getOpenFileName(
            slicer.util.mainWindow(), _("Choose a checkpoint"), "", _("MAESIL checkpoints") + " (*.safetensors)"
        )
        if path:
            self.add_checkpoint(path)

    def list_checkpoints(self) -> None:
        """Look which of the remembered checkpoints are there; they may lie on a slow share, so not at every turn."""
        if self.parameters is None:
            return
        chosen = self.parameters.checkpoint
        paths = ["", *checkpoints.known()]
        if chosen not in paths:
            paths.append(chosen)
        self.choice.set_items({path: checkpoints.label(path) for path in paths})
        self.choice.select(chosen)

    def _read_checkpoint(self) -> None:
        path = self.parameters.checkpoint
        stamp = (path, Path(path).stat().st_mtime if path and Path(path).is_file() else 0)
        if stamp != self._checkpoint_read:
            self.checkpoint = checkpoints.describe(path)
            self._checkpoint_read = stamp

    def _describe(self, node: Any, overlap: float) -> None:
        if node is None:
            self.volume, self._described = VolumeInfo(""), ()
            return
        image = node.GetImageData()
        changed = (node.GetMTime(), image.GetMTime() if image else 0)
        stamp = (node.GetID(), node.GetName(), changed, self._checkpoint_read, overlap)
        if stamp != self._described:
            self.volume = describe(node, self.checkpoint.info, overlap)
            self._described = stamp
