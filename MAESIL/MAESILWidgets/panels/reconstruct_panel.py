"""The upper half of the Reconstruct section: what to do, start, progress, end."""

from __future__ import annotations

import time
from typing import Any

from slicer.i18n import tr as _

from MAESILWidgets.jobs.commands import ReconstructOptions
from MAESILWidgets.jobs.job import CANCELLED, FINISHED
from MAESILWidgets.jobs.reconstruction_task import ReconstructionTask
from MAESILWidgets.jobs.system import memory_warning
from MAESILWidgets.messages import Failure
from MAESILWidgets.panels.choices import COVERAGES, MASKS, Choice, show_text
from MAESILWidgets.panels.section import JobSection
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


class ReconstructPanel(JobSection):
    """Starts and stops reconstructions."""

    def __init__(self, panel: Any) -> None:
        ui = panel.ui
        super().__init__(panel, ui.progressBar, ui.statusLabel)
        self.input, self.system = panel.input, panel.system
        self.mask = Choice(ui.maskSelector, MASKS, lambda value: self.set("mask", value))
        self.coverage = Choice(ui.coverageSelector, COVERAGES, lambda value: self.set("coverage", value))
        self.device = Choice(ui.deviceSelector, self.system.device_items(), lambda value: self.set("device", value))
        ui.applyButton.connect("clicked(bool)", lambda _checked: self.apply())
        ui.cancelButton.connect("clicked(bool)", lambda _checked: self.cancel())

    def update(self) -> None:
        parameters = self.parameters
        if parameters is None:
            return
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
        found = self.input.problem() or self.missing_packages()
        if found:
            return found
        if self.parameters.coverage == "complete" and self.parameters.painted is not None:
            return _("Painted patches are hidden in every pass: choose single coverage, or set Painted to Nothing")
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

    def apply(self) -> None:
        """Start."""
        try:
            painted = self.panel.paint.label_map()
        except ValueError as error:
            show_text(self.ui.statusLabel, f"⚠ {error}")
            return
        self._began = time.monotonic()
        callbacks = {"on_progress": self._progress, "on_log": self.panel.log, "on_end": self._ended}
        self.run(
            lambda: ReconstructionTask(self.parameters.inputVolume, self.options(), painted, **callbacks),
            _("The reconstruction could not be started."),
        )

    def cancel(self) -> None:
        """Stop."""
        self.bar.setFormat(_("Stopping..."))
        self.ui.cancelButton.enabled = False
        super().cancel()

    def _progress(self, share: float, stage: str, eta_s: float | None) -> None:
        self.bar.value = int(1000 * share)
        text = STAGES.get(stage, stage)
        passed = time.monotonic() - self._began
        if share > 0.2:
            text += _(", about {s:.0f} s left").format(s=max(1.0, passed * (1 - share) / share))
        self.bar.setFormat(f"{text} (%p%)")
        self.panel.tell(f"{text} ({share:.0%})")

    def _ended(self, state: str, text_node: Any, failure: Failure | None) -> None:
        if state == FINISHED:
            self.finish("\n".join(f"⚠ {warning}" for warning in self.task.warnings), _("the reconstruction is done"))
            self.panel.show_result(text_node)
        elif state == CANCELLED:
            self.finish(_("Cancelled. The scene is unchanged."))
        elif failure is not None:
            self.finish(f"⚠ {failure.text()}", failure.text())
