"""A reconstruction as nodes of the scene: volumes, metrics and the folder that holds them.

The text node with metrics.json stands for the result: it refers to every other node, is saved with the scene and is
found again when the scene is loaded.
"""

from __future__ import annotations

import json
from typing import Any

import slicer
import vtk
from slicer.i18n import tr as _

from MAESILWidgets.scene import display

MARK = "MAESIL.Result"
VOLUMES = ("masked", "reconstruction", "composite", "error", "mask")
PARTS = (*VOLUMES, "table", "outlines", "selected")


class Result:
    """A result in the scene, by its text node."""

    def __init__(self, text_node: Any) -> None:
        self.text_node = text_node

    @property
    def id(self) -> str:
        """Node id of the text node."""
        return str(self.text_node.GetID())

    @property
    def name(self) -> str:
        """What the result is called."""
        return str(self.text_node.GetAttribute("MAESIL.Title") or self.text_node.GetName())

    @property
    def metrics(self) -> dict[str, Any]:
        """What metrics.json held; empty if the text was changed to something else."""
        try:
            return dict(json.loads(self.text_node.GetText() or "{}"))
        except ValueError:
            return {}

    def node(self, role: str) -> Any:
        """Return the node of a role, or None if it is gone."""
        return self.text_node.GetNodeReference(f"MAESIL.{role}")

    def set_node(self, role: str, node: Any) -> None:
        """Let ``node`` have a role."""
        self.text_node.SetNodeReferenceID(f"MAESIL.{role}", node.GetID())

    def is_whole(self) -> bool:
        """Say whether the three volumes that the views show are still there."""
        return all(self.node(kind) is not None for kind in ("masked", "reconstruction", "error"))

    def rows(self) -> list[tuple[str, str]]:
        """Return title and text of the metrics there are."""
        from MAESILLib.metrics.catalogue import described

        metrics = self.metrics
        # a scene of version 0.1.0 has it under another key
        ratio = metrics.get("mask", {}).get("mask_ratio")
        rows = [] if ratio is None else [(_("Hidden patches"), f"{ratio:.1%}")]
        if metrics.get("mask", {}).get("overlap"):
            rows.append((_("PSNR of harmonic fill"), _("not computed with overlap")))
        return rows + [(title[:1].upper() + title[1:], text) for title, text in described(metrics)]

    def delete(self) -> None:
        """Remove the result's own nodes and its folder; the input stays."""
        tree, folder = folder_of(self.text_node)
        for node in filter(None, map(self.node, PARTS)):
            _remove(node)
        _remove(self.text_node)
        _remove_unused_colors()
        if tree.GetItemLevel(folder) == "Folder" and not tree.GetNumberOfItemChildren(folder):
            tree.RemoveItem(folder)


def results() -> list[Result]:
    """Return the results of the scene, oldest first."""
    nodes = slicer.util.getNodesByClass("vtkMRMLTextNode")
    return [Result(node) for node in nodes if node.GetAttribute(MARK)]


class ResultBuilder:
    """Puts a result into the scene, volume by volume, on the input's grid and under its transform.

    Slicer stays responsive between the steps. Until :meth:`finish`, :meth:`discard` leaves the scene as it was.

    Args:
        title: what was asked for, in a few words.
    """

    def __init__(self, input_node: Any, title: str) -> None:
        self.input_node = input_node
        name, taken = f"{input_node.GetName()} {title}", {result.name for result in results()}
        # the scene's own counter knows nothing of what was loaded
        names = [name, *(f"{name} ({n})" for n in range(2, len(taken) + 2))]
        self.name = next(one for one in names if one not in taken)
        self.nodes: dict[str, Any] = {}

    def add(self, kind: str, image: Any) -> None:
        """Add the volume of a kind; ``image`` is vtkImageData of the input's size."""
        class_name = "vtkMRMLLabelMapVolumeNode" if kind == "mask" else "vtkMRMLScalarVolumeNode"
        # the kind first: views cut long names
        node = self.nodes[kind] = slicer.mrmlScene.AddNewNodeByClass(class_name, f"{kind} {self.name}")
        node.CopyOrientation(self.input_node)
        node.SetAndObserveImageData(image)
        node.SetAndObserveTransformNodeID(self.input_node.GetTransformNodeID())
        node.SetAttribute("MAESIL.Kind", kind)
        node.SetDescription(_DESCRIPTIONS[kind])
        display.set_up(node, kind)

    def finish(self, metrics: dict[str, Any]) -> Any:
        """Add metrics and folder; return the text node that stands for the result."""
        text = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTextNode", f"metrics {self.name}")
        result = Result(text)
        for kind, node in self.nodes.items():
            result.set_node(kind, node)
        self.nodes["metrics"] = text
        text.SetText(json.dumps(metrics, indent=1))
        text.SetAttribute("MAESIL.Title", self.name)
        result.set_node("input", self.input_node)
        self.nodes["table"] = _add_table(result, f"table {self.name}")
        result.set_node("table", self.nodes["table"])
        tree, parent = folder_of(self.input_node)
        folder = tree.CreateFolderItem(parent, self.name)
        for node in self.nodes.values():
            tree.CreateItem(folder, node)
        # last, because from here on it counts as a result
        text.SetAttribute(MARK, "1")
        return text

    def discard(self) -> None:
        """Remove what was added."""
        for node in self.nodes.values():
            if node.GetScene() is not None:
                _remove(node)
        self.nodes = {}
        _remove_unused_colors()


def folder_of(node: Any) -> tuple[Any, int]:
    """Return the subject hierarchy, and the item in it that holds a node."""
    tree = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    return tree, tree.GetItemParent(tree.GetItemByDataNode(node)) or tree.GetSceneItemID()


def _remove(node: Any) -> None:
    """Remove a node with its display and storage nodes, which Slicer would keep until the scene is saved."""
    parts = []
    if node.IsA("vtkMRMLDisplayableNode"):
        parts += [node.GetNthDisplayNode(n) for n in range(node.GetNumberOfDisplayNodes())]
    if node.IsA("vtkMRMLStorableNode"):
        parts.append(node.GetStorageNode())
    slicer.mrmlScene.RemoveNode(node)
    for part in parts:
        if part is not None and part.GetScene() is not None:
            slicer.mrmlScene.RemoveNode(part)


def _remove_unused_colors() -> None:
    """Remove our colors if no volume of ours is left."""
    if not any(map(display.is_ours, slicer.util.getNodesByClass("vtkMRMLVolumeNode"))):
        for class_and_name in (display.ERROR_COLOR_NODE, display.MASK_COLOR_NODE):
            node = slicer.util.getFirstNodeByClassByName(*class_and_name)
            if node is not None:
                _remove(node)


_DESCRIPTIONS = {
    "masked": "HU clipped to the model's window; hidden patches at its lower end",
    "reconstruction": "HU; the model's output everywhere",
    "composite": "HU; reconstruction where hidden, input elsewhere",
    "error": "HU; reconstruction minus input, both clipped to the model's window",
    "mask": "1 = hidden",
}


def _add_table(result: Result, name: str) -> Any:
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTableNode", name)
    rows = result.rows()
    for number, title in enumerate((_("Metric"), _("Value"))):
        column = vtk.vtkStringArray()
        column.SetName(title)
        for row in rows:
            column.InsertNextValue(row[number])
        node.AddColumn(column)
    node.SetUseColumnTitleAsColumnHeader(True)
    node.SetLocked(True)
    return node
