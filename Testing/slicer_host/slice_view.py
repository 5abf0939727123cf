"""Slice views: the real slice logic and displayable managers, rendered offscreen."""

from typing import Any

import shiboken6
import slicer
import vtk
from PySide6 import QtCore, QtGui, QtWidgets

from .rendered_view import RenderedView
from .widget_parts import Observing

MANAGERS = (
    "vtkMRMLVolumeGlyphSliceDisplayableManager",
    "vtkMRMLModelSliceDisplayableManager",
    "vtkMRMLCrosshairDisplayableManager",
    "vtkMRMLOrientationMarkerDisplayableManager",
    "vtkMRMLRulerDisplayableManager",
    "vtkMRMLScalarBarDisplayableManager",
    "vtkMRMLColorLegendDisplayableManager",
    "vtkMRMLSegmentationsDisplayableManager2D",
    "vtkMRMLMarkupsDisplayableManager",
    "vtkMRMLTransformsDisplayableManager2D",
)


def factory(application_logic: Any) -> Any:
    """The factory of displayable managers, filled on first use."""
    made = slicer.vtkMRMLSliceViewDisplayableManagerFactory.GetInstance()
    made.SetMRMLApplicationLogic(application_logic)
    for name in MANAGERS:
        if not made.IsDisplayableManagerRegistered(name):
            made.RegisterDisplayableManager(name)
    return made


class qMRMLSliceView(Observing, RenderedView):  # noqa: N801
    """One slice, drawn by the blended image of its logic and by the displayable managers."""

    def __init__(self, logic: Any, application_logic: Any) -> None:
        super().__init__()
        self._logic = logic
        self._renderer = vtk.vtkRenderer()
        self._renderer.GetActiveCamera().ParallelProjectionOn()
        self._window.AddRenderer(self._renderer)
        self._interactor = vtk.vtkGenericRenderWindowInteractor()
        self._interactor.SetRenderWindow(self._window)
        self._interactor.EnableRenderOff()
        self._interactor.SetInteractorStyle(vtk.vtkInteractorStyleUser())
        self._mapper = vtk.vtkImageMapper()
        self._mapper.SetColorWindow(255)
        self._mapper.SetColorLevel(127.5)
        self._picture = vtk.vtkActor2D()
        self._picture.SetMapper(self._mapper)
        self._picture.GetProperty().SetDisplayLocationToBackground()
        self._picture.VisibilityOff()
        self._renderer.AddViewProp(self._picture)
        self._annotation = vtk.vtkCornerAnnotation()
        self._annotation.SetMaximumFontSize(14)
        self._renderer.AddViewProp(self._annotation)
        self._group = factory(application_logic).InstantiateDisplayableManagers(self._renderer)
        self._group.SetMRMLDisplayableNode(logic.GetSliceNode())
        logic.SetDisplayableManagerGroup(self._group)
        self._style = slicer.vtkMRMLSliceViewInteractorStyle()
        self._style.SetInteractor(self._interactor)
        self._style.SetSliceLogic(logic)
        self._style.SetDisplayableManagers(self._group)
        self._interactor.Initialize()
        # as in Slicer, a new view has no width before the event loop has laid it out
        logic.ResizeSliceNode(0, 30)
        self._observe(logic, vtk.vtkCommand.ModifiedEvent, self._logic_changed)
        self._observe(self._group, vtk.vtkCommand.UpdateEvent, self._schedule)
        self._logic_changed()

    def _stop(self) -> None:
        """Let go of the scene."""
        self._stop_observing()
        self._timer.stop()
        self._style.SetDisplayableManagers(None)
        self._style.SetSliceLogic(None)
        self._logic.SetDisplayableManagerGroup(None)
        self._group.SetMRMLDisplayableNode(None)
        self._style.SetInteractor(None)
        self._window.RemoveRenderer(self._renderer)
        self._give_window_back()

    def _schedule(self, *_: Any) -> None:
        if shiboken6.isValid(self):
            self.scheduleRender()

    def _logic_changed(self, *_: Any) -> None:
        if not shiboken6.isValid(self):
            return
        connection = self._logic.GetImageDataConnection() if self._logic.HasInputs() else None
        if connection is not None:
            self._mapper.SetInputConnection(connection)
        self._picture.SetVisibility(connection is not None)
        self.scheduleRender()

    def _before_render(self) -> None:
        layers = []
        for letter, index in (("L", 2), ("F", 1), ("B", 0)):
            node = self._logic.GetNthLayerVolumeNode(index)
            if node is not None:
                layers.append(self._cut(f"{letter}: {node.GetName()}"))
        self._annotation.SetText(vtk.vtkCornerAnnotation.LowerLeft, "\n".join(layers))

    def _cut(self, text: str) -> str:
        """As in Slicer, a text that is too long for the view loses its middle."""
        room = (self.width() - 40) // 14
        return text if len(text) <= room else f"{text[: room // 2]}...{text[3 - room // 2 :]}"

    def resizeEvent(self, event: QtGui.QResizeEvent) -> None:
        super().resizeEvent(event)
        self._window.SetSize(max(1, self.width()), max(1, self.height()))
        self._interactor.SetSize(max(1, self.width()), max(1, self.height()))
        QtCore.QTimer.singleShot(0, self._take_size)

    def _take_size(self) -> None:
        if self._observed:
            self._logic.ResizeSliceNode(self.width(), self.height())

    def interactor(self) -> Any:
        return self._interactor

    def mrmlSliceNode(self) -> Any:
        return self._logic.GetSliceNode()


