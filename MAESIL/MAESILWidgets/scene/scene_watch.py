"""Notices that a node leaves the scene, or that the scene closes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import slicer
import vtk
from slicer.i18n import tr as _


class NodeWatch:
    """Calls ``on_lost`` once, with the reason, when a node is removed or the scene closes.

    Args:
        node_id: of the node to watch.
    """

    def __init__(self, node_id: str, on_lost: Callable[[str], None]) -> None:
        self.node_id, self.on_lost = node_id, on_lost
        self.scene = slicer.mrmlScene
        self.tags = [
            self.scene.AddObserver(slicer.vtkMRMLScene.StartCloseEvent, self._on_close),
            self.scene.AddObserver(slicer.vtkMRMLScene.NodeAboutToBeRemovedEvent, self._on_removed),
        ]

    def stop(self) -> None:
        """Stop watching."""
        for tag in self.tags:
            self.scene.RemoveObserver(tag)
        self.tags = []

    def _on_close(self, caller: Any, event: str) -> None:
        self._lost(_("the scene was closed"))

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _on_removed(self, caller: Any, event: str, node: Any) -> None:
        if node is not None and node.GetID() == self.node_id:
            self._lost(_("it was deleted"))

    def _lost(self, reason: str) -> None:
        if self.tags:
            self.stop()
            self.on_lost(reason)
