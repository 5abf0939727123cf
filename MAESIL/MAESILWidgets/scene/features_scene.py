"""What the encoder makes of a volume, in the scene: features in memory, the maps, colors and points made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import slicer
import vtk
from slicer.i18n import tr as _

from MAESILWidgets.scene.export import LPS_AND_RAS
from MAESILWidgets.scene.outlines import to_own_space
from MAESILWidgets.scene.results_scene import folder_of
from MAESILWidgets.scene.volume_info import geometry_of

SHOWN_FROM = 0.3
"""Lower similarities are not tinted."""
OPACITY = 0.6


class VolumeFeatures:
    """Features of a volume node, ready to be compared.

    Args:
        node: the CT.
        folder: where ``maesil features`` wrote them.

    Raises:
        InputError: they cannot be read.
    """

    def __init__(self, node: Any, folder: Path) -> None:
        from MAESILLib.explore.colors import read_basis
        from MAESILLib.explore.features import open_features
        from MAESILLib.explore.similarity import directions, surroundings

        self.node_id, self.folder = node.GetID(), folder
        self.features, _identity = open_features(folder / "features.safetensors", geometry_of(node))
        self.basis = read_basis(folder / "basis.safetensors", len(self.features.values))
        self.around = surroundings(self.features)
        self.directions = directions(self.around.values)

    @property
    def node(self) -> Any:
        """The CT, or None if it is gone."""
        return slicer.mrmlScene.GetNodeByID(self.node_id)

    def query(self, world_ras: tuple[float, float, float]) -> np.ndarray | None:
        """Return the direction (C, 1) of the features at a point of the world, or None outside the volume."""
        from MAESILLib.explore.similarity import directions, features_at
        from MAESILLib.runtime.errors import InputError

        x, y, z = to_own_space(self.node, world_ras)
        try:
            return directions(features_at(self.around, [(-x, -y, z)]).T)
        except InputError:
            return None

    def show_similarity(self, query: np.ndarray) -> Any:
        """Show how similar each place is to a query; return the map's node, the same for all queries."""
        from MAESILLib.explore.similarity import similarity_map

        node = self._map("similarity", "vtkMRMLScalarVolumeNode")
        slicer.util.updateVolumeFromArray(node, similarity_map(self.directions, query))
        if node.GetDisplayNode() is None:
            tint(node, SHOWN_FROM, 1)
        return node

    def show_colors(self) -> Any:
        """Show the first three principal components as red, green and blue; return their node."""
        from MAESILLib.explore.colors import colors_of

        node = self._map("colors", "vtkMRMLVectorVolumeNode")
        colors = np.rint(255 * colors_of(self.features, self.basis) * self.features.body).astype(np.uint8)
        slicer.util.updateVolumeFromArray(node, np.ascontiguousarray(colors.transpose(1, 2, 3, 0)))
        if node.GetDisplayNode() is None:
            node.CreateDefaultDisplayNodes()
        return node

    def best_match(self, query: np.ndarray) -> tuple[float, float, float]:
        """Return the place in the patient that is most similar to a query of another volume, in RAS of the world."""
        from MAESILLib.explore.similarity import best_matches, similarity_map

        ((point, _value),) = best_matches(self.features, similarity_map(self.directions, query), 1)
        world = [0.0] * 3
        self.node.TransformPointToWorld((-point[0], -point[1], point[2]), world)
        x, y, z = world
        return x, y, z

    def _map(self, kind: str, class_name: str) -> Any:
        """Return the node of a map on the grid of cells, made where there is none."""
        node = next((one for one in slicer.util.getNodesByClass(class_name) if self._is_own(one, kind)), None)
        if node is None:
            node = add_beside(self.node, kind, class_name)
            matrix = LPS_AND_RAS @ self.features.cells.geometry.ijk_to_lps()
            node.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(matrix))
        return node

    def _is_own(self, node: Any, kind: str) -> bool:
        return node.GetAttribute("MAESIL.Kind") == kind and node.GetNodeReferenceID("MAESIL.input") == self.node_id


