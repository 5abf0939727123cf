"""What the panel remembers: saved with the scene, restored with it."""

from typing import Annotated

from slicer import vtkMRMLScalarVolumeNode
from slicer.parameterNodeWrapper import WithinRange, parameterNodeWrapper


@parameterNodeWrapper
class MAESILParameterNode:
    """The panel's choices.

    inputVolume - the CT
    checkpoint - path of a checkpoint; empty for the embedded one
    mask, planeRatio, axisRatio, coverage, overlap, seed, device - as the options of ``maesil reconstruct``
    currentResult - node id of the result shown (its text node)
    windowPreset, errorRange - how it is shown; the error map spans -errorRange to +errorRange HU
    showOutlines - superpatch outlines in the views
    dataSource - ``folder`` or ``scene``; dataFolder, preset, steps, trainMask, runFolder - as ``maesil pretrain``
    """

    inputVolume: vtkMRMLScalarVolumeNode
    checkpoint: str = ""
    mask: str = "dual"
    planeRatio: Annotated[float, WithinRange(0, 0.95)] = 0.5
    axisRatio: Annotated[float, WithinRange(0, 0.95)] = 0.5
    coverage: str = "single"
    overlap: Annotated[float, WithinRange(0, 0.75)] = 0.0
    seed: int = 0
    device: str = "auto"
    currentResult: str = ""
    windowPreset: str = "wide"
    errorRange: int = 300
    showOutlines: bool = False
    dataSource: str = "folder"
    dataFolder: str = ""
    preset: str = "tiny"
    steps: int = 200
    trainMask: str = "mix"
    runFolder: str = ""
