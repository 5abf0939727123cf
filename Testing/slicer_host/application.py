"""slicer.app and the main window."""

from __future__ import annotations

import tempfile
from typing import Any

from PySide6 import QtCore, QtWidgets

from . import state
from .io_manager import qSlicerCoreIOManager
from .layout_manager import qSlicerLayoutManager
from .module_factory import qSlicerModuleManager

PANEL_WIDTH = 410


class qSlicerApplication(QtWidgets.QApplication):  # noqa: N801
    """The application object. Its parts are put in by the host's boot."""

    startupCompleted = QtCore.Signal()

    def _start(self, application_logic: Any, scene: Any, window: qSlicerMainWindow) -> None:
        self._logic = application_logic
        self._temporary = tempfile.mkdtemp(prefix="slicer-host-")
        self._io = qSlicerCoreIOManager()
        self._modules = qSlicerModuleManager()
        self._window = window
        self._layout = qSlicerLayoutManager(window._viewport, application_logic, scene)

    def applicationLogic(self) -> Any:
        return self._logic

    def layoutManager(self) -> Any:
        return self._layout

    def moduleManager(self) -> Any:
        return self._modules

    def coreIOManager(self) -> Any:
        return self._io

    def testingEnabled(self) -> bool:
        return False

    def userSettings(self) -> QtCore.QSettings:
        return QtCore.QSettings()

    def mainWindow(self) -> Any:
        return self._window

    def exit(self, status: int = 0) -> None:
        state.complain(f"the module ends the application with {status}")

    applicationVersion = QtCore.Property(str, lambda self: "5.12.4")
    revision = QtCore.Property(str, lambda self: "34000")
    os = QtCore.Property(str, lambda self: "linux")
    temporaryPath = QtCore.Property(str, lambda self: self._temporary, lambda self, p: setattr(self, "_temporary", p))


class qSlicerModuleSelectorToolBar(QtWidgets.QToolBar):  # noqa: N801
    """Which module is open."""

    def __init__(self, window: qSlicerMainWindow) -> None:
        super().__init__(window)
        self._window = window

    def selectModule(self, name: str) -> None:
        self._window._open(name)


class qSlicerMainWindow(QtWidgets.QMainWindow):  # noqa: N801
    """Module panel on the left, views on the right."""

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
        widget = module.widgetRepresentation()
        if widget is self._shown:
            return
        self._close_panel()
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
