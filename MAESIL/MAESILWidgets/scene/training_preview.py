"""The latest preview of a training as volumes in the scene."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import slicer

from MAESILWidgets.scene import display

KINDS = ("masked", "reconstruction", "error")


def load(path: Path) -> dict[str, Any]:
    """Read previews/latest.npz of a run into the scene: one validation superpatch; the nodes are reused.

    Returns:
        the volume nodes by kind.

    Raises:
        OSError, ValueError, KeyError: it cannot be read.
    """
    # no pickles: a file must not be able to run code
    with np.load(path, allow_pickle=False) as file:
        arrays = {kind: file[kind] for kind in KINDS}
        spacing = float(file["spacing_mm"])
    return {kind: _node(kind, arrays[kind], spacing) for kind in KINDS}


def _node(kind: str, array: np.ndarray, spacing: float) -> Any:
    volumes = slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")
    node = next((volume for volume in volumes if volume.GetAttribute("MAESIL.Preview") == kind), None)
    is_new = node is None
    if is_new:
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", f"{kind} MAESIL preview")
        node.SetAttribute("MAESIL.Preview", kind)
        # the array is in LPS order (D superior, H posterior, W left): RAS needs the first two axes turned round
        node.SetIJKToRASDirections(-1, 0, 0, 0, -1, 0, 0, 0, 1)
    node.SetSpacing(spacing, spacing, spacing)
    slicer.util.updateVolumeFromArray(node, array)
    if is_new:
        display.set_up(node, kind)
    return node
