"""Scripted modules as Slicer's factory makes them, and the C++ modules that slicer-core has logics of."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import slicer
from PySide6 import QtCore, QtGui, QtWidgets

from . import state
from .mrml_widgets import SCENE_SIGNAL, SceneFollower
from .widget_parts import Stored, stored
from .wrapping import wrap

CPP_LOGICS = {
    "colors": "vtkSlicerColorLogic",
    "volumes": "vtkSlicerVolumesLogic",
    "markups": "vtkSlicerMarkupsLogic",
    "plots": "vtkSlicerPlotsLogic",
    "tables": "vtkSlicerTablesLogic",
    "texts": "vtkSlicerTextsLogic",
    "segmentations": "vtkSlicerSegmentationsModuleLogic",
    "subjecthierarchy": "vtkSlicerSubjectHierarchyModuleLogic",
}


class qSlicerAbstractModule(Stored, QtCore.QObject):  # noqa: N801
    """What a module tells about itself."""

    name = stored(str, "name", "")
    title = stored(str, "title", "")
    path = stored(str, "path", "")
    categories = stored("QStringList", "categories", [])
    dependencies = stored("QStringList", "dependencies", [])
    contributors = stored("QStringList", "contributors", [])
    helpText = stored(str, "helpText", "")
    acknowledgementText = stored(str, "acknowledgementText", "")
    icon = stored(QtGui.QIcon, "icon", None)


class qSlicerLoadableModule(qSlicerAbstractModule):  # noqa: N801
    """A C++ module: here, its logic."""

    def __init__(self, name: str, logic: Any) -> None:
        super().__init__()
        self._logic = logic
        self.name = name

    def logic(self) -> Any:
        return self._logic


class qSlicerScriptedLoadableModuleWidget(SceneFollower, QtWidgets.QWidget):  # noqa: N801
    """The widget that a scripted module's own widget class fills."""

    mrmlSceneChanged = QtCore.Signal(object)
    _signal_aliases = SCENE_SIGNAL

    def __init__(self, module: qSlicerScriptedLoadableModule) -> None:
        super().__init__()
        self._module = module
        self._python: Any = None
        self._entered = False
        self.setObjectName(f"{module.name}ModuleWidget")
        # as Slicer's module panel sets them
        QtWidgets.QVBoxLayout(self).setContentsMargins(0, 0, 0, 0)

    def _fill(self) -> None:
        """Instantiate the module's widget class and set it up."""
        made = getattr(sys.modules[self._module.name], self._module.name + "Widget")
        self._python = made(wrap(self))
        setattr(slicer.modules, self._module.name + "Widget", self._python)
        if self._scene is None:
            self.setMRMLScene(slicer.mrmlScene)
        self._python.setup()

    def self(self) -> Any:
        return self._python

    def reload(self) -> None:
        was_entered = self._entered
        self._fill()
        if was_entered:
            self._python.enter()

    def _enter(self) -> None:
        if not self._entered:
            self._entered = True
            self._python.enter()

    def _exit(self) -> None:
        if self._entered:
            self._entered = False
            self._python.exit()


class qSlicerScriptedLoadableModule(qSlicerAbstractModule):  # noqa: N801
    """A module written in Python; also the parent that its class fills in."""

    def __init__(self, name: str, path: str) -> None:
        super().__init__()
        self.name = name
        self.path = path
        self._widget: qSlicerScriptedLoadableModuleWidget | None = None
        self._python: Any = None

    def widgetRepresentation(self) -> qSlicerScriptedLoadableModuleWidget:
        if self._widget is None:
            self._widget = qSlicerScriptedLoadableModuleWidget(self)
            self._widget._fill()
        return self._widget


class qSlicerModuleManager(QtCore.QObject):  # noqa: N801
    """Knows the modules, also as attributes of slicer.modules."""

    moduleAboutToBeUnloaded = QtCore.Signal(str)

    def __init__(self) -> None:
        super().__init__()
        self._modules: dict[str, qSlicerAbstractModule] = {}

    def _add(self, module: qSlicerAbstractModule) -> None:
        self._modules[module.name] = module
        setattr(slicer.modules, module.name.lower(), wrap(module))

    def _load_cpp(self, scene: Any, application_logic: Any) -> None:
        for name, class_name in CPP_LOGICS.items():
            logic = getattr(slicer, class_name)()
            logic.SetMRMLApplicationLogic(application_logic)
            application_logic.SetModuleLogic(name.capitalize(), logic)
            logic.SetMRMLScene(scene)
            self._add(qSlicerLoadableModule(name, logic))

    def _load_scripted(self, name: str, folder: Path) -> qSlicerScriptedLoadableModule:
        """Import <folder>/<name>.py and make its module object, as Slicer does at start-up."""
        path = folder / f"{name}.py"
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
        sys.modules.pop(name, None)
        imported = importlib.import_module(name)
        module = qSlicerScriptedLoadableModule(name, str(path))
        module._python = getattr(imported, name)(wrap(module))
        if not module.title or not module.categories:
            state.complain(f"module {name}: title and categories have to be set")
        self._add(module)
        return module

    def _unload(self, name: str) -> None:
        module = self._modules.pop(name)
        if isinstance(module, qSlicerScriptedLoadableModule) and module._widget is not None:
            module._widget._exit()
            self.moduleAboutToBeUnloaded.emit(name)
            module._widget.setMRMLScene(None)
            module._widget.deleteLater()
            module._widget = None
        if hasattr(slicer.modules, name.lower()):
            delattr(slicer.modules, name.lower())
        if hasattr(slicer.modules, name + "Widget"):
            delattr(slicer.modules, name + "Widget")

    def module(self, name: str) -> Any:
        return self._modules.get(name)


ALL = (
    qSlicerLoadableModule, qSlicerScriptedLoadableModule, qSlicerScriptedLoadableModuleWidget, qSlicerModuleManager,
)  # fmt: skip
