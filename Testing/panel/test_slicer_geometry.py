"""Every result lies where the input lies: on real MRML nodes, for every kind of grid, under a transform."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import slicer
import vtk
from gui_factory import RESULT_KINDS, ijk_to_ras, reconstructed, use_checkpoint
from volume_factory import trunk

SIZE_DHW = (40, 48, 44)


def rotation(axis: int, degrees: float) -> np.ndarray:
    """A 3x3 rotation about one axis."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    one, other = [i for i in range(3) if i != axis]
    matrix = np.eye(3)
    matrix[one, one] = matrix[other, other] = c
    matrix[one, other], matrix[other, one] = -s, s
    return matrix


GRIDS = {
    "identity": np.eye(3) * 1.5,
    "as scanners write it": np.diag([-1.0, -1.0, 1.0]) * 1.5,
    "one axis flipped": np.diag([1.0, -1.0, 1.0]) * 1.5,
    "all axes flipped": np.diag([-1.0, -1.0, -1.0]) * 1.5,
    "sagittal slices": np.array([[0, 0, 1.0], [-1, 0, 0], [0, 1, 0]]) * 1.5,
    "anisotropic": np.diag([-0.9, -0.9, 2.5]),
    "oblique and anisotropic": rotation(0, 12) @ rotation(1, -17) @ np.diag([-1.1, -0.8, 3.0]),
}
"""Columns: the steps of i, j and k in RAS mm."""


def ct_on(steps: np.ndarray, size_dhw: tuple[int, int, int] = SIZE_DHW) -> Any:
    """A CT whose voxel (i, j, k) lies at ``steps @ (i, j, k)`` and a shift."""
    matrix = np.eye(4)
    matrix[:3, :3] = steps
    matrix[:3, 3] = (17.25, -33.5, 801.125)
    node = slicer.util.addVolumeFromArray(trunk(size_dhw).astype(np.int16), ijkToRAS=matrix, name="ct")
    node.CreateDefaultDisplayNodes()
    return node


def parent_transform() -> Any:
    """A rotated and shifted linear transform with another one above it."""
    above = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "above")
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "parent")
    for one, degrees, shift in ((above, 30, (5, 6, 7)), (node, -40, (-100, 20, 3))):
        matrix = np.eye(4)
        matrix[:3, :3] = rotation(2, degrees)
        matrix[:3, 3] = shift
        one.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(matrix))
    node.SetAndObserveTransformNodeID(above.GetID())
    return node


def world_points(node: Any, ijk: np.ndarray) -> np.ndarray:
    """World positions in RAS mm of voxels (i, j, k), through the node's matrix and all its parent transforms."""
    transform = vtk.vtkGeneralTransform()
    slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(node.GetParentTransformNode(), None, transform)
    own = np.c_[ijk, np.ones(len(ijk))] @ ijk_to_ras(node).T
    return np.array([transform.TransformPoint(point[:3]) for point in own])


@pytest.mark.parametrize("name", GRIDS)
def test_results_lie_where_the_input_lies(name: str, host: Any, panel: Any, checkpoint: Path, tmp_path: Path) -> None:
    node = ct_on(GRIDS[name])
    node.SetAndObserveTransformNodeID(parent_transform().GetID())
    use_checkpoint(panel, checkpoint)
    panel.parameters.inputVolume = node
    result = reconstructed(host, panel)
    k, j, i = (np.array([0, n // 3, n - 1]) for n in SIZE_DHW)
    ijk = np.array(np.meshgrid(i, j, k, indexing="ij")).reshape(3, -1).T
    expected = world_points(node, ijk)
    for kind in RESULT_KINDS:
        assert world_points(result.node(kind), ijk) == pytest.approx(expected, abs=1e-9), kind
        assert slicer.util.arrayFromVolume(result.node(kind)).shape == SIZE_DHW
    # the voxels lie in the right places too: where nothing is hidden, the masked input is the input
    hidden = slicer.util.arrayFromVolume(result.node("mask")) == 1
    masked = slicer.util.arrayFromVolume(result.node("masked"))
    clipped = np.clip(slicer.util.arrayFromVolume(node), -1000, 1000)
    assert 0.5 < hidden.mean() < 0.95
    assert (masked[~hidden] == clipped[~hidden]).all()
    # outlines begin at the volume's faces; the model's isotropic grid covers it and may reach a voxel further
    panel.ui.outlinesCheckBox.click()
    assert result.node("outlines").GetTransformNodeID() == node.GetTransformNodeID()
    points = slicer.util.arrayFromModelPoints(result.node("outlines"))
    own = np.linalg.inv(ijk_to_ras(node)) @ np.c_[points, np.ones(len(points))].T
    size = np.array(SIZE_DHW[::-1])
    further = 1.5 / np.linalg.norm(GRIDS[name], axis=0)
    below, above = -0.5 - own[:3].min(1), own[:3].max(1) - (size - 0.5)
    assert np.minimum(below, above) == pytest.approx(np.zeros(3), abs=1e-4)
    assert (below > -1e-4).all()
    assert (above > -1e-4).all()
    assert (below + above < further).all()


def exported(host: Any, node: Any, path: Path) -> Any:
    """The file that the worker gets, read by SimpleITK."""
    from MAESILWidgets.scene.export import VolumeExport

    ended: list[Any] = []
    VolumeExport(node, path, lambda share: None, ended.append).start()
    host.process_events(until=lambda: ended, timeout=20)
    assert ended == [None]
    return sitk.ReadImage(str(path))


def test_the_file_for_the_worker_has_the_node_s_geometry(host: Any, panel: Any, tmp_path: Path) -> None:
    """The exported NRRD has every voxel where the node has it."""
    for steps in GRIDS.values():
        node = ct_on(steps)
        image = exported(host, node, tmp_path / "v.nrrd")
        assert (sitk.GetArrayFromImage(image) == slicer.util.arrayFromVolume(node)).all()
        for ijk in ((0, 0, 0), (43, 0, 0), (0, 47, 0), (0, 0, 39), (5, 6, 7)):
            lps = np.array(image.TransformIndexToPhysicalPoint(ijk))
            ras = world_points(node, np.array([ijk], float))[0]
            assert lps * (-1, -1, 1) == pytest.approx(ras, abs=1e-6)


def test_every_voxel_type_is_exported(host: Any, panel: Any, tmp_path: Path) -> None:
    values = np.arange(8 * 9 * 10).reshape(8, 9, 10) % 100
    for dtype in ("int8", "uint8", "int16", "uint16", "int32", "uint32", "float32", "float64"):
        node = slicer.util.addVolumeFromArray(values.astype(dtype), name="v")
        array = sitk.GetArrayFromImage(exported(host, node, tmp_path / "v.nrrd"))
        assert array.dtype == np.dtype(dtype)
        assert (array == values).all()


def test_a_preview_has_its_left_on_the_patient_s_left(host: Any, panel: Any, tmp_path: Path) -> None:
    """Previews are in LPS order: growing indices go to posterior and left, so RAS coordinates fall."""
    from MAESILWidgets.scene import training_preview

    arrays = {kind: np.zeros((4, 5, 6), np.int16) for kind in ("masked", "reconstruction", "error")}
    np.savez(tmp_path / "latest.npz", **arrays, spacing_mm=np.float64(1.5))
    node = training_preview.load(tmp_path / "latest.npz")["masked"]
    first, last = world_points(node, np.array([[0, 0, 0], [5, 4, 3]], float))
    assert last - first == pytest.approx([-7.5, -6.0, 4.5])