def add_beside(volume: Any, kind: str, class_name: str) -> Any:
    """Add a node that was made of a volume: named after it, beside it, under its transform."""
    node = slicer.mrmlScene.AddNewNodeByClass(class_name, f"{kind} {volume.GetName()}")
    node.SetAttribute("MAESIL.Kind", kind)
    node.SetNodeReferenceID("MAESIL.input", volume.GetID())
    node.SetAndObserveTransformNodeID(volume.GetTransformNodeID())
    tree, folder = folder_of(volume)
    tree.CreateItem(folder, node)
    return node


def tint(node: Any, low: float, high: float) -> None:
    """Give a map its display node: colors from ``low`` to ``high``, nothing below."""
    node.CreateDefaultDisplayNodes()
    shown = node.GetDisplayNode()
    shown.SetAndObserveColorNodeID("vtkMRMLColorTableNodeIron")
    shown.SetAutoWindowLevel(False)
    shown.SetWindowLevelMinMax(low, high)
    shown.SetThreshold(low, 1e6)
    shown.SetApplyThreshold(True)


def show_over(volume: Any, node: Any, opacity: float = OPACITY) -> None:
    """Show a map over its volume in the user's views."""
    slicer.util.setSliceViewerLayers(background=volume, foreground=node, foregroundOpacity=opacity)


def mark(volume: Any, world_ras: tuple[float, float, float]) -> Any:
    """Put a point on the best match in a volume, the same node for each, and return it."""
    points = slicer.util.getNodesByClass("vtkMRMLMarkupsFiducialNode")
    of_volume = [p for p in points if p.GetNodeReferenceID("MAESIL.input") == volume.GetID()]
    node = of_volume[0] if of_volume else slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode")
    node.SetName(_("match in {name}").format(name=volume.GetName()))
    node.SetNodeReferenceID("MAESIL.input", volume.GetID())
    node.RemoveAllControlPoints()
    node.AddControlPointWorld(vtk.vtkVector3d(*world_ras))
    return node


def add_file(path: Path, volume: Any, kind: str) -> Any:
    """Add a volume of floats that the worker wrote on the volume's grid.

    Raises:
        RuntimeError, ValueError: it cannot be read.
    """
    node = add_beside(volume, kind, "vtkMRMLScalarVolumeNode")
    node.CopyOrientation(volume)
    slicer.util.updateVolumeFromArray(node, _array(path))
    node.CreateDefaultDisplayNodes()
    return node


def add_segments(path: Path, volume: Any, looks: list[tuple[str, tuple[float, ...]]]) -> Any:
    """Add the segmentation that the worker wrote on the volume's grid.

    Args:
        looks: names and colors of the segments with the values 1, 2, ...

    Raises:
        RuntimeError, ValueError: it cannot be read.
    """
    labels = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode")
    labels.CopyOrientation(volume)
    labels.SetAndObserveTransformNodeID(volume.GetTransformNodeID())
    array = _array(path)
    slicer.util.updateVolumeFromArray(labels, array)
    node = add_beside(volume, "filled", "vtkMRMLSegmentationNode")
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    slicer.modules.segmentations.logic().ImportLabelmapToSegmentationNode(labels, node)
    slicer.mrmlScene.RemoveNode(labels)
    segments = node.GetSegmentation()
    # values that no voxel has are no segments
    for number, value in enumerate(np.unique(array[array > 0])):
        name, color = looks[int(value) - 1]
        segments.GetNthSegment(number).SetName(name)
        segments.GetNthSegment(number).SetColor(*color)
    node.CreateDefaultDisplayNodes()
    return node


def _array(path: Path) -> np.ndarray:
    import SimpleITK as sitk

    array: np.ndarray = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    return array
