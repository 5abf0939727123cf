"""The Explore section: what the frozen encoder knows of the current volume, and what can be done with it untrained."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import slicer
import vtk
from slicer.i18n import tr as _
from slicer.util import VTKObservationMixin

from MAESILWidgets.jobs import running
from MAESILWidgets.jobs.commands import STROKES, explore_arguments
from MAESILWidgets.jobs.job import CANCELLED, FINISHED
from MAESILWidgets.jobs.system import System
from MAESILWidgets.jobs.volume_task import VolumeTask, scratch_folder
from MAESILWidgets.messages import Failure
from MAESILWidgets.panels.choices import show_text
from MAESILWidgets.panels.input_panel import InputPanel
from MAESILWidgets.scene import features_scene, painted
from MAESILWidgets.scene.export import ijk_to_lps
from MAESILWidgets.scene.features_scene import VolumeFeatures

COMMANDS = {"features": _("Encoding"), "segment": _("Filling"), "surprise": _("Predicting")}
ENDS = {
    "features": _("the volume is encoded"),
    "segment": _("the segments are filled"),
    "surprise": _("the surprise is there"),
}
RARE = 2
"""Surprise that is tinted: above it lies 1 % of usual patients."""


class ExplorePanel(VTKObservationMixin):
    """Computes features, and shows colors, similarity, segments from strokes, and surprise.

    Args:
        ui: the widgets of MAESIL.ui.
        to_own_views: leaves our nine views for the user's own.
        tell: called with a line of progress, and with how it ended.
        is_open: says whether the user sees the module: what ends meanwhile leaves the views of another one alone.
    """

    def __init__(
        self,
        ui: Any,
        input_panel: InputPanel,
        system: System,
        on_log: Callable[[str], None],
        to_own_views: Callable[[], None],
        tell: Callable[[str], None],
        is_open: Callable[[], bool],
    ) -> None:
        VTKObservationMixin.__init__(self)
        self.ui, self.input, self.system = ui, input_panel, system
        self.on_log, self.to_own_views, self.tell, self.is_open = on_log, to_own_views, tell, is_open
        self.parameters: Any = None
        self.task: Any = None
        self.known: dict[tuple[Any, ...], VolumeFeatures] = {}
        self._then: Callable[[], None] | None = None
        self._strokes: list[tuple[str, tuple[float, ...]]] = []
        ui.featuresButton.connect("clicked(bool)", lambda _checked: self.compute())
        ui.exploreCancelButton.connect("clicked(bool)", lambda _checked: self.cancel())
        ui.colorsButton.connect("clicked(bool)", lambda _checked: self.show_colors())
        ui.followCheckBox.connect("toggled(bool)", lambda _checked: self._watch())
        ui.findButton.connect("clicked(bool)", lambda _checked: self.find())
        ui.fillButton.connect("clicked(bool)", lambda _checked: self.fill())
        ui.surpriseButton.connect("clicked(bool)", lambda _checked: self.surprise())
        for selector in (ui.otherSelector, ui.strokesSelector):
            selector.connect("currentNodeChanged(vtkMRMLNode*)", lambda _node: self.update())
        ui.exploreStatusLabel.setVisible(False)

    def update(self) -> None:
        """Show what can be done."""
        if self.parameters is None:
            return
        problem = self.input.problem() or (
            _("Install the Python packages in the Advanced section") if self.system.missing() else ""
        )
        is_free, is_known = not problem and self.task is None, not problem and self.current is not None
        ui = self.ui
        ui.featuresButton.enabled = is_free and not is_known
        ui.surpriseButton.enabled = is_free
        ui.exploreCancelButton.enabled = self.task is not None
        ui.colorsButton.enabled = ui.followCheckBox.enabled = is_known
        other, strokes = ui.otherSelector.currentNode(), ui.strokesSelector.currentNode()
        ui.findButton.enabled = is_known and self.task is None and other is not None
        ui.fillButton.enabled = is_known and self.task is None and len(painted.segments(strokes)) > 1
        ui.featuresButton.toolTip = problem or _("Let the encoder describe every place of the selected volume.")

    @property
    def current(self) -> VolumeFeatures | None:
        """Features of the current volume, if they were computed."""
        return self.known.get(self._key(self.parameters.inputVolume))

    def compute(self) -> None:
        """Compute features of the current volume."""
        self._start("features", self.parameters.inputVolume)

    def show_colors(self) -> None:
        """Show the principal components as colors."""
        if self.current is not None:
            self.to_own_views()
            features_scene.show_over(self.current.node, self.current.show_colors())

    def find(self) -> None:
        """Put a point on the best match, in another volume, of the place under the crosshair."""
        features, other = self.current, self.ui.otherSelector.currentNode()
        query = features.query(self._crosshair()) if features is not None else None
        if features is None or query is None:
            show_text(self.ui.exploreStatusLabel, _("Hold Shift and move the crosshair into the volume first"))
            return
        if self._key(other) not in self.known:
            self._then = self.find
            self._start("features", other)
            return
        point = self.known[self._key(other)].best_match(query)
        features_scene.mark(other, point)
        self.to_own_views()
        features_scene.show_over(other, None)
        slicer.modules.markups.logic().JumpSlicesToLocation(*point, True)
        where = " ".join(f"{x:.1f}" for x in point)
        show_text(self.ui.exploreStatusLabel, _("Best match: R A S = {where} mm").format(where=where))

    def fill(self) -> None:
        """Fill the current volume's segments from what is painted of them."""
        volume, node = self.parameters.inputVolume, self.ui.strokesSelector.currentNode()
        try:
            strokes = painted.label_map(node, "", volume)
            values = np.unique(slicer.util.arrayFromVolume(strokes))
            if np.count_nonzero(values) < 2:
                raise ValueError(_("Paint in two segments or more, as in a structure and around it"))
        except ValueError as error:
            show_text(self.ui.exploreStatusLabel, f"⚠ {error}")
            return
        segments = node.GetSegmentation()
        self._strokes = [(name, segments.GetSegment(one).GetColor()) for one, name in painted.segments(node).items()]
        self._start("segment", volume, strokes)

    def surprise(self) -> None:
        """Show where the current volume is not what its surroundings let the model expect."""
        self._start("surprise", self.parameters.inputVolume)

    def cancel(self) -> None:
        """Stop."""
        if self.task is not None:
            self.task.cancel()

    def stop(self) -> None:
        """End the worker at once and forget all features: the scene, the module or Slicer is closing."""
        if self.task is not None:
            self.task.abandon()
            self.task = None
        self.removeObservers()
        for features in self.known.values():
            shutil.rmtree(features.folder, ignore_errors=True)
        self.known.clear()

    def _start(self, command: str, node: Any, strokes: Any = None) -> None:
        with slicer.util.tryWithErrorDisplay(_("It could not be started."), waitCursor=False):
            known = self.known.get(self._key(node))
            is_of_features = command == "segment" and known is not None
            folder = known.folder if is_of_features else scratch_folder()
            show_text(self.ui.exploreStatusLabel, "")
            self.ui.exploreProgressBar.setVisible(True)
            self.ui.exploreProgressBar.setFormat(f"{COMMANDS[command]} (%p%)")
            p, self._command = self.parameters, command
            task = VolumeTask(
                node,
                lambda volume, output: explore_arguments(command, volume, output, p.checkpoint, p.device),
                folder,
                None if strokes is None else (strokes, STROKES),
                on_progress=self._progress,
                on_log=self.on_log,
                on_end=self._ended,
            )
            self._key_of_task = self._key(node)
            self.task = task
            running.start(task)
        self.update()

    def _progress(self, share: float, _stage: str, _eta_s: float | None) -> None:
        self.ui.exploreProgressBar.value = int(1000 * share)
        self.tell(f"{COMMANDS[self._command]} ({share:.0%})")

    def _ended(self, state: str, failure: Failure | None) -> None:
        from MAESILLib.runtime.errors import MAESILError

        task, self.task = self.task, None
        then, self._then = self._then, None
        self.ui.exploreProgressBar.setVisible(False)
        text = "\n".join(f"⚠ {warning}" for warning in task.warnings)
        if state == FINISHED:
            try:
                self._load(task)
            except (OSError, RuntimeError, ValueError, MAESILError) as error:
                failure = Failure(_("The results cannot be read: {error}").format(error=error), _("repeat it"))
        if state == CANCELLED:
            text = _("Cancelled. The scene is unchanged.")
        elif failure is not None:
            text = f"⚠ {failure.text()}"
        if self._command == "surprise" or (self._command == "features" and self._key_of_task not in self.known):
            shutil.rmtree(task.output, ignore_errors=True)
        show_text(self.ui.exploreStatusLabel, text)
        self.tell(failure.text() if failure is not None else ENDS.get(self._command if state == FINISHED else "", text))
        self.update()
        if then is not None and state == FINISHED and failure is None:
            then()

    def _load(self, task: VolumeTask) -> None:
        volume = task.node
        if self._command == "features":
            self.known[self._key_of_task] = VolumeFeatures(volume, task.output)
            self._watch()
            return
        if self.is_open():
            self.to_own_views()
        if self._command == "surprise":
            node = features_scene.add_file(task.output / "surprise.nrrd", volume, "surprise")
            features_scene.tint(node, RARE, 2 * RARE)
            if self.is_open():
                features_scene.show_over(volume, node)
            return
        features_scene.add_segments(task.output / "volume.seg.nrrd", volume, self._strokes)
        for number, (name, _color) in enumerate(self._strokes, start=1):
            features_scene.add_file(task.output / f"volume-{number}.nrrd", volume, f"probability of {name}")

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
            self.to_own_views()
            features_scene.show_over(features.node, node)
            # it is not offered
            self.input.update()

    def _crosshair(self) -> tuple[float, float, float]:
        x, y, z = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLCrosshairNode").GetCrosshairRAS()
        return x, y, z

    def _key(self, node: Any) -> tuple[Any, ...]:
        """Tell a state of a volume under a checkpoint from others."""
        if node is None or node.GetImageData() is None:
            return ()
        place = np.round(ijk_to_lps(node), 6).tobytes()
        return node.GetID(), node.GetImageData().GetMTime(), place, self.parameters.checkpoint
