"""The qMRML widgets that panels use; they follow a real MRML scene."""

from typing import Any

import shiboken6
import vtk
from PySide6 import QtCore, QtWidgets

from .ui_loader import register
from .widget_parts import Observing, Stored, stored, with_setters

SCENE_SIGNAL = {"mrmlSceneChanged(vtkMRMLScene*)": "mrmlSceneChanged(PyObject)"}


class SceneFollower(Observing):
    """Mixin: a widget with a scene, and observers that end with the widget."""

    _scene: Any = None

    def mrmlScene(self) -> Any:
        return self._scene

    def setMRMLScene(self, scene: Any) -> None:
        if scene is self._scene:
            return
        self._stop_observing()
        self._scene = scene
        if scene is not None:
            for event in self._scene_events():
                self._observe(scene, event, _Weak(self))
        self._scene_changed()
        self.mrmlSceneChanged.emit(scene)

    def _scene_events(self) -> list[int]:
        return []

    def _scene_changed(self) -> None:
        pass

    def _refresh(self) -> None:
        pass


class _Weak:
    """Refreshes a widget as long as Qt has it."""

    def __init__(self, widget: Any) -> None:
        self.widget = widget

    def __call__(self, *_: Any) -> None:
        if shiboken6.isValid(self.widget):
            self.widget._refresh()


class _Renamed(_Weak):
    """Refreshes a node combo box only where a node's entry has changed: volumes are modified all the time."""

    def __call__(self, node: Any, *_: Any) -> None:
        if shiboken6.isValid(self.widget):
            box = self.widget
            entry = box._ids.index(node.GetID()) if node.GetID() in box._ids else -1
            if entry < 0 or box._box.itemText(entry) != node.GetName() or not box._shows(node):
                box._refresh()


@register
class qMRMLWidget(SceneFollower, QtWidgets.QWidget):  # noqa: N801
    """A widget with a scene that it tells to what is connected to it."""

    mrmlSceneChanged = QtCore.Signal(object)
    _signal_aliases = SCENE_SIGNAL


class qMRMLSortFilterProxyModel(Stored, QtCore.QObject):  # noqa: N801
    """Nodes that a selector leaves out."""

    hiddenNodeIDs = stored("QStringList", "hiddenNodeIDs", [])

    def _property_changed(self, name: str) -> None:
        self.parent()._refresh()


@register
@with_setters
class qMRMLNodeComboBox(SceneFollower, Stored, QtWidgets.QWidget):  # noqa: N801
    """Chooses among the scene's nodes of some types. Never selects a node by itself; disabled without a scene."""

    mrmlSceneChanged = QtCore.Signal(object)
    currentNodeChanged = QtCore.Signal((object,), (bool,))
    _signal_aliases = {  # noqa: RUF012
        **SCENE_SIGNAL,
        "currentNodeChanged(vtkMRMLNode*)": "currentNodeChanged(PyObject)",
    }

    nodeTypes = stored("QStringList", "nodeTypes", [])
    noneEnabled = stored(bool, "noneEnabled", False)
    noneDisplay = stored(str, "noneDisplay", "")
    addEnabled = stored(bool, "addEnabled", True)
    removeEnabled = stored(bool, "removeEnabled", True)
    renameEnabled = stored(bool, "renameEnabled", False)
    showChildNodeTypes = stored(bool, "showChildNodeTypes", True)

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        self._current = ""
        self._ids: list[str] = []
        self._watched: dict[Any, int] = {}
        super().__init__(parent)
        self._model = qMRMLSortFilterProxyModel(self)
        self._box = QtWidgets.QComboBox()
        row = QtWidgets.QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.addWidget(self._box)
        self._box.activated.connect(lambda index: self._select(self._ids[index]))
        self.setEnabled(False)

    def _scene_events(self) -> list[int]:
        scene = self._scene
        return [scene.NodeAddedEvent, scene.NodeRemovedEvent, scene.EndBatchProcessEvent]

    def _scene_changed(self) -> None:
        self.setEnabled(self._scene is not None)
        self._refresh()

    def _property_changed(self, name: str) -> None:
        self._refresh()

    def sortFilterProxyModel(self) -> qMRMLSortFilterProxyModel:
        return self._model

    def _shows(self, node: Any) -> bool:
        if node.GetHideFromEditors() or node.GetID() in self._model.hiddenNodeIDs:
            return False
        if self.showChildNodeTypes:
            return any(node.IsA(kind) for kind in self.nodeTypes)
        return node.GetClassName() in self.nodeTypes

    def _nodes(self) -> list[Any]:
        if self._scene is None:
            return []
        by_kind = (self._scene.GetNodesByClass(kind) for kind in self.nodeTypes)
        found = {node.GetID(): node for nodes in by_kind for node in nodes}
        return [node for node in found.values() if self._shows(node)]

    def _refresh(self) -> None:
        if self._scene is not None and self._scene.IsBatchProcessing():
            return
        nodes = self._nodes()
        self._watch_names(nodes)
        self._ids = ([""] if self.noneEnabled else []) + [node.GetID() for node in nodes]
        self._box.clear()
        self._box.setPlaceholderText(self.noneDisplay)
        self._box.addItems(([self.noneDisplay or "None"] if self.noneEnabled else []) + [n.GetName() for n in nodes])
        if self._current and self._current not in self._ids:
            self._select("")
        self._show_current()

    def _watch_names(self, nodes: list[Any]) -> None:
        """Observe what is listed, for its name and for its being hidden."""
        for node, tag in self._watched.items():
            node.RemoveObserver(tag)
        self._watched = {node: node.AddObserver(vtk.vtkCommand.ModifiedEvent, _Renamed(self)) for node in nodes}

    def _stop_observing(self) -> None:
        self._watch_names([])
        super()._stop_observing()

    def _show_current(self) -> None:
        self._box.setCurrentIndex(self._ids.index(self._current) if self._current in self._ids else -1)

    def _select(self, node_id: str) -> None:
        if node_id == self._current:
            return
        self._current = node_id
        self._show_current()
        node = self.currentNode()
        self.currentNodeChanged[object].emit(node)
        self.currentNodeChanged[bool].emit(node is not None)

    def currentNode(self) -> Any:
        return self._scene.GetNodeByID(self._current) if self._scene is not None and self._current else None

    def setCurrentNode(self, node: Any) -> None:
        node_id = node.GetID() if node is not None else ""
        self._select(node_id if node_id in self._ids else "")

    def nodeCount(self) -> int:
        return len([node_id for node_id in self._ids if node_id])


@register
class qMRMLCheckableNodeComboBox(qMRMLNodeComboBox):  # noqa: N801
    """Chooses several nodes."""

    checkedNodesChanged = QtCore.Signal()

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        self._checked: set[str] = set()
        super().__init__(parent)

    def checkedNodes(self) -> list[Any]:
        return [node for node in self._nodes() if node.GetID() in self._checked]

    def setCheckState(self, node: Any, state: QtCore.Qt.CheckState) -> None:
        if state == QtCore.Qt.CheckState.Checked:
            self._checked.add(node.GetID())
        else:
            self._checked.discard(node.GetID())
        self.checkedNodesChanged.emit()


ALL = (qMRMLWidget, qMRMLSortFilterProxyModel, qMRMLNodeComboBox, qMRMLCheckableNodeComboBox)
