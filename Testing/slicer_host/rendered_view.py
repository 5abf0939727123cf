"""A widget that shows what an offscreen VTK render window draws, rendered on demand."""

from typing import Any

import numpy as np
import vtk
from PySide6 import QtCore, QtGui, QtWidgets
from vtk.util import numpy_support

RENDER_INTERVAL_MS = 16
_free_windows: list[Any] = []


class RenderedView(QtWidgets.QWidget):
    """Owns a render window; scheduleRender gathers requests, forceRender draws at once."""

    paused = False
    """While the host is reset nobody looks."""

    def __init__(self, window: Any = None) -> None:
        super().__init__()
        self._window = window or (_free_windows.pop() if _free_windows else vtk.vtkRenderWindow())
        self._window.SetOffScreenRendering(1)
        self._window.SetMultiSamples(0)
        self._image = QtGui.QImage()
        self._timer = QtCore.QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(RENDER_INTERVAL_MS)
        self._timer.timeout.connect(self._render_if_due)
        self.setMinimumSize(20, 20)

    def _give_window_back(self) -> None:
        """For the next view: a window's graphics memory, 16 MB, is never quite given back to the system."""
        self._window.SetInteractor(None)
        _free_windows.append(self._window)

    def scheduleRender(self, *_: Any) -> None:
        if not self._timer.isActive():
            self._timer.start()

    def _render_if_due(self) -> None:
        if self.isVisible() and not RenderedView.paused:
            self.forceRender()

    def forceRender(self) -> None:
        """Render and take the picture."""
        self._timer.stop()
        self._before_render()
        self._window.SetSize(max(1, self.width()), max(1, self.height()))
        self._window.Render()
        pixels = self._pixels()
        height, width = pixels.shape[:2]
        self._image = QtGui.QImage(pixels.tobytes(), width, height, width * 3, QtGui.QImage.Format.Format_RGB888).copy()
        self.update()

    def _before_render(self) -> None:
        pass

    def _pixels(self) -> np.ndarray:
        """What the window shows: (height, width, 3), uint8, top row first."""
        grab = vtk.vtkWindowToImageFilter()
        grab.SetInput(self._window)
        grab.ReadFrontBufferOff()
        grab.ShouldRerenderOff()
        grab.Update()
        image = grab.GetOutput()
        width, height, _ = image.GetDimensions()
        flat = numpy_support.vtk_to_numpy(image.GetPointData().GetScalars())
        return np.ascontiguousarray(flat.reshape(height, width, 3)[::-1])

    def paintEvent(self, event: QtGui.QPaintEvent) -> None:
        painter = QtGui.QPainter(self)
        if self._image.isNull():
            painter.fillRect(self.rect(), QtCore.Qt.GlobalColor.black)
        else:
            painter.drawImage(0, 0, self._image)

    def showEvent(self, event: QtGui.QShowEvent) -> None:
        super().showEvent(event)
        self.scheduleRender()

    def resizeEvent(self, event: QtGui.QResizeEvent) -> None:
        super().resizeEvent(event)
        self.scheduleRender()
