"""What the panel remembers: saved with the scene, restored with it."""

from typing import Annotated

from slicer import vtkMRMLDisplayableNode, vtkMRMLScalarVolumeNode, vtkMRMLTextNode
from slicer.parameterNodeWrapper import WithinRange, parameterNodeWrapper


@parameterNodeWrapper
class MAESILParameterNode:
    """The panel's choices.

    inputVolume - the CT
    checkpoint - path of a checkpoint; empty for the embedded one
    mask, planeRatio, axisRatio, coverage, overlap, seed, device, completion - as the options of ``maesil reconstruct``
    painted - segmentation or label map whose voxels are hidden; paintedSegment - id of one segment, or empty for all
    currentResult - the result shown: its text node
    windowPreset, errorRange - how it is shown; the error map spans -errorRange to +errorRange HU
    showOutlines - superpatch outlines in the views
    showInput - a row of views with the input; compareWith, sideBySide, fade - another result: its text node, whether it
    has rows of its own, its opacity over the current one else
    dataSource - ``folder`` or ``scene``; dataFolder, preset, steps, trainMask, runFolder - as ``maesil pretrain``
    """

    inputVolume: vtkMRMLScalarVolumeNode
    checkpoint: str = ""
    mask: str = "dual"
    planeRatio: Annotated[float, WithinRange(0, 0.95)] = 0.5
    axisRatio: Annotated[float, WithinRange(0, 0.95)] = 0.5
    coverage: str = "single"
    overlap: Annotated[float, WithinRange(0, 0.75)] = 0.0
    seed: Annotated[int, WithinRange(0, 2147483647)] = 0
    device: str = "auto"
    completion: bool = True
    painted: vtkMRMLDisplayableNode
    paintedSegment: str = ""
    currentResult: vtkMRMLTextNode
    windowPreset: str = "wide"
    errorRange: Annotated[int, WithinRange(10, 2000)] = 300
    showOutlines: bool = False
    showInput: bool = False
    compareWith: vtkMRMLTextNode
    sideBySide: bool = True
    fade: Annotated[float, WithinRange(0, 1)] = 0.5
    dataSource: str = "folder"
    dataFolder: str = ""
    preset: str = "tiny"
    steps: Annotated[int, WithinRange(1, 10000000)] = 200
    trainMask: str = "mix"
    runFolder: str = ""
