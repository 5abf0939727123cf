"""The Explore section: features, colors, similarity under the crosshair, matches in another volume, filled strokes."""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slicer
import vtk
from gui_factory import (
    ct_node,
    ijk_to_ras,
    scene_state,
    segmentation_node,
    status_message,
    use_checkpoint,
    wait_for_end,
)
from test_slicer_geometry import GRIDS, ct_on, parent_transform

from MAESILLib.cli import main

SIZE = (40, 56, 64)


@pytest.fixture
def oblique(panel: Any, lively: Any) -> Any:
    """An oblique volume under a transform, chosen, with a checkpoint that is quick to run."""
    node = ct_on(GRIDS["oblique and anisotropic"], SIZE)
    node.SetAndObserveTransformNodeID(parent_transform().GetID())
    use_checkpoint(panel, lively)
    panel.parameters.inputVolume = node
    return node


def compute(host: Any, panel: Any) -> None:
    """Click Compute features and wait."""
    assert panel.ui.featuresButton.enabled, panel.ui.featuresButton.toolTip
    panel.ui.featuresButton.click()
    wait_for_end(host, panel.explore)
    assert panel.explore.current is not None, panel.ui.exploreStatusLabel.text


def world_of(node: Any, ijk: tuple[float, ...]) -> np.ndarray:
    """Return where a voxel of a volume lies in the world, RAS mm."""
    matrix = vtk.vtkMatrix4x4()
    slicer.vtkMRMLTransformNode.GetMatrixTransformBetweenNodes(node.GetParentTransformNode(), None, matrix)
    return (slicer.util.arrayFromVTKMatrix(matrix) @ ijk_to_ras(node) @ [*ijk, 1])[:3]


def crosshair_to(point: np.ndarray) -> None:
    """Do what Shift and a move of the mouse do."""
    slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLCrosshairNode").SetCrosshairRAS(*point)


def foreground() -> str:
    """Return what lies over the volume in the user's own views."""
    composite = slicer.app.layoutManager().sliceWidget("Red").mrmlSliceCompositeNode()
    return str(composite.GetForegroundVolumeID())