class qMRMLSliceControllerWidget(Observing, QtWidgets.QWidget):  # noqa: N801
    """The bar above a slice view: label in the view's colour, offset slider, offset."""

    def __init__(self, logic: Any) -> None:
        super().__init__()
        self._logic = logic
        self.setFixedHeight(22)
        row = QtWidgets.QHBoxLayout(self)
        row.setContentsMargins(0, 0, 4, 0)
        self._label = QtWidgets.QLabel()
        self._label.setAlignment(QtCore.Qt.AlignmentFlag.AlignCenter)
        self._label.setFixedWidth(30)
        self._slider = QtWidgets.QSlider(QtCore.Qt.Orientation.Horizontal)
        self._slider.setRange(0, 1000)
        self._value = QtWidgets.QLabel()
        row.addWidget(self._label)
        row.addWidget(self._slider, 1)
        row.addWidget(self._value)
        for thing in (logic.GetSliceNode(), logic):
            self._observe(thing, vtk.vtkCommand.ModifiedEvent, self._show)
        self._show()

    def _show(self, *_: Any) -> None:
        if not shiboken6.isValid(self):
            return
        node = self._logic.GetSliceNode()
        red, green, blue = (round(255 * channel) for channel in node.GetLayoutColor())
        dark = "white" if red + green + blue < 300 else "black"
        self._label.setStyleSheet(f"background: rgb({red},{green},{blue}); color: {dark}; font-weight: bold")
        self._label.setText(node.GetLayoutLabel() or "")
        self._value.setText(f"{node.GetOrientation()[:1]}: {node.GetSliceOffset():.1f}mm")
        bounds = [0.0, 0.0]
        self._logic.GetSliceOffsetRangeResolution(bounds, vtk.reference(0.0))
        low, high = bounds
        share = (node.GetSliceOffset() - low) / (high - low) if high > low else 0.5
        self._slider.setValue(round(1000 * share))


class qMRMLSliceWidget(QtWidgets.QWidget):  # noqa: N801
    """Controller and view of one slice node."""

    def __init__(self, node: Any, application_logic: Any) -> None:
        super().__init__()
        self._logic = slicer.vtkMRMLSliceLogic()
        self._logic.SetMRMLApplicationLogic(application_logic)
        self._logic.SetSliceNode(node)  # before the scene: the slice model takes its name from the node
        self._logic.SetMRMLScene(node.GetScene())
        application_logic.GetSliceLogics().AddItem(self._logic)
        self._application_logic = application_logic
        self._controller = qMRMLSliceControllerWidget(self._logic)
        self._view = qMRMLSliceView(self._logic, application_logic)
        column = QtWidgets.QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(0)
        column.addWidget(self._controller)
        column.addWidget(self._view, 1)
        self.setObjectName(f"qMRMLSliceWidget{node.GetLayoutName()}")

    def _stop(self) -> None:
        self._controller._stop_observing()
        self._view._stop()
        self._application_logic.GetSliceLogics().RemoveItem(self._logic)
        self._logic.SetMRMLScene(None)

    def sliceView(self) -> qMRMLSliceView:
        return self._view

    def sliceLogic(self) -> Any:
        return self._logic

    def mrmlSliceNode(self) -> Any:
        return self._logic.GetSliceNode()

    def mrmlSliceCompositeNode(self) -> Any:
        return self._logic.GetSliceCompositeNode()


ALL = (qMRMLSliceView, qMRMLSliceControllerWidget, qMRMLSliceWidget)
