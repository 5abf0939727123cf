"""The host: boot() gives it, tests drive it."""

from __future__ import annotations

import contextlib
import gc
import os
import re
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from . import state
from .install import WINDOW_SIZE, install

_host: Host | None = None


class StallMeter:
    """Longest gap between two turns of the event loop, in milliseconds."""

    def __init__(self) -> None:
        self.worst_ms = 0.0
        self._last = time.perf_counter()

    def _tick(self) -> None:
        now = time.perf_counter()
        self.worst_ms = max(self.worst_ms, (now - self._last) * 1000)
        self._last = now


class Host:
    """A Slicer without Slicer: the application, its scene, its window, and what went wrong."""

    def __init__(self, settings_dir: Path) -> None:
        self.settings_dir = settings_dir
        self.errors, self.messages, self.answers = state.errors, state.messages, state.answers
        self.vtk_errors = state.vtk_errors
        sys.excepthook = state.collect_unhandled
        self._app = install(settings_dir)
        from . import sample_data

        self.sample_data = sample_data.registered
        self._folders: list[Path] = []
        self._initial_path = os.environ.get("PATH", "")
        self._app._window.resize(*WINDOW_SIZE)
        self._app._window.show()
        self.process_events()
        import slicer

        scene = slicer.mrmlScene
        self._nodes_at_start = {scene.GetNthNode(i).GetID() for i in range(scene.GetNumberOfNodes())}

    # modules

    def add_module_path(self, folder: str | Path) -> None:
        """A folder as in Slicer's "Additional module paths"."""
        self._folders.append(Path(folder).resolve())

    def load_module(self, name: str) -> None:
        """Load <name>.py from the module paths, then fire startupCompleted once for this module."""
        folder = next(folder for folder in self._folders if (folder / f"{name}.py").is_file())
        self._app._modules._load_scripted(name, folder)
        self._app.startupCompleted.emit()

    def open_module(self, name: str) -> Any:
        """Select the module; returns its Python widget."""
        import slicer

        slicer.util.selectModule(name)
        self.process_events()
        return slicer.util.getModuleWidget(name)

    # events

    def process_events(
        self, seconds: float = 0.0, until: Callable[[], Any] | None = None, timeout: float = 30.0
    ) -> Any:
        """Run the event loop: for some seconds, or until something holds; AssertionError when it never does."""
        start = time.perf_counter()
        while True:
            self._app.processEvents()
            self._app.sendPostedEvents(None, 52)  # DeferredDelete
            elapsed = time.perf_counter() - start
            if until is not None:
                found = until()
                if found:
                    return found
                if elapsed > timeout:
                    raise AssertionError(f"not within {timeout} s")
            elif elapsed >= seconds:
                return None
            time.sleep(0.003)

    @contextlib.contextmanager
    def stall_meter(self) -> Iterator[StallMeter]:
        """Measure, with a 5 ms timer, how long the event loop is blocked while process_events runs."""
        from PySide6 import QtCore

        meter = StallMeter()
        timer = QtCore.QTimer()
        timer.setTimerType(QtCore.Qt.TimerType.PreciseTimer)
        timer.setInterval(5)
        timer.timeout.connect(meter._tick)
        timer.start()
        try:
            yield meter
        finally:
            self._app.processEvents()
            timer.stop()

    # views

    def render(self) -> None:
        """Bring every visible view up to date."""
        from .rendered_view import RenderedView

        self.process_events()
        for view in self._app._window.findChildren(RenderedView):
            if view.isVisible():
                view.forceRender()
        self.process_events()

    def view_pixels(self, name: str) -> Any:
        """What a slice view shows: (height, width, 3), uint8."""
        view = self._app._layout.sliceWidget(name).sliceView()
        view.forceRender()
        return view._pixels()

    def corner_text(self, name: str) -> str:
        """What a slice view says of its layers."""
        view = self._app._layout.sliceWidget(name).sliceView()
        view._before_render()
        return str(view._annotation.GetText(view._annotation.LowerLeft))

    def screenshot(self, path: str | Path) -> None:
        """A PNG of the main window with rendered views."""
        self.render()
        if not self._app._window.grab().save(str(path), "PNG"):
            raise OSError(f"cannot write {path}")

    def click_in_slice(self, name: str, x: int, y: int) -> tuple[float, float, float]:
        """Press and release the left button at display position (from the lower left); returns its RAS."""
        view = self._app._layout.sliceWidget(name).sliceView()
        for event in ("MouseMoveEvent", "LeftButtonPressEvent", "LeftButtonReleaseEvent"):
            view.interactor().SetEventInformation(x, y, 0, 0, "\0", 0, None)
            view.interactor().InvokeEvent(event)
        self.process_events(0.05)
        matrix = view.mrmlSliceNode().GetXYToRAS()
        return matrix.MultiplyPoint((x, y, 0.0, 1.0))[:3]

    # scenes

    def save_scene(self, folder: str | Path) -> Path:
        """The nodes' data and the .mrml into folder, as the Save dialog does; returns the .mrml."""
        import slicer

        if not slicer.util.saveScene(str(folder)):
            raise OSError(f"scene not saved to {folder}")
        mrml = next(Path(folder).glob("*.mrml"))
        text = mrml.read_text(encoding="utf-8")
        for node in slicer.util.getNodesByClass("vtkMRMLStorableNode"):
            if node.GetHideFromEditors():
                # the dialog does not list it
                text = re.sub(rf'(name="{re.escape(node.GetName())}"[^>]*?)storage:[^;"]*;', r"\1", text)
        mrml.write_text(text, encoding="utf-8")
        return mrml

    def load_scene(self, mrml: str | Path) -> None:
        """Close the scene and open another, as File / Load scene does."""
        from .io_manager import load_scene

        if not load_scene(str(mrml)):
            raise OSError(f"scene not loaded from {mrml}")
        self.process_events()

    def close_scene(self) -> None:
        import slicer

        slicer.mrmlScene.Clear(False)
        self.process_events()

    # environment

    def install_python_slicer(self, folder: str | Path, first: str = "") -> Path:
        """Write a launcher PythonSlicer that runs Python as its child, and put folder first on PATH.

        Args:
            first: a line of shell that it runs before: limits that a user's machine may have.
        """
        launcher = Path(folder) / "PythonSlicer"
        launcher.write_text(f'#!/bin/sh\n{first}\n"{sys.executable}" "$@"\nexit $?\n')
        launcher.chmod(launcher.stat().st_mode | stat.S_IXUSR)
        os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ.get('PATH', '')}"
        return launcher

    # ends

    def unload_modules(self) -> None:
        """Unload every scripted module: cleanup() is called, and their files are forgotten."""
        from .module_factory import qSlicerScriptedLoadableModule

        self._app._window._close_panel()
        manager = self._app._modules
        for name, module in list(manager._modules.items()):
            if isinstance(module, qSlicerScriptedLoadableModule):
                folder = str(Path(module.path).parent)
                manager._unload(name)
                sys.modules.pop(name, None)
                if folder in sys.path:
                    sys.path.remove(folder)
        self._folders.clear()

    def reset(self) -> None:
        """As after a start: no modules, empty scene, no layout chosen, nothing collected."""
        import slicer
        from PySide6 import QtCore

        from .rendered_view import RenderedView

        RenderedView.paused = True
        self.unload_modules()
        # the panel goes before the nodes, each of which it would follow
        self.process_events()
        slicer.mrmlScene.Clear(False)
        slicer.app.layoutManager().setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutInitialView)
        scene = slicer.mrmlScene
        for node in [scene.GetNthNode(i) for i in range(scene.GetNumberOfNodes())]:
            if node.GetID() not in self._nodes_at_start and scene.IsNodePresent(node):
                scene.RemoveNode(node)
        QtCore.QLocale.setDefault(QtCore.QLocale.system())
        os.environ["PATH"] = self._initial_path
        self._app.userSettings().clear()
        self.sample_data.clear()
        self.process_events()
        gc.collect()
        self.process_events()
        RenderedView.paused = False
        state.reset()

    def close(self) -> None:
        """End the application as Slicer does: modules clean up, then aboutToQuit, then the scene is cleared."""
        import slicer

        self.unload_modules()
        self._app.aboutToQuit.emit()
        self._app._layout._stop()
        slicer.mrmlScene.Clear(True)
        self._app._window.hide()
        self.process_events()


def boot(settings_dir: str | Path | None = None) -> Host:
    """Start the host, once a process; later calls give the same one."""
    global _host
    if _host is None:
        _host = Host(Path(settings_dir or tempfile.mkdtemp(prefix="slicer-host-settings-")))
        gc.freeze()  # resetting collects, and what is there by now stays
    return _host
