"""Loading volumes, and saving and loading scenes, with Slicer's own storage nodes."""

import re
from pathlib import Path
from typing import Any

import slicer
from PySide6 import QtCore

VOLUME_ENDINGS = (".nii.gz", ".nrrd", ".nii", ".mha")


class qSlicerCoreIOManager(QtCore.QObject):  # noqa: N801
    """What slicer.util.loadVolume and saveScene call."""

    def loadNodes(self, kind: str, properties: dict[str, Any], nodes: Any, messages: Any = None) -> bool:
        path = str(properties["fileName"])
        if kind != "VolumeFile" or properties.keys() - {"fileName", "name"}:
            raise NotImplementedError(f"the host cannot load a {kind} with {properties}")
        if not Path(path).exists():
            return False
        logic = slicer.modules.volumes.logic()
        name = properties.get("name") or logic.GetMRMLScene().GetUniqueNameByString(plain_name(path))
        auto_window = 8
        node = logic.AddArchetypeVolume(path, name, auto_window)
        if node is None:
            return False
        application = slicer.app.applicationLogic()
        application.GetSelectionNode().SetActiveVolumeID(node.GetID())
        application.PropagateVolumeSelection()
        nodes.AddItem(node)
        return True

    def saveNodes(self, kind: str, properties: dict[str, Any], messages: Any = None) -> bool:
        """Save the scene and every node's data into a folder."""
        path = str(properties["fileName"])
        if kind != "SceneFile" or Path(path).suffix:
            raise NotImplementedError(f"the host cannot save a {kind} as {path}")
        Path(path).mkdir(parents=True, exist_ok=True)
        return bool(slicer.app.applicationLogic().SaveSceneToSlicerDataBundleDirectory(path, None))


def plain_name(path: str) -> str:
    """The file's name without the ending of a volume."""
    name = Path(path).name
    return next((name[: -len(ending)] for ending in VOLUME_ENDINGS if name.lower().endswith(ending)), Path(path).stem)


def load_scene(path: str) -> bool:
    """Close the scene and read another."""
    scene = slicer.mrmlScene
    scene.Clear(False)
    # as seen in Slicer 5.8: color legends do not come back
    text = Path(path).read_text(encoding="utf-8")
    text = re.sub(r"<ColorLegendDisplay\b.*?</ColorLegendDisplay>", "", text, flags=re.S)
    Path(path).write_text(text, encoding="utf-8")
    scene.SetURL(path)
    scene.SetRootDirectory(str(Path(path).parent))
    return bool(scene.Connect())


ALL = (qSlicerCoreIOManager,)
