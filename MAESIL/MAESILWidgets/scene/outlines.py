"""Superpatch outlines in the views, and which superpatch lies under the mouse."""

from __future__ import annotations

from typing import Any

import numpy as np
import slicer
import vtk

from MAESILWidgets.scene.export import LPS_AND_RAS
from MAESILWidgets.scene.results_scene import folder_of, results

LOOKS = {"outlines": ((0.95, 0.85, 0.3), 1), "selected": ((0.3, 1.0, 0.5), 3)}
"""Color and width of the lines of all superpatches, and of the one that was clicked, by the role of their model."""


def ijk_to_ras(metrics: dict[str, Any]) -> np.ndarray:
    """Return the 4x4 matrix from (i, j, k, 1) of the model's grid to RAS mm, under the input's parent transform."""
    return LPS_AND_RAS @ np.array(metrics["model_grid"]["ijk_to_lps"], dtype=np.float64)


def boxes(metrics: dict[str, Any]) -> np.ndarray:
    """Return (n, 2, 3): first and last border (D, H, W) of every superpatch in voxels, padding left out."""
    size = np.array(metrics["model_grid"]["size_dhw"])
    start = np.array([box["start_dhw"] for box in metrics["superpatches"]]).reshape(-1, 3)
    end = start + np.array([box["size_dhw"] for box in metrics["superpatches"]]).reshape(-1, 3)
    return np.stack([start, np.minimum(end, size)], 1)


def superpatch_at(metrics: dict[str, Any], ras: tuple[float, float, float]) -> int | None:
    """Return the number of the superpatch at a point in RAS mm of the input's own space, or None outside.

    Where superpatches overlap it is the one whose middle is nearest.
    """
    index = (np.linalg.inv(ijk_to_ras(metrics)) @ np.array([*ras, 1.0]))[2::-1] + 0.5
    found = boxes(metrics)
    inside = np.flatnonzero(((found[:, 0] <= index) & (index < found[:, 1])).all(1))
    if not inside.size:
        return None
    distance = np.abs(found[inside].mean(1) - index).max(1)
    return int(inside[distance.argmin()])


def to_own_space(node: Any, world_ras: tuple[float, float, float]) -> tuple[float, float, float]:
    """Return a point of the world in the space of a node, its parent transforms undone."""
    point = [0.0] * 3
    node.TransformPointFromWorld(world_ras, point)
    x, y, z = point
    return x, y, z


def surface(metrics: dict[str, Any], numbers: list[int]) -> Any:
    """Return the faces of these superpatches as vtkPolyData in RAS mm."""
    faces = vtk.vtkAppendPolyData()
    # borders of voxels lie half a voxel before their centers
    for first, last in boxes(metrics)[numbers] - 0.5:
        cube = vtk.vtkCubeSource()
        cube.SetBounds(first[2], last[2], first[1], last[1], first[0], last[0])
        faces.AddInputConnection(cube.GetOutputPort())
    to_ras = vtk.vtkTransform()
    to_ras.SetMatrix(slicer.util.vtkMatrixFromArray(ijk_to_ras(metrics)))
    placed = vtk.vtkTransformPolyDataFilter()
    placed.SetTransform(to_ras)
    placed.SetInputConnection(faces.GetOutputPort())
    placed.Update()
    return placed.GetOutput()


def show(result: Any, role: str, numbers: list[int], view_ids: list[str]) -> None:
    """Outline these superpatches in these views, as one of :data:`LOOKS`."""
    node = result.node(role) or _model(result, role)
    node.SetAndObservePolyData(surface(result.metrics, numbers))
    shown = node.GetDisplayNode()
    with slicer.util.NodeModify(shown):
        shown.RemoveAllViewNodeIDs()
        for view_id in view_ids:
            shown.AddViewNodeID(view_id)
        shown.SetVisibility(True)


def hide() -> None:
    """Hide the outlines of all results: others share the views, a training's preview too."""
    for result in results():
        for node in filter(None, map(result.node, LOOKS)):
            node.GetDisplayNode().SetVisibility(False)


def _model(result: Any, role: str) -> Any:
    """Make the model of a role, in the result's folder and under the input's transform."""
    color, width = LOOKS[role]
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLModelNode", f"{role} {result.name}")
    node.CreateDefaultDisplayNodes()
    shown = node.GetDisplayNode()
    shown.SetColor(*color)
    shown.SetLineWidth(width)
    shown.SetSliceIntersectionThickness(width)
    shown.SetVisibility2D(True)
    shown.SetVisibility3D(False)
    node.SetSelectable(False)
    volume = result.node("reconstruction")
    if volume is not None:
        node.SetAndObserveTransformNodeID(volume.GetTransformNodeID())
    tree, folder = folder_of(result.text_node)
    tree.CreateItem(folder, node)
    result.set_node(role, node)
    return node
