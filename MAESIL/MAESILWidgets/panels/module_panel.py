"""The panel as a whole: its sections, the scene's parameters, and what happens to the scene."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import qt
import slicer
import vtk
from slicer.util import VTKObservationMixin

from MAESILWidgets.jobs import running
from MAESILWidgets.jobs.system import System
from MAESILWidgets.panels.advanced_panel import AdvancedPanel
from MAESILWidgets.panels.batch_panel import BatchPanel
from MAESILWidgets.panels.choices import WholeHeight
from MAESILWidgets.panels.explore_panel import ExplorePanel
from MAESILWidgets.panels.input_panel import InputPanel
from MAESILWidgets.panels.paint_panel import PaintPanel
from MAESILWidgets.panels.reconstruct_panel import ReconstructPanel
from MAESILWidgets.panels.result_panel import ResultPanel
from MAESILWidgets.panels.train_panel import TrainPanel
from MAESILWidgets.scene import layout
from MAESILWidgets.scene.display import is_ours

ICONS = {
    "applyButton": "Run",
    "cancelButton": "Stop",
    "batchButton": "Run",
    "batchStopButton": "Stop",
    "trainButton": "Run",
    "resumeTrainButton": "Run",
    "stopTrainButton": "Stop",
    "layoutButton": "Layout3x3",
    "layoutBackButton": "LayoutBack",
    "outlinesCheckBox": "Outlines",
}


class ModulePanel(VTKObservationMixin):
    """Puts the sections together.

    Args:
        widget: what MAESIL.ui describes.
        logic: gives the parameter node and loads the sample.
        resource: path of a file in Resources.
        is_open: the module is the one that the user sees.
    """

    def __init__(self, widget: Any, logic: Any, resource: Callable[[str], str], is_open: bool) -> None:
        VTKObservationMixin.__init__(self)
        self.logic, self.is_open = logic, is_open
        self.ui = slicer.util.childWidgetVariables(widget)
        widget.setMRMLScene(slicer.mrmlScene)
        self._whole_height = WholeHeight()
        widget.installEventFilter(self._whole_height)
        layout.register()
        self.parameters: Any = None
        self._gui_tag: Any = None
        running.last_arguments.clear()
        self.views = layout.Views()
        self.system = System(self.update)
        self.input, self.paint = InputPanel(self), PaintPanel(self)
        self.reconstruct, self.batch, self.explore = ReconstructPanel(self), BatchPanel(self), ExplorePanel(self)
        self.train, self.advanced, self.results = TrainPanel(self), AdvancedPanel(self), ResultPanel(self)
        self.log = self.advanced.log
        # while the worker starts
        self.ui.applyButton.connect("clicked(bool)", lambda _checked: self.views.make())
        for name, icon in ICONS.items():
            getattr(self.ui, name).setIcon(qt.QIcon(resource(f"Icons/{icon}.png")))
        scene = slicer.mrmlScene
        self.addObserver(scene, scene.StartCloseEvent, self._scene_closes)
        self.addObserver(scene, scene.EndCloseEvent, self._scene_closed)
        self.addObserver(scene, scene.EndImportEvent, self._scene_imported)
        self.addObserver(scene, scene.NodeAddedEvent, self._node_added)
        self.addObserver(scene, scene.NodeRemovedEvent, self._node_removed)
        self.take_parameters()
        self.results.restore()
        self.system.refresh()
        if self.system.missing():
            self.ui.advancedSection.collapsed = False

    def close(self) -> None:
        """Stop everything: the module is reloaded, or Slicer closes."""
        self.stop_jobs()
        self.results.stop()
        self._set_parameters(None)
        self.removeObservers()

    def enter(self) -> None:
        """The module is opened."""
        self.is_open = True
        self.take_parameters()
        self.input.list_checkpoints()
        self.train.look_at_folders()
        self.results.watch_clicks()
        self.update()

    def exit(self) -> None:
        """Another module is opened; jobs keep running."""
        self.is_open = False

    def stop_jobs(self) -> None:
        """End every background process."""
        for one in (self.reconstruct, self.batch, self.explore, self.train, self.system):
            one.stop()

    def take_parameters(self) -> None:
        """Take the scene's parameters, made with the first volume as input where there are none."""
        if self.parameters is None:
            self._set_parameters(self.logic.getParameterNode())
        if not self.parameters.inputVolume and (found := volumes()):
            self.parameters.inputVolume = found[0]

    def update(self, caller: Any = None, event: Any = None) -> None:
        """Bring every section up to date."""
        if self.parameters is None:
            self.ui.applyButton.enabled = False
            return
        for section in (self.input, self.paint, self.reconstruct, self.batch, self.explore, self.train, self.advanced):
            section.update()

    def show_result(self, node: Any) -> None:
        """Choose a new result; show it unless the user is at work in another module."""
        self.results.open(node, self.is_open)

    def tell(self, text: str) -> None:
        """Show a text in Slicer's status bar while another module is in front."""
        if not self.is_open:
            slicer.util.showStatusMessage(f"MAESIL: {text}")

    def _set_parameters(self, parameters: Any) -> None:
        """Connect the sections to a parameter node, or to none."""
        if self.parameters is not None:
            self.parameters.disconnectGui(self._gui_tag)
            self.removeObserver(self.parameters, vtk.vtkCommand.ModifiedEvent, self.update)
        # what widgets say while they are filled is no choice of the user
        self.parameters = None
        if parameters is not None:
            # connectGui() does the same, but returns no tag up to Slicer 5.8, so nothing could be disconnected again
            widgets = vars(self.ui).values()
            bound = {widget.property("SlicerParameterName"): widget for widget in widgets}
            self._gui_tag = parameters.connectParametersToGui({name: w for name, w in bound.items() if name})
            self.addObserver(parameters, vtk.vtkCommand.ModifiedEvent, self.update)
        self.parameters = parameters
        self.input.list_checkpoints()
        self.results.update()
        self.update()

    def leave_views(self) -> None:
        """Return to the user's own views, if ours are shown."""
        if self.views.is_shown():
            self.results.back()

    def _scene_closes(self, caller: Any, event: Any) -> None:
        self.explore.stop()
        # what is loaded next would be seen nowhere
        self.leave_views()
        self.results.stop()
        self._set_parameters(None)

    def _scene_closed(self, caller: Any, event: Any) -> None:
        self.views.forget()
        if self.is_open:
            self.take_parameters()

    def _scene_imported(self, caller: Any, event: Any) -> None:
        """Take a loaded scene's parameters, results and views."""
        # anew: the wrapper keeps nodes that it read before the scene had them, as None
        self._set_parameters(None)
        self.take_parameters()
        self.results.restore()
        self.update()

    @vtk.calldata_type(vtk.VTK_OBJECT)  # type: ignore[untyped-decorator]
    def _node_added(self, caller: Any, event: Any, node: Any) -> None:
        """Notice a result, which a script may have made, or a CT; they are whole in the next turn of the event loop."""
        if node is not None and node.IsA("vtkMRMLTextNode"):
            qt.QTimer.singleShot(0, lambda: self.parameters is not None and self.results.update())
        elif node is not None and node.IsA("vtkMRMLScalarVolumeNode") and self.is_open:
            qt.QTimer.singleShot(0, self._take_only_volume)

    def _take_only_volume(self) -> None:
        if self.parameters is not None and len(volumes()) == 1:
            self.take_parameters()

    @vtk.calldata_type(vtk.VTK_OBJECT)  # type: ignore[untyped-decorator]
    def _node_removed(self, caller: Any, event: Any, node: Any) -> None:
        """Notice that a result may have lost a part."""
        if self.parameters is None or slicer.mrmlScene.IsClosing() or node is None:
            return
        if node.IsA("vtkMRMLVolumeNode") or node.IsA("vtkMRMLTextNode"):
            self.results.update()
            self.update()


def volumes() -> list[Any]:
    """Return the scalar volumes of the scene that are not results of ours."""
    nodes = slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")
    plain = (node for node in nodes if not node.IsA("vtkMRMLLabelMapVolumeNode") and not node.GetHideFromEditors())
    return [node for node in plain if not is_ours(node)]
