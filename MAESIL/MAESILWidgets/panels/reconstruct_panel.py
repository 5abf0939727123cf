"""The upper half of the Reconstruct section: what to do, start, progress, end."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import slicer
from slicer.i18n import tr as _

from MAESILWidgets.jobs import running
from MAESILWidgets.jobs.commands import ReconstructOptions
from MAESILWidgets.jobs.job import CANCELLED, FINISHED
from MAESILWidgets.jobs.reconstruction_task import ReconstructionTask
from MAESILWidgets.jobs.system import System, memory_warning
from MAESILWidgets.messages import Failure
from MAESILWidgets.panels.choices import COVERAGES, MASKS, Choice, show_text
from MAESILWidgets.panels.input_panel import InputPanel
from MAESILWidgets.panels.paint_panel import PaintPanel
from MAESILWidgets.scene.volume_info import mask_ratio

STAGES = {
    "export": _("Writing the volume"),
    "start": _("Starting"),
    "read": _("Reading"),
    "reconstruct": _("Reconstructing"),
    "measure": _("Measuring"),
    "write": _("Writing results"),
    "load": _("Loading results"),
}


class ReconstructPanel:
    """Starts and stops reconstructions.

    Args:
        ui: the widgets of MAESIL.ui.
        on_result: called with the text node of a new result.
        tell: called with a line of progress, and with how it ended.
    """

    def __init__(
        self,
        ui: Any,
        input_panel: InputPanel,
        paint: PaintPanel,
        system: System,
        on_log: Callable[[str], None],
        on_result: Callable[[Any], None],
        tell: Callable[[str], None],
    ) -> None:
        self.ui, self.input, self.paint, self.system = ui, input_panel, paint, system
        self.on_log, self.on_result, self.tell = on_log, on_result, tell
        self.parameters: Any = None
        self.task: Any = None
        self.mask = Choice(ui.maskSelector, MASKS, lambda value: self._set("mask", value))
        self.coverage = Choice(ui.coverageSelector, COVERAGES, lambda value: self._set("coverage", value))
        self.device = Choice(ui.deviceSelector, system.device_items(), lambda value: self._set("device", value))
        ui.applyButton.connect("clicked(bool)", self.apply)
        ui.cancelButton.connect("clicked(bool)", self.cancel)
        ui.statusLabel.setVisible(False)

    def update(self) -> None:
        """Show what is chosen, and whether it can be done."""
        if self.parameters is None:
            self.ui.applyButton.enabled = False
            return
        parameters = self.parameters
        self.device.set_items(self.system.device_items(parameters.device))
        self.device.select(parameters.device)
        self.mask.select(parameters.mask)
        self.coverage.select(parameters.coverage)
        has_mask = parameters.mask != "none"
        self.ui.planeRatioSlider.enabled = has_mask
        self.ui.axisRatioSlider.enabled = has_mask
        share = mask_ratio(self.input.volume.grids, parameters.mask, parameters.planeRatio, parameters.axisRatio)
        text = _("{share:.1f} % of the patches").format(share=100 * share)
        painted = _(", and every patch with a painted voxel") if parameters.painted is not None else ""
        self.ui.hiddenShareLabel.text = text + painted
        problem = self.problem(share)
        hint = problem or memory_warning(self.input.volume, parameters.coverage)
        # what is wrong with volume or checkpoint is said there
        told = (self.input.volume.refusal, self.input.checkpoint.problem)
        show_text(self.ui.hintLabel, "" if hint in told else hint)
        is_missing = bool(self.system.missing())
        self.ui.applyButton.setVisible(not is_missing)
        self.ui.installHereButton.setVisible(is_missing)
        self.ui.applyButton.enabled = not problem and self.task is None
        self.ui.applyButton.toolTip = problem or _("Reconstruct the selected volume.")
        self.ui.cancelButton.enabled = self.task is not None

    def problem(self, share: float) -> str:
        """Return why Apply is disabled; empty if it is not."""
        found = self.input.problem()
        if found:
            return found
        if self.system.missing():
            return _("Install the Python packages in the Advanced section")
        if self.parameters.coverage == "complete" and self.parameters.painted is not None:
            return _("What is painted is hidden in every pass: choose single coverage, or nothing painted")
        if self.parameters.coverage == "complete" and share == 0:
            return _("This mask hides no patches: raise the ratios or use single coverage")
        return ""

    def options(self) -> ReconstructOptions:
        """Return what the panel asks for."""
        p = self.parameters
        ratios = (p.planeRatio, p.axisRatio)
        return ReconstructOptions(
            p.checkpoint, p.mask, *ratios, p.coverage, p.overlap, int(p.seed), p.device, p.completion
        )

    def apply(self, _checked: bool = False) -> None:
        """Start."""
        try:
            painted = self.paint.label_map()
        except ValueError as error:
            show_text(self.ui.statusLabel, f"⚠ {error}")
            return
        with slicer.util.tryWithErrorDisplay(_("The reconstruction could not be started."), waitCursor=False):
            self._began = time.monotonic()
            self.ui.progressBar.setVisible(True)
            show_text(self.ui.statusLabel, "")
            callbacks = {"on_progress": self._progress, "on_log": self.on_log, "on_end": self._ended}
            task = ReconstructionTask(self.parameters.inputVolume, self.options(), painted, **callbacks)
            self.task = running.start(task)
        if self.task is not None and not self.task.is_running:
            # it ended while it was being started
            self.task = None
        if self.task is None:
            self.ui.progressBar.setVisible(False)
        self.update()

    def cancel(self, _checked: bool = False) -> None:
        """Stop."""
        if self.task is not None:
            self.ui.progressBar.setFormat(_("Stopping..."))
            self.ui.cancelButton.enabled = False
            self.task.cancel()

    def stop(self) -> None:
        """End the worker at once: Slicer or the module is closing."""
        if self.task is not None:
            self.task.abandon()
            self.task = None

    def _set(self, name: str, value: str) -> None:
        setattr(self.parameters, name, value)

    def _progress(self, share: float, stage: str, eta_s: float | None) -> None:
        bar = self.ui.progressBar
        bar.value = int(1000 * share)
        text = STAGES.get(stage, stage)
        passed = time.monotonic() - self._began
        if share > 0.2:
            text += _(", about {s:.0f} s left").format(s=max(1.0, passed * (1 - share) / share))
        bar.setFormat(f"{text} (%p%)")
        self.tell(f"{text} ({share:.0%})")

    def _ended(self, state: str, text_node: Any, failure: Failure | None) -> None:
        warnings = list(getattr(self.task, "warnings", []))
        self.task = None
        self.ui.progressBar.setVisible(False)
        self.ui.progressBar.value = 0
        if state == FINISHED:
            show_text(self.ui.statusLabel, "\n".join(f"⚠ {warning}" for warning in warnings))
            self.on_result(text_node)
            self.tell(_("the reconstruction is done"))
        elif state == CANCELLED:
            show_text(self.ui.statusLabel, _("Cancelled. The scene is unchanged."))
        elif failure is not None:
            show_text(self.ui.statusLabel, f"⚠ {failure.text()}")
            self.tell(failure.text())
        self.update()
