"""slicer.app and the main window."""

from __future__ import annotations

import os
import sys
import tempfile
from typing import Any

from PySide6 import QtCore, QtWidgets

from . import rendered_view, state
from .io_manager import qSlicerCoreIOManager
from .layout_manager import qSlicerLayoutManager
from .module_factory import qSlicerModuleManager

VERSION = (5, 12, 4)
PANEL_WIDTH = 500


class CommandOptions:
    """slicer.app.commandOptions()."""

    def __init__(self) -> None:
        self.testingEnabled = False
        self.runPythonAndExit = False
        self.noMainWindow = False


class qSlicerApplication(QtWidgets.QApplication):  # noqa: N801
    """The application object. Its parts are put in by the host's boot."""

    startupCompleted = QtCore.Signal()
    mrmlSceneChanged = QtCore.Signal(object)
    pausedRenderingChanged = QtCore.Signal(bool)
    _signal_aliases = {"mrmlSceneChanged(vtkMRMLScene*)": "mrmlSceneChanged(PyObject)"}  # noqa: RUF012

    def _start(self, application_logic: Any, scene: Any, window: qSlicerMainWindow) -> None:
        self._logic = application_logic
        self._scene = scene
        self._temporary = tempfile.mkdtemp(prefix="slicer-host-")
        self._environment = QtCore.QProcessEnvironment.systemEnvironment()
        self._options = CommandOptions()
        self._io = qSlicerCoreIOManager()
        self._modules = qSlicerModuleManager()
        self._window = window
        self._layout = qSlicerLayoutManager(window._viewport, application_logic, scene)

    def applicationLogic(self) -> Any:
        return self._logic

    def mrmlScene(self) -> Any:
        return self._scene

    def layoutManager(self) -> Any:
        return self._layout

    def moduleManager(self) -> Any:
        return self._modules

    def coreIOManager(self) -> Any:
        return self._io

    def ioManager(self) -> Any:
        return self._io

    def commandOptions(self) -> CommandOptions:
        return self._options

    def testingEnabled(self) -> bool:
        return self._options.testingEnabled

    def settings(self) -> QtCore.QSettings:
        return QtCore.QSettings()

    def userSettings(self) -> QtCore.QSettings:
        return QtCore.QSettings()

    def revisionUserSettings(self) -> QtCore.QSettings:
        return QtCore.QSettings()

    def startupEnvironment(self) -> QtCore.QProcessEnvironment:
        return self._environment

    def isInstalled(self) -> bool:
        return True

    def pythonConsole(self) -> None:
        return None

    def mainWindow(self) -> Any:
        return self._window

    def pauseRender(self) -> None:
        rendered_view.pause_rendering()

    def resumeRender(self) -> None:
        rendered_view.resume_rendering()

    def setRenderPaused(self, paused: bool) -> None:
        (rendered_view.pause_rendering if paused else rendered_view.resume_rendering)()

    def openNodeModule(self, node: Any, *_: Any) -> None:
        raise NotImplementedError("the host has no modules of C++ to open")

    def exit(self, status: int = 0) -> None:
        state.complain(f"the module ends the application with {status}")

    def restart(self) -> None:
        state.complain("the module restarts the application")

    def translate(self, context: str, text: str) -> str:
        return text

    applicationVersion = QtCore.Property(str, lambda self: "5.12.4")
    revision = QtCore.Property(str, lambda self: "34000")
    majorVersion = QtCore.Property(int, lambda self: VERSION[0])
    minorVersion = QtCore.Property(int, lambda self: VERSION[1])
    os = QtCore.Property(str, lambda self: "linux")
    arch = QtCore.Property(str, lambda self: "amd64")
    platform = QtCore.Property(str, lambda self: "linux-amd64")
    slicerHome = QtCore.Property(str, lambda self: os.path.dirname(sys.executable))
    temporaryPath = QtCore.Property(str, lambda self: self._temporary, lambda self, p: setattr(self, "_temporary", p))
    slicerSharePath = QtCore.Property(str, lambda self: "share/Slicer-5.12")
    documentationBaseUrl = QtCore.Property(str, lambda self: "https://slicer.readthedocs.io/en/5.12/")


class qSlicerModuleSelectorToolBar(QtWidgets.QToolBar):  # noqa: N801
    """Which module is open."""

    moduleSelected = QtCore.Signal(str)

    def __init__(self, window: qSlicerMainWindow) -> None:
        super().__init__(window)
        self._window = window
        self._name = ""

    def selectModule(self, name: str) -> None:
        self._window._open(name)

    selectedModule = QtCore.Property(str, lambda self: self._name)


class qSlicerMainWindow(QtWidgets.QMainWindow):  # noqa: N801
    """Module panel on the left, views on the right."""

    initialWindowShown = QtCore.Signal()

    def __init__(self) -> None:
        super().__init__()
        self.setObjectName("qSlicerMainWindow")
        self.setWindowTitle("3D Slicer 5.12.4 (test host)")
        self._viewport = QtWidgets.QWidget()
        self.setCentralWidget(self._viewport)
        self._selector = qSlicerModuleSelectorToolBar(self)
        self._title = QtWidgets.QLabel("Module:")
        self._selector.addWidget(self._title)
        self.addToolBar(self._selector)
        self._scroll = QtWidgets.QScrollArea()
        self._scroll.setWidgetResizable(True)
        self._scroll.setHorizontalScrollBarPolicy(QtCore.Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        dock = QtWidgets.QDockWidget("Module panel", self)
        dock.setObjectName("PanelDockWidget")
        dock.setWidget(self._scroll)
        dock.setMinimumWidth(PANEL_WIDTH)
        self.addDockWidget(QtCore.Qt.DockWidgetArea.LeftDockWidgetArea, dock)
        self.statusBar()
        self._shown: Any = None

    def _open(self, name: str) -> None:
        module = qSlicerApplication.instance()._modules.module(name)
        if module is None:
            raise RuntimeError(f"no module {name}")
        self._selector._name = name
        widget = module.widgetRepresentation()
        if widget is self._shown:
            return
        self._close_panel()
        if widget is None:
            return
        self._shown = widget
        # as in Slicer, the panel leaves the spare room below the module's widget
        panel = QtWidgets.QWidget()
        column = QtWidgets.QVBoxLayout(panel)
        column.setContentsMargins(4, 4, 4, 4)
        column.addWidget(widget)
        column.addStretch(1)
        self._scroll.setWidget(panel)
        widget.show()
        self._title.setText(f"Module: {module.title}")
        widget._enter()
        self._selector.moduleSelected.emit(name)

    def _close_panel(self) -> None:
        if self._shown is not None:
            self._shown._exit()
            self._shown.setParent(None)
            self._shown = None
        old = self._scroll.takeWidget()
        if old is not None:
            old.deleteLater()

    def moduleSelector(self) -> qSlicerModuleSelectorToolBar:
        return self._selector


ALL = (qSlicerApplication, qSlicerMainWindow, qSlicerModuleSelectorToolBar)
