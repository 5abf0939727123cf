"""Clicks into the nine views."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import slicer
import vtk
from slicer.util import VTKObservationMixin

from MAESILWidgets.scene.layout import view_names

CLICK_PIXELS = 3
"""A press and a release further apart are a drag: window and level, or a pan."""


class ViewClicks(VTKObservationMixin):
    """Calls ``on_click`` with the RAS point (mm, world) of every plain left click in our views."""

    def __init__(self, on_click: Callable[[tuple[float, float, float]], None]) -> None:
        VTKObservationMixin.__init__(self)
        self.on_click = on_click
        self._pressed: tuple[int, int] | None = None

    def start(self) -> None:
        """Watch the views; they must be shown."""
        self.removeObservers()
        for name in view_names():
            widget = slicer.app.layoutManager().sliceWidget(name)
            if widget is None:
                continue
            interactor = widget.sliceView().interactor()
            node = widget.sliceLogic().GetSliceNode()
            self.addObserver(interactor, vtk.vtkCommand.LeftButtonPressEvent, self._on_press)
            self.addObserver(interactor, vtk.vtkCommand.LeftButtonReleaseEvent, self._released_in(node))

    def _on_press(self, interactor: Any, event: str) -> None:
        self._pressed = interactor.GetEventPosition()

    def _released_in(self, node: Any) -> Callable[[Any, str], None]:
        def on_release(interactor: Any, event: str) -> None:
            pressed, self._pressed = self._pressed, None
            x, y = interactor.GetEventPosition()
            if pressed is None or max(abs(x - pressed[0]), abs(y - pressed[1])) > CLICK_PIXELS:
                return
            point = node.GetXYToRAS().MultiplyPoint((x, y, 0.0, 1.0))
            self.on_click((point[0], point[1], point[2]))

        return on_release
