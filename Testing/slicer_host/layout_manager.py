"""The layout manager: the real layout logic decides which views there are, the host builds their widgets."""

from typing import Any

import slicer
import vtk
from PySide6 import QtCore, QtWidgets

from . import plot_view, slice_view
from .widget_parts import Observing

VIEW_WIDGETS = {
    "vtkMRMLSliceNode": slice_view.qMRMLSliceWidget,
    "vtkMRMLPlotViewNode": plot_view.qMRMLPlotWidget,
    "vtkMRMLViewNode": plot_view.BlankView,
}
BOXES = {"horizontal": QtWidgets.QHBoxLayout, "vertical": QtWidgets.QVBoxLayout}


class qSlicerLayoutManager(Observing, QtCore.QObject):  # noqa: N801
    """Follows the layout node: one widget for each view node of the scene, arranged as the layout's XML says."""

    layoutChanged = QtCore.Signal(int)

    def __init__(self, viewport: QtWidgets.QWidget, application_logic: Any, scene: Any) -> None:
        super().__init__()
        self._viewport = viewport
        self._application_logic = application_logic
        self._scene = scene
        self._widgets: dict[Any, QtWidgets.QWidget] = {}
        self._making: list[Any] = []
        self._frame: QtWidgets.QWidget | None = None
        self._shown: tuple[int, str] = (-1, "")
        self._logic = slicer.vtkMRMLLayoutLogic()
        self._logic.SetMRMLApplicationLogic(application_logic)
        QtWidgets.QVBoxLayout(viewport).setContentsMargins(0, 0, 0, 0)
        for event in (scene.NodeAddedEvent, scene.NodeRemovedEvent):
            self._observe(scene, event, self._scene_changed)
        self._observe(scene, scene.EndBatchProcessEvent, self._update)
        self._logic.SetMRMLScene(scene)
        # the logic is told first (its observer has been there longer), so that the views exist
        self._observe(self._logic.GetLayoutNode(), vtk.vtkCommand.ModifiedEvent, self._update)
        self._scene_changed()

    def _stop(self) -> None:
        self._stop_observing()
        for widget in self._widgets.values():
            widget._stop()
        self._widgets.clear()
        self._logic.SetMRMLScene(None)

    def _view_nodes(self) -> list[Any]:
        every = (self._scene.GetNthNode(i) for i in range(self._scene.GetNumberOfNodes()))
        return [node for node in every if node.GetClassName() in VIEW_WIDGETS]

    def _scene_changed(self, *_: Any) -> None:
        """A widget for each view node."""
        nodes = self._view_nodes()
        for node in [known for known in self._widgets if known not in nodes]:
            widget = self._widgets.pop(node)
            widget._stop()
            widget.hide()
            widget.setParent(None)
            widget.deleteLater()
        for node in nodes:
            if node not in self._widgets and node not in self._making:
                self._making.append(node)  # making a slice logic adds nodes, which comes back here
                widget = VIEW_WIDGETS[node.GetClassName()](node, self._application_logic)
                widget.setParent(self._viewport)
                widget.hide()
                self._widgets[node] = widget
                self._making.remove(node)

    def _update(self, *_: Any) -> None:
        """Build the arrangement of the current layout where it is another than the one shown."""
        if self._scene.IsBatchProcessing():
            return
        self._scene_changed()
        node = self._logic.GetLayoutNode()
        current = (node.GetViewArrangement(), node.GetCurrentLayoutDescription() or "")
        mapped = [view for view in self._view_nodes() if view.IsMappedInLayout()]
        if current == self._shown and self._frame is not None and all(self._in_frame(view) for view in mapped):
            return
        changed = current[0] != self._shown[0]
        self._shown = current
        for widget in self._widgets.values():
            widget.hide()
            widget.setParent(self._viewport)
        if self._frame is not None:
            self._frame.hide()
            self._frame.setParent(None)
            self._frame.deleteLater()
        root = node.GetLayoutRootElement()
        self._frame = self._build(root) if root is not None else QtWidgets.QWidget()
        self._viewport.layout().addWidget(self._frame)
        self._frame.show()
        if changed:
            self.layoutChanged.emit(current[0])

    def _in_frame(self, view: Any) -> bool:
        widget = self._widgets.get(view)
        return widget is not None and self._frame is not None and self._frame.isAncestorOf(widget)

    def _build(self, element: Any) -> QtWidgets.QWidget:
        if element.GetName() == "view":
            view = self._logic.GetViewFromElement(element)
            widget = self._widgets.get(view)
            if widget is None:
                raise RuntimeError(f"layout: no view for {element.GetAttribute('singletontag')}")
            widget.show()
            return widget
        frame = QtWidgets.QWidget()
        layout = BOXES[element.GetAttribute("type")](frame)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(2)
        for item in (element.GetNestedElement(i) for i in range(element.GetNumberOfNestedElements())):
            content = self._build(item.GetNestedElement(0))
            layout.addWidget(content, max(1, int(item.GetAttribute("splitSize") or 1)))
        return frame

    # what modules call

    def layoutLogic(self) -> Any:
        return self._logic

    def setLayout(self, layout: int) -> None:
        self._logic.GetLayoutNode().SetViewArrangement(int(layout))

    def _kind(self, class_name: str) -> list[tuple[Any, Any]]:
        return [(node, widget) for node, widget in self._widgets.items() if node.GetClassName() == class_name]

    def sliceViewNames(self) -> tuple[str, ...]:
        return tuple(node.GetLayoutName() for node, _ in self._kind("vtkMRMLSliceNode"))

    def sliceWidget(self, name: str) -> Any:
        return next((w for node, w in self._kind("vtkMRMLSliceNode") if node.GetLayoutName() == name), None)

    def mrmlSliceLogics(self) -> Any:
        return self._application_logic.GetSliceLogics()

    def viewWidget(self, node: Any) -> Any:
        return self._widgets.get(node)

    layout = QtCore.Property(int, lambda self: self._logic.GetLayoutNode().GetViewArrangement(), setLayout)


ALL = (qSlicerLayoutManager,)
