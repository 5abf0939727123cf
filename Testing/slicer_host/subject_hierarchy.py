"""Keeps the subject hierarchy in step with the scene, which in Slicer is the work of its Qt plugins."""

from typing import Any

import slicer
import vtk

KINDS = ("Volume", "Model", "Table", "Text", "Transform", "PlotChart", "PlotSeries")
SHOWN = tuple(f"vtkMRML{kind}Node" for kind in KINDS)


class SubjectHierarchy:
    """An item for each data node: added under the scene, removed with its node."""

    def __init__(self, scene: Any) -> None:
        self.scene = scene
        scene.AddObserver(scene.NodeAddedEvent, _with_node(self._added))
        scene.AddObserver(scene.NodeAboutToBeRemovedEvent, _with_node(self._about_to_be_removed))
        scene.AddObserver(scene.EndCloseEvent, self._closed)
        scene.AddObserver(scene.EndImportEvent, self._imported)
        self.node()

    def node(self) -> Any:
        return self.scene.GetSubjectHierarchyNode()

    def _belongs(self, node: Any) -> bool:
        return not node.GetHideFromEditors() and any(node.IsA(name) for name in SHOWN)

    def _add(self, node: Any) -> None:
        hierarchy = self.node()
        if self._belongs(node) and hierarchy.GetItemByDataNode(node) == hierarchy.GetInvalidItemID():
            hierarchy.CreateItem(hierarchy.GetSceneItemID(), node)

    def _added(self, node: Any) -> None:
        if not self.scene.IsImporting() and not self.scene.IsClosing():
            self._add(node)

    def _about_to_be_removed(self, node: Any) -> None:
        if self.scene.IsClosing() or not any(node.IsA(name) for name in SHOWN):
            return
        hierarchy = self.node()
        item = hierarchy.GetItemByDataNode(node)
        if item != hierarchy.GetInvalidItemID():
            hierarchy.RemoveItem(item, False, False)

    def _closed(self, *_: Any) -> None:
        self.node().RemoveAllItems(False)

    def _imported(self, *_: Any) -> None:
        slicer.vtkMRMLSubjectHierarchyNode.ResolveSubjectHierarchy(self.scene)
        for node in [self.scene.GetNthNode(i) for i in range(self.scene.GetNumberOfNodes())]:
            self._add(node)


def _with_node(function: Any) -> Any:
    @vtk.calldata_type(vtk.VTK_OBJECT)
    def observer(caller: Any, event: str, node: Any) -> None:
        function(node)

    return observer
