"""The module in the host: its inputs, and what a user does with its panel."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import slicer
import vtk
from volume_factory import trunk

REPOSITORY = Path(__file__).resolve().parents[2]
SOON_S = 10
"""Two or three seconds on an idle machine; tests share theirs."""
RESULT_KINDS = ("masked", "reconstruction", "composite", "error", "mask")
ROWS, COLUMNS = ("Masked", "Reconstruction", "Error"), ("Axial", "Coronal", "Sagittal")
"""Of the layout of nine views."""


START = """
import os, sys
from slicer_host import boot
host = boot(sys.argv[1])
host.install_python_slicer(sys.argv[1])
host.add_module_path(sys.argv[2])
host.load_module("MAESIL")
panel = host.open_module("MAESIL").panel
"""


def slicer_process(folder: Path, script: str) -> subprocess.Popen[str]:
    """Slicer in a process of its own, which runs a script with ``host`` and ``panel``.

    Args:
        folder: for its settings, and for PythonSlicer.
    """
    paths = (REPOSITORY, REPOSITORY / "Testing", REPOSITORY / "Testing" / "support")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, paths))}
    command = [sys.executable, "-c", START + script, str(folder), str(REPOSITORY / "MAESIL")]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def ct_node(size_dhw: tuple[int, int, int] = (40, 48, 44), name: str = "ct", seed: int = 0) -> Any:
    """A synthetic CT of 1.5 mm as a volume node, in the usual axial orientation."""
    node = slicer.util.addVolumeFromArray(trunk(size_dhw, seed).astype(np.int16), name=name)
    node.SetSpacing(1.5, 1.5, 1.5)
    node.SetIJKToRASDirections(-1, 0, 0, 0, -1, 0, 0, 0, 1)
    node.SetOrigin(20.0, 30.0, -40.0)
    node.CreateDefaultDisplayNodes()
    return node


def load_ct(path: Path) -> Any:
    """A CT file as a volume node."""
    return slicer.util.loadVolume(str(path))


def label_node(volume: Any, labels: np.ndarray) -> Any:
    """A label map on a volume's grid."""
    matrix = slicer.util.vtkMatrixFromArray(ijk_to_ras(volume))
    return slicer.util.addVolumeFromArray(labels, matrix, "labels", "vtkMRMLLabelMapVolumeNode")


def segmentation_node(name: str, volume: Any, labels: np.ndarray, *segments: str) -> Any:
    """The named segments of a label map where they are in the volume's space; under no transform."""
    painted = label_node(volume, labels)
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
    node.CreateDefaultDisplayNodes()
    slicer.modules.segmentations.logic().ImportLabelmapToSegmentationNode(painted, node)
    slicer.mrmlScene.RemoveNode(painted)
    for number, segment in enumerate(segments):
        node.GetSegmentation().GetNthSegment(number).SetName(segment)
    return node


def slice_logic(row: str, column: str) -> Any:
    """The slice logic of a view of ours."""
    return slicer.app.layoutManager().sliceWidget(f"MAESIL-{row}-{column}").sliceLogic()


def status_message() -> str:
    """What Slicer's status bar says."""
    return str(slicer.util.mainWindow().statusBar().currentMessage())


def choose(combo: Any, value: str) -> None:
    """Choose an item by its value, as a user does."""
    index = combo.findData(value)
    assert index >= 0, f"{value} is not offered"
    combo.setCurrentIndex(index)


def use_checkpoint(widget: Any, checkpoint: Path) -> None:
    """Choose a checkpoint that is quick to run."""
    widget.input.add_checkpoint(str(checkpoint))


def wait_for_end(host: Any, panel_part: Any, timeout: float = 90) -> None:
    """Run the event loop until the part's task has ended."""
    host.process_events(until=lambda: panel_part.task is None, timeout=timeout)


def apply_and_wait(host: Any, widget: Any, timeout: float = 90) -> None:
    """Click Apply and wait for the end."""
    assert widget.ui.applyButton.enabled, widget.ui.applyButton.toolTip
    widget.ui.applyButton.click()
    wait_for_end(host, widget.reconstruct, timeout)


def result_of(widget: Any) -> Any:
    """The result the panel shows."""
    assert widget.results.result is not None, widget.ui.statusLabel.text
    return widget.results.result


def reconstructed(host: Any, widget: Any, timeout: float = 90) -> Any:
    """Click Apply and wait for the result."""
    apply_and_wait(host, widget, timeout)
    return result_of(widget)


def wait_for_worker(host: Any, task_of: Any, timeout: float = 60) -> int:
    """Run the event loop until the worker has said its process id; return that."""

    def pid() -> int:
        task = task_of()
        job = getattr(task, "job", None)
        return job.worker_pid if job is not None and job.is_running else 0

    return int(host.process_events(until=pid, timeout=timeout))


def is_alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def workers_of_this_process() -> list[int]:
    """Process ids of living MAESILLib processes below this one."""
    below = [os.getpid()]
    for pid in below:
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            below += map(int, children.read_text().split())
    commands = {pid: Path(f"/proc/{pid}/cmdline") for pid in below if is_alive(pid)}
    return [pid for pid, path in commands.items() if b"MAESILLib" in path.read_bytes().split(b"\0")]


def wait_until_gone(pid: int, seconds: float) -> float:
    """Wait until a process has ended; return how long it took, or fail."""
    begin = time.monotonic()
    while is_alive(pid):
        assert time.monotonic() - begin < seconds, f"process {pid} lives on after {seconds} s"
        time.sleep(0.01)
    return time.monotonic() - begin


def ijk_to_ras(node: Any) -> np.ndarray:
    """A volume node's own 4x4 matrix, parent transforms left out."""
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    return np.asarray(slicer.util.arrayFromVTKMatrix(matrix))


def scene_state() -> dict[str, Any]:
    """What a user has in the scene: the nodes, where they lie, and their voxels."""
    state: dict[str, Any] = {}
    for kind in ("Displayable", "Text", "Table", "VolumeDisplay", "ColorLegendDisplay", "ModelDisplay", "Color"):
        for node in slicer.util.getNodesByClass(f"vtkMRML{kind}Node"):
            if node.GetHideFromEditors():
                # the application's own: planes of the slice views
                continue
            state[node.GetID()] = [node.GetName()]
            if node.IsA("vtkMRMLVolumeNode"):
                checksum = hash(slicer.util.arrayFromVolume(node).tobytes())
                state[node.GetID()] += [node.GetTransformNodeID(), ijk_to_ras(node).tolist(), checksum]
    return state
