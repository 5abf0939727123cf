"""Reading and writing nodes and scenes with Slicer's own storage nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import slicer
from PySide6 import QtCore

VOLUME_ENDINGS = (".nrrd", ".nhdr", ".nii", ".nii.gz", ".mha", ".mhd")


class qSlicerCoreIOManager(QtCore.QObject):  # noqa: N801
    """What slicer.util's load and save functions call."""

    def fileType(self, filename: str) -> str:
        name = str(filename).lower()
        if name.endswith((".mrml", ".mrb")):
            return "SceneFile"
        if name.endswith(VOLUME_ENDINGS):
            return "VolumeFile"
        if name.endswith((".csv", ".tsv")):
            return "TableFile"
        return "NoFile"

    def fileWriterFileType(self, node: Any) -> str:
        return "NodeFile"

    def loadNodes(self, kind: str, properties: dict[str, Any], nodes: Any = None, messages: Any = None) -> bool:
        path = str(properties["fileName"])
        if not Path(path).exists():
            return False
        if kind == "SceneFile":
            return load_scene(path)
        if kind == "VolumeFile":
            node = self._load_volume(path, properties)
        elif kind == "TableFile":
            node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTableNode", Path(path).stem)
            node.AddDefaultStorageNode(path)
            if not node.GetStorageNode().ReadData(node):
                slicer.mrmlScene.RemoveNode(node)
                node = None
        else:
            raise NotImplementedError(f"the host cannot load a {kind}")
        if node is None:
            return False
        if nodes is not None:
            nodes.AddItem(node)
        return True

    def _load_volume(self, path: str, properties: dict[str, Any]) -> Any:
        logic = slicer.modules.volumes.logic()
        name = properties.get("name") or logic.GetMRMLScene().GetUniqueNameByString(plain_name(path))
        options = 0
        for key, bit in (("labelmap", 1), ("center", 2), ("singleFile", 4), ("discardOrientation", 16)):
            options |= bit if properties.get(key) else 0
        if properties.get("autoWindowLevel", True):
            options |= 8
        node = logic.AddArchetypeVolume(path, name, options)
        if node is not None and properties.get("show", True):
            application = slicer.app.applicationLogic()
            selection = application.GetSelectionNode()
            if node.IsA("vtkMRMLLabelMapVolumeNode"):
                selection.SetActiveLabelVolumeID(node.GetID())
            else:
                selection.SetActiveVolumeID(node.GetID())
            application.PropagateVolumeSelection()
        return node

    def saveNodes(self, kind: str, properties: dict[str, Any], messages: Any = None) -> bool:
        path = str(properties["fileName"])
        if kind == "SceneFile":
            return save_scene(path)
        node = slicer.mrmlScene.GetNodeByID(properties["nodeID"])
        if node.GetStorageNode() is None and not node.AddDefaultStorageNode(path):
            return False
        storage = node.GetStorageNode()
        storage.SetFileName(path)
        if properties.get("useCompression") is not None:
            storage.SetUseCompression(int(properties["useCompression"]))
        return bool(storage.WriteData(node))


def plain_name(path: str) -> str:
    name = Path(path).name
    for ending in sorted(VOLUME_ENDINGS, key=len, reverse=True):
        if name.lower().endswith(ending):
            return name[: -len(ending)]
    return Path(path).stem


def save_scene(path: str) -> bool:
    """.mrml: the scene alone; .mrb: an archive; else a folder with the scene and every node's data."""
    scene = slicer.mrmlScene
    if path.endswith(".mrml"):
        scene.SetURL(path)
        scene.SetRootDirectory(str(Path(path).parent))
        return bool(scene.Commit(path))
    if path.endswith(".mrb"):
        return bool(scene.WriteToMRB(path))
    Path(path).mkdir(parents=True, exist_ok=True)
    return bool(slicer.app.applicationLogic().SaveSceneToSlicerDataBundleDirectory(path, None))


def load_scene(path: str) -> bool:
    """Close the scene and read another."""
    scene = slicer.mrmlScene
    scene.Clear(False)
    if path.endswith(".mrb"):
        return bool(scene.ReadFromMRB(path, True))
    scene.SetURL(path)
    scene.SetRootDirectory(str(Path(path).parent))
    return bool(scene.Connect())


ALL = (qSlicerCoreIOManager,)
