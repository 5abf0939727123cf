"""The Explore section: what the frozen encoder knows of the current volume, and what can be done with it untrained."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import slicer
import vtk
from slicer.i18n import tr as _
from slicer.util import VTKObservationMixin

from MAESILWidgets.jobs.commands import STROKES, explore_arguments
from MAESILWidgets.jobs.job import CANCELLED, FINISHED
from MAESILWidgets.jobs.volume_task import VolumeTask, scratch_folder
from MAESILWidgets.messages import Failure
from MAESILWidgets.panels.choices import show_text
from MAESILWidgets.panels.section import JobSection
from MAESILWidgets.scene import features_scene, painted
from MAESILWidgets.scene.export import ijk_to_lps
from MAESILWidgets.scene.features_scene import VolumeFeatures

COMMANDS = {"features": _("Encoding"), "segment": _("Filling"), "surprise": _("Predicting")}
ENDS = {
    "features": _("the volume is encoded"),
    "segment": _("the segments are filled"),
    "surprise": _("the surprise map is ready"),
}
RARE = 2
"""Surprise that is tinted: above it lies 1 % of usual patients."""


class ExplorePanel(JobSection, VTKObservationMixin):
    """Computes features, and shows colors, similarity, segments from strokes, and surprise."""

    def __init__(self, panel: Any) -> None:
        ui = panel.ui
        JobSection.__init__(self, panel, ui.exploreProgressBar, ui.exploreStatusLabel)
        VTKObservationMixin.__init__(self)
        self.known: dict[tuple[Any, ...], VolumeFeatures] = {}
        self._then: Callable[[], None] | None = None
        self._strokes: list[tuple[str, tuple[float, ...]]] = []
        for button, command in ((ui.featuresButton, "features"), (ui.surpriseButton, "surprise")):
            # a default argument, because all loops share one variable
            button.connect(
                "clicked(bool)", lambda _checked, command=command: self._start(command, self.parameters.inputVolume)
            )
        ui.exploreCancelButton.connect("clicked(bool)", lambda _checked: self.cancel())
        ui.colorsButton.connect("clicked(bool)", lambda _checked: self.show_colors())
        ui.followCheckBox.connect("toggled(bool)", lambda _checked: self._watch())
        ui.findButton.connect("clicked(bool)", lambda _checked: self.find())
        ui.fillButton.connect("clicked(bool)", lambda _checked: self.fill())
        for selector in (ui.otherSelector, ui.strokesSelector):
            selector.connect("currentNodeChanged(vtkMRMLNode*)", lambda _node: self.update())

    def update(self) -> None:
        if self.parameters is None:
            return
        problem = self.panel.input.problem() or self.missing_packages()
        is_free, is_known = not problem and self.task is None, not problem and self.current is not None
        ui = self.ui
        ui.featuresButton.enabled = is_free and not is_known
        ui.surpriseButton.enabled = is_free
        ui.exploreCancelButton.enabled = self.task is not None
        ui.colorsButton.enabled = ui.followCheckBox.enabled = is_known
        other, strokes = ui.otherSelector.currentNode(), ui.strokesSelector.currentNode()
        ui.findButton.enabled = is_known and self.task is None and other is not None
        ui.fillButton.enabled = is_known and self.task is None and len(painted.segments(strokes)) > 1
        ui.featuresButton.toolTip = problem or _("Compute the encoder's features of the selected volume.")

    @property
    def current(self) -> VolumeFeatures | None:
        """Features of the current volume, if they were computed."""
        return self.known.get(self._key(self.parameters.inputVolume))

    def show_colors(self) -> None:
        """Show the principal components as colors."""
        if self.current is not None:
            self.panel.leave_views()
            features_scene.show_over(self.current.node, self.current.show_colors())

    def find(self) -> None:
        """Put a point on the best match, in another volume, of the place under the crosshair."""
        features, other = self.current, self.ui.otherSelector.currentNode()
        query = features.query(self._crosshair()) if features is not None else None
        if features is None or query is None:
            show_text(self.status, _("Hold Shift and move the crosshair into the volume first"))
            return
        if self._key(other) not in self.known:
            self._then = self.find
            self._start("features", other)
            return
        point = self.known[self._key(other)].best_match(query)
        features_scene.mark(other, point)
        self.panel.leave_views()
        features_scene.show_over(other, None)
        slicer.modules.markups.logic().JumpSlicesToLocation(*point, True)
        where = " ".join(f"{x:.1f}" for x in point)
        show_text(self.status, _("Best match: R A S = {where} mm").format(where=where))

    def fill(self) -> None:
        """Fill the current volume's segments from what is painted of them."""
        volume, node = self.parameters.inputVolume, self.ui.strokesSelector.currentNode()
        try:
            strokes = painted.label_map(node, "", volume)
            values = np.unique(slicer.util.arrayFromVolume(strokes))
            if np.count_nonzero(values) < 2:
                raise ValueError(_("Paint in two or more segments, such as a structure and its surroundings"))
        except ValueError as error:
            show_text(self.status, f"⚠ {error}")
            return
        segments = node.GetSegmentation()
        self._strokes = [(name, segments.GetSegment(one).GetColor()) for one, name in painted.segments(node).items()]
        self._start("segment", volume, strokes)

    def stop(self) -> None:
        """End the worker at once and forget all features: the scene, the module or Slicer is closing."""
        super().stop()
        self.removeObservers()
        for features in self.known.values():
            shutil.rmtree(features.folder, ignore_errors=True)
        self.known.clear()

    def _start(self, command: str, node: Any, strokes: Any = None) -> None:
        p, key = self.parameters, self._key(node)

        def make_task() -> VolumeTask:
            # segments need the features, computed before or on the way
            folder = self.known[key].folder if command == "segment" and key in self.known else scratch_folder()
            self._command, self._key_of_task = command, key
            return VolumeTask(
                node,
                lambda volume, output: explore_arguments(command, volume, output, p.checkpoint, p.device),
                folder,
                None if strokes is None else (strokes, STROKES),
                on_progress=self._progress,
                on_log=self.panel.log,
                on_end=self._ended,
            )

        self.bar.setFormat(f"{COMMANDS[command]} (%p%)")
        self.run(make_task, _("The task could not be started."))

    def _progress(self, share: float, _stage: str, _eta_s: float | None) -> None:
        self.bar.value = int(1000 * share)
        self.panel.tell(f"{COMMANDS[self._command]} ({share:.0%})")

    def _ended(self, state: str, failure: Failure | None) -> None:
        from MAESILLib.runtime.errors import MAESILError

        task, self.task = self.task, None
        command = self._command
        then, self._then = self._then, None
        text = "\n".join(f"⚠ {warning}" for warning in task.warnings)
        if state == FINISHED:
            try:
                self._load(task.node, task.output)
            except (OSError, RuntimeError, ValueError, MAESILError) as error:
                failure = Failure(_("The results cannot be read: {error}").format(error=error), _("try again"))
        if state == CANCELLED:
            text = _("Cancelled. The scene is unchanged.")
        elif failure is not None:
            text = f"⚠ {failure.text()}"
        if command == "surprise" or (command == "features" and self._key_of_task not in self.known):
            shutil.rmtree(task.output, ignore_errors=True)
        self.finish(text, failure.text() if failure is not None else ENDS[command] if state == FINISHED else text)
        if then is not None and state == FINISHED and failure is None:
            then()

    def _load(self, volume: Any, output: Path) -> None:
        if self._command == "features":
            self.known[self._key_of_task] = VolumeFeatures(volume, output)
            self._watch()
            return
        if self.panel.is_open:
            self.panel.leave_views()
        if self._command == "surprise":
            node = features_scene.add_file(output / "surprise.nrrd", volume, "surprise")
            features_scene.tint(node, RARE, 2 * RARE)
            if self.panel.is_open:
                features_scene.show_over(volume, node)
            return
        features_scene.add_segments(output / "volume.seg.nrrd", volume, self._strokes)
        for number, (name, _color) in enumerate(self._strokes, start=1):
            features_scene.add_file(output / f"volume-{number}.nrrd", volume, f"probability of {name}")

    def _watch(self) -> None:
        """Let the similarity map follow the crosshair, if that is wanted."""
        self.removeObservers()
        if self.ui.followCheckBox.checked and self.current is not None:
            crosshair = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLCrosshairNode")
            self.addObserver(crosshair, vtk.vtkCommand.ModifiedEvent, self._crosshair_moved)
            self._crosshair_moved()

    def _crosshair_moved(self, caller: Any = None, event: Any = None) -> None:
        features = self.current
        query = features.query(self._crosshair()) if features is not None and features.node is not None else None
        if features is None or query is None:
            return
        node = features.show_similarity(query)
        views = slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")
        if not any(view.GetForegroundVolumeID() == node.GetID() for view in views):
            self.panel.leave_views()
            features_scene.show_over(features.node, node)
            # it is not offered
            self.panel.input.update()

    def _crosshair(self) -> tuple[float, float, float]:
        x, y, z = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLCrosshairNode").GetCrosshairRAS()
        return x, y, z

    def _key(self, node: Any) -> tuple[Any, ...]:
        """Tell a state of a volume under a checkpoint from others."""
        if node is None or node.GetImageData() is None:
            return ()
        place = np.round(ijk_to_lps(node), 6).tobytes()
        return node.GetID(), node.GetImageData().GetMTime(), place, self.parameters.checkpoint
