"""What a user painted, a segmentation or a label map, as a label map in the space of the volume that it hides."""

from __future__ import annotations

from typing import Any

import slicer
import vtk
from slicer.i18n import tr as _

CLASSES = ("vtkMRMLSegmentationNode", "vtkMRMLLabelMapVolumeNode")


def segments(node: Any) -> dict[str, str]:
    """Return the names of a segmentation's segments by their ids; none of another node, or of None."""
    if node is None or not node.IsA(CLASSES[0]):
        return {}
    found = node.GetSegmentation()
    return {found.GetNthSegmentID(n): found.GetNthSegment(n).GetName() for n in range(found.GetNumberOfSegments())}


def label_map(node: Any, segment: str, volume: Any) -> Any:
    """Return a label map volume outside the scene, named after what it was made from; painted is what is not 0.

    Args:
        node: segmentation or label map.
        segment: id of one segment; all of them if empty.
        volume: the label map's place is given in its space, parent transforms undone.

    Raises:
        ValueError: there is nothing in it, or it lies under a transform that is not linear.
    """
    names = segments(node)
    if segment and segment not in names:
        raise ValueError(_("{name} has no such segment: choose another one").format(name=node.GetName()))
    labels = slicer.vtkMRMLLabelMapVolumeNode()
    labels.SetName(" ".join(filter(None, (node.GetName(), names.get(segment, "")))))
    if node.IsA(CLASSES[0]):
        chosen, image = vtk.vtkStringArray(), slicer.vtkOrientedImageData()
        for one in [segment] if segment else names:
            chosen.InsertNextValue(one)
        extent = slicer.vtkSegmentation.EXTENT_UNION_OF_EFFECTIVE_SEGMENTS
        if names and node.CreateBinaryLabelmapRepresentation():
            node.GenerateMergedLabelmapForAllSegments(image, extent, None, chosen)
            slicer.modules.segmentations.logic().CreateLabelmapVolumeFromOrientedImageData(image, labels)
    else:
        place = vtk.vtkMatrix4x4()
        node.GetIJKToRASMatrix(place)
        labels.SetIJKToRASMatrix(place)
        labels.SetAndObserveImageData(node.GetImageData())
    if labels.GetImageData() is None or min(labels.GetImageData().GetDimensions()) == 0:
        raise ValueError(_("Nothing is painted in {name}").format(name=labels.GetName()))
    matrix, place = vtk.vtkMatrix4x4(), vtk.vtkMatrix4x4()
    between = (node.GetParentTransformNode(), volume.GetParentTransformNode(), matrix)
    if not slicer.vtkMRMLTransformNode.GetMatrixTransformBetweenNodes(*between):
        text = _("{name} and the volume lie under transforms that are not linear: harden them")
        raise ValueError(text.format(name=node.GetName()))
    labels.GetIJKToRASMatrix(place)
    vtk.vtkMatrix4x4.Multiply4x4(matrix, place, place)
    labels.SetIJKToRASMatrix(place)
    return labels
