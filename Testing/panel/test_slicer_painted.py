"""What is painted is hidden: a segment or a label map, wherever it and the volume lie."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slicer
from gui_factory import (
    apply_and_wait,
    choose,
    ct_node,
    label_node,
    reconstructed,
    scene_state,
    segmentation_node,
    use_checkpoint,
)
from test_slicer_geometry import GRIDS, ct_on, parent_transform
from test_slicer_geometry import SIZE_DHW as SIZE

LIVER, SPLEEN = (slice(9, 15), slice(20, 24), slice(30, 33)), (slice(30, 31), slice(10, 11), slice(5, 40))
ORGANS = np.zeros(SIZE, np.uint8)
ORGANS[LIVER], ORGANS[SPLEEN] = 1, 2


def segmentation(volume: Any) -> Any:
    return segmentation_node("organs", volume, ORGANS, "liver", "spleen")


def assert_hidden(result: Any, *places: tuple[slice, ...]) -> None:
    """All of these voxels are hidden, and nothing that is further from them than a patch."""
    hidden = slicer.util.arrayFromVolume(result.node("mask")) == 1
    near = np.zeros(SIZE, bool)
    for place in places:
        assert hidden[place].all()
        # a patch of 12 mm is 15 voxels of 0.8 mm at most
        near[tuple(slice(max(0, axis.start - 15), axis.stop + 15) for axis in place)] = True
    assert 0 < hidden.mean() < 0.4
    assert not hidden[~near].any()


def test_a_segment_is_hidden_where_it_lies(host: Any, panel: Any, checkpoint: Path) -> None:
    """The segmentation is hardened in the world; the volume is oblique and lies under transforms."""
    node = ct_on(GRIDS["oblique and anisotropic"])
    organs = segmentation(node)
    parent = parent_transform()
    node.SetAndObserveTransformNodeID(parent.GetID())
    organs.SetAndObserveTransformNodeID(parent.GetID())
    assert organs.HardenTransform()
    use_checkpoint(panel, checkpoint)
    panel.parameters.inputVolume = node
    choose(panel.ui.maskSelector, "none")
    assert not panel.ui.segmentSelector.isVisible()
    panel.ui.paintedSelector.setCurrentNode(organs)
    assert panel.ui.segmentSelector.isVisible()
    assert "painted" in panel.ui.hiddenShareLabel.text
    assert_hidden(reconstructed(host, panel), LIVER, SPLEEN)
    before = scene_state()
    names = [panel.ui.segmentSelector.itemText(n) for n in range(panel.ui.segmentSelector.count)]
    panel.ui.segmentSelector.setCurrentIndex(names.index("liver"))
    result = reconstructed(host, panel)
    assert_hidden(result, LIVER)
    assert result.name.startswith("ct painted organs liver ")
    assert result.metrics["mask"]["painted"] == "organs liver.seg.nrrd"
    assert not list(panel.temporary.iterdir())
    panel.ui.removeResultButton.click()
    assert scene_state() == before


def test_a_label_map_with_a_mask_from_python(host: Any, panel: Any, checkpoint: Path) -> None:
    import MAESIL

    volume = ct_node(SIZE)
    options = {"checkpoint": str(checkpoint), "waitForCompletion": True}
    logic = MAESIL.MAESILLogic()
    both = logic.reconstruct(volume, paintedNode=label_node(volume, ORGANS), **options)
    hidden = slicer.util.arrayFromVolume(both.node("mask")) == 1
    assert hidden[LIVER].all()
    assert hidden[SPLEEN].all()
    # what the mask drew is hidden besides
    assert hidden.mean() > 0.6
    assert both.name.startswith("ct dual 0.50/0.50 painted labels ")
    with pytest.raises(ValueError, match="no such segment"):
        logic.reconstruct(volume, paintedNode=segmentation(volume), segment="kidney", **options)


def test_what_cannot_be_hidden(host: Any, panel: Any, checkpoint: Path) -> None:
    use_checkpoint(panel, checkpoint)
    panel.parameters.inputVolume = ct_node(SIZE)
    nothing = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "nothing")
    # results of ours are not offered
    assert panel.ui.paintedSelector.nodeCount() == 1
    panel.ui.paintedSelector.setCurrentNode(nothing)
    panel.ui.applyButton.click()
    assert "Nothing is painted in nothing" in panel.ui.statusLabel.text
    assert panel.reconstruct.task is None
    empty = label_node(panel.parameters.inputVolume, np.zeros(SIZE, np.uint8))
    panel.ui.paintedSelector.setCurrentNode(empty)
    apply_and_wait(host, panel)
    assert "every voxel is 0" in panel.ui.statusLabel.text
    choose(panel.ui.coverageSelector, "complete")
    assert "single coverage" in panel.ui.applyButton.toolTip
    slicer.mrmlScene.RemoveNode(empty)
    assert panel.parameters.painted is None
    assert panel.ui.applyButton.enabled
    assert not list(panel.temporary.iterdir())