def only_scalar_volume(name: str) -> Any:
    """Return the one scalar volume of a name."""
    (node,) = [n for n in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode") if n.GetName() == name]
    return node


def test_similarity_follows_the_crosshair(host: Any, panel: Any, oblique: Any) -> None:
    before = scene_state()
    assert not panel.ui.followCheckBox.enabled
    compute(host, panel)
    assert scene_state() == before
    assert not panel.ui.featuresButton.enabled
    panel.ui.followCheckBox.click()
    crosshair_to(world_of(oblique, (30.0, 30.0, 20.0)))
    node = only_scalar_volume("similarity ct")
    for cell in ((1, 1, 1), tuple(n - 2 for n in slicer.util.arrayFromVolume(node).shape)):
        crosshair_to(world_of(node, cell[::-1]))
        similarity = slicer.util.arrayFromVolume(node)
        assert similarity[cell] == pytest.approx(1, abs=1e-3)
        assert np.unravel_index(similarity.argmax(), similarity.shape) == cell
        assert similarity.min() < 0.5
    assert node.GetTransformNodeID() == oblique.GetTransformNodeID()
    # it is no input
    assert node.GetID() in panel.ui.inputSelector.sortFilterProxyModel().hiddenNodeIDs
    crosshair_to(np.full(3, 1e4))
    panel.ui.colorsButton.click()
    (colors,) = slicer.util.getNodesByClass("vtkMRMLVectorVolumeNode")
    array = slicer.util.arrayFromVolume(colors)
    assert array.shape == (*similarity.shape, 3)
    assert array.std() > 10
    assert foreground() == colors.GetID()
    # the colors do not hide it for good
    crosshair_to(world_of(node, (1, 1, 1)))
    assert foreground() == node.GetID()
    # another state of the volume has none
    slicer.util.arrayFromVolume(oblique)[:] += 1
    slicer.util.arrayFromVolumeModified(oblique)
    panel.update()
    assert panel.ui.featuresButton.enabled


def test_a_place_is_found_in_another_volume(host: Any, panel: Any, oblique: Any) -> None:
    """In a copy of the volume that lies elsewhere: its features are computed first."""
    other = ct_node(SIZE, "other")
    panel.parameters.inputVolume = oblique
    compute(host, panel)
    panel.ui.otherSelector.setCurrentNode(other)
    crosshair_to(np.full(3, 1e4))
    panel.ui.findButton.click()
    assert "crosshair" in panel.ui.exploreStatusLabel.text
    ijk = (30.0, 28.0, 20.0)
    crosshair_to(world_of(oblique, ijk))
    panel.ui.findButton.click()
    host.process_events(until=lambda: "Best match" in panel.ui.exploreStatusLabel.text, timeout=90)
    (points,) = slicer.util.getNodesByClass("vtkMRMLMarkupsFiducialNode")
    assert points.GetName() == "match in other"
    assert points.GetNumberOfControlPoints() == 1
    # it is seen where it lies
    views = slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")
    assert other.GetID() in {view.GetBackgroundVolumeID() for view in views}


def test_strokes_are_filled(host: Any, panel: Any, oblique: Any) -> None:
    hu = slicer.util.arrayFromVolume(oblique)
    hu[:] = -900
    hu[8:32, 12:44, 10:54] = 40
    hu[8:32, 12:44, 32:54] = 300
    hu += np.random.default_rng(0).integers(-20, 20, hu.shape, dtype=np.int16)
    slicer.util.arrayFromVolumeModified(oblique)
    labels = np.zeros(SIZE, np.uint8)
    labels[10:30:6, 16:40, 14:18] = 1
    labels[10:30:6, 16:40, 44:48] = 2
    strokes = segmentation_node("strokes", oblique, labels, "soft", "dense")
    lone = segmentation_node("lone", oblique, labels * (labels == 1))
    lone.GetSegmentation().AddEmptySegment("empty")
    strokes.SetAndObserveTransformNodeID(oblique.GetTransformNodeID())
    strokes.GetSegmentation().GetNthSegment(1).SetColor(0.1, 0.2, 0.9)
    compute(host, panel)
    panel.ui.strokesSelector.setCurrentNode(strokes)
    assert panel.ui.fillButton.enabled
    panel.ui.strokesSelector.setCurrentNode(lone)
    panel.ui.fillButton.click()
    assert "Paint in two or more segments" in panel.ui.exploreStatusLabel.text
    slicer.mrmlScene.RemoveNode(lone)
    panel.ui.strokesSelector.setCurrentNode(strokes)
    panel.ui.fillButton.click()
    wait_for_end(host, panel.explore)
    assert panel.ui.exploreStatusLabel.text == ""
    (filled,) = [n for n in slicer.util.getNodesByClass("vtkMRMLSegmentationNode") if n is not strokes]
    assert filled.GetTransformNodeID() == oblique.GetTransformNodeID()
    segments = filled.GetSegmentation()
    assert [segments.GetNthSegment(n).GetName() for n in range(2)] == ["soft", "dense"]
    np.testing.assert_allclose(segments.GetNthSegment(1).GetColor(), (0.1, 0.2, 0.9))
    places = np.s_[10:30, 14:42, 12:30], np.s_[10:30, 14:42, 34:52]
    for number, place in enumerate(places):
        mask = slicer.util.arrayFromSegmentBinaryLabelmap(filled, segments.GetNthSegmentID(number), oblique)
        assert mask[place].mean() > 0.5
        assert mask[places[1 - number]].mean() < 0.1
    kinds = {n.GetAttribute("MAESIL.Kind") for n in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")}
    assert {"probability of soft", "probability of dense"} <= kinds


@pytest.fixture
def calibrated(panel: Any, lively: Path, scan: Path, tmp_path: Path) -> None:
    """The panel has a checkpoint with a calibration beside it."""
    own = Path(shutil.copy(lively, tmp_path / "own.safetensors"))
    calibration = own.with_suffix(".surprise.json")
    options = ("--covers", "2", "--checkpoint", str(own), "--progress", "off")
    assert main(["surprise", str(scan), "--calibrate", str(calibration), *options]) == 0
    use_checkpoint(panel, own)


def test_surprise_is_shown(host: Any, panel: Any, oblique: Any, calibrated: None) -> None:
    panel.ui.surpriseButton.click()
    wait_for_end(host, panel.explore)
    # the panel asks for more covers than were calibrated
    assert "covers" in panel.ui.exploreStatusLabel.text
    node = only_scalar_volume("surprise ct")
    assert node.GetTransformNodeID() == oblique.GetTransformNodeID()
    np.testing.assert_allclose(ijk_to_ras(node), ijk_to_ras(oblique))
    array = slicer.util.arrayFromVolume(node)
    assert array.shape == SIZE
    assert array.max() > 0
    assert not list(panel.temporary.iterdir())


def test_what_ends_leaves_nothing(host: Any, panel: Any, oblique: Any) -> None:
    panel.ui.featuresButton.click()
    panel.ui.exploreCancelButton.click()
    wait_for_end(host, panel.explore)
    assert "Cancelled" in panel.ui.exploreStatusLabel.text
    assert not list(panel.temporary.iterdir())
    # a checkpoint of one's own has no calibration
    panel.ui.surpriseButton.click()
    wait_for_end(host, panel.explore)
    assert "surprise.json" in panel.ui.exploreStatusLabel.text
    compute(host, panel)
    slicer.mrmlScene.Clear()
    assert panel.explore.known == {}
    assert not list(panel.temporary.iterdir())


def test_another_module_in_front_is_told_of_it(host: Any, panel: Any, oblique: Any, calibrated: None) -> None:
    panel.exit()
    panel.ui.featuresButton.click()
    host.process_events(until=lambda: re.search(r"MAESIL: Encoding \(\d+%\)", status_message()), timeout=30)
    wait_for_end(host, panel.explore)
    assert status_message() == "MAESIL: the volume is encoded"
    # and its views are left alone
    panel.ui.surpriseButton.click()
    wait_for_end(host, panel.explore)
    assert status_message() == "MAESIL: the surprise map is ready"
    node = only_scalar_volume("surprise ct")
    views = slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")
    assert node.GetID() not in {view.GetForegroundVolumeID() for view in views}


def test_a_long_message_is_seen_whole(host: Any, panel: Any, oblique: Any, qt: Any) -> None:
    label = panel.ui.exploreStatusLabel
    panel.ui.exploreSection.collapsed = False
    label.text = "word " * 60
    label.setVisible(True)
    host.process_events()
    assert label.height >= label.heightForWidth(label.width)
    assert isinstance(label, qt.QLabel)
