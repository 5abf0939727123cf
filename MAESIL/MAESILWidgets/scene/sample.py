"""The sample CT, an abdomen: in the panel and in the Sample Data module."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import slicer

NAME = "MAESILSampleCT"
FILE = f"Sample/{NAME}.nrrd"


def load(resource: Callable[[str], str]) -> Any:
    """Load the sample and return its volume node.

    Args:
        resource: path of a file in Resources.

    Raises:
        RuntimeError: it could not be loaded.
    """
    node = slicer.util.loadVolume(resource(FILE), {"name": NAME})
    # saving the scene then writes the volume as any new one, not into the extension
    slicer.mrmlScene.RemoveNode(node.GetStorageNode())
    return node


def register(resource: Callable[[str], str]) -> None:
    """Offer the sample in the Sample Data module."""
    try:
        import SampleData
    except ImportError:
        # a user may have switched that module off
        return
    SampleData.SampleDataLogic.registerCustomSampleDataSource(
        category="MAESIL",
        sampleName=NAME,
        # copied from Resources: needs no network
        uris=Path(resource(FILE)).as_uri(),
        fileNames=f"{NAME}.nrrd",
        nodeNames=NAME,
        thumbnailFileName=resource("Icons/MAESIL.png"),
        # Slicer has readers of .nrrd as volume and as transform
        loadFileTypes="VolumeFile",
        checksums="SHA256:cb119bc38c6ed17ca8b8f6749bcd0e62cc52d158f8f67a988d93e12d2d9cfad0",
    )
