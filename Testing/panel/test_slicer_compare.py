"""The input in a row of its own, and two results of one input beside or over each other."""

from pathlib import Path
from typing import Any

import slicer
from gui_factory import COLUMNS, ROWS, choose, ct_node, reconstructed, result_of, slice_logic, use_checkpoint


def shown(row: str, column: str) -> tuple[str | None, str | None, float]:
    """Background, foreground and its opacity in a view."""
    node = slice_logic(row, column).GetSliceCompositeNode()
    return node.GetBackgroundVolumeID(), node.GetForegroundVolumeID(), round(node.GetForegroundOpacity(), 3)


def place(row: str, column: str) -> tuple[float, str]:
    """Offset and orientation, which are the same where views show the same place."""
    node = slice_logic(row, column).GetSliceNode()
    return round(node.GetSliceOffset(), 3), node.GetOrientation()


def test_input_row_and_comparing(host: Any, panel: Any, checkpoint: Path, tmp_path: Path) -> None:
    use_checkpoint(panel, checkpoint)
    volume = ct_node()
    panel.parameters.inputVolume = volume
    first = reconstructed(host, panel)
    assert not panel.ui.compareSelector.enabled
    panel.ui.lungWindowButton.click()
    panel.ui.inputRowCheckBox.click()
    for column in COLUMNS:
        assert shown("Input", column)[0] == volume.GetID()
        assert shown("Masked", column)[0] == first.node("masked").GetID()
        assert place("Input", column) == place("Error", column)
    window = volume.GetDisplayNode()
    assert (window.GetLevel(), window.GetWindow()) == (-600, 1500)
    # a click selects in any row, and outlines are in all of them
    host.click_in_slice("MAESIL-Input-Axial", 100, 60)
    assert "Superpatch" in panel.ui.superpatchLabel.text
    assert first.node("selected").GetDisplayNode().GetNumberOfViewNodeIDs() == 12
    panel.ui.inputRowCheckBox.click()
    assert slicer.app.layoutManager().layout == 5820
    assert first.node("selected").GetDisplayNode().GetNumberOfViewNodeIDs() == 9
    panel.ui.seedSpinBox.value = 7
    second = reconstructed(host, panel)
    assert shown("Reconstruction", "Axial") == (second.node("reconstruction").GetID(), None, 0.5)
    choose(panel.ui.compareSelector, first.id)
    for row in ROWS[1:]:
        kind = row.lower()
        for column in COLUMNS:
            assert shown(row, column)[0] == second.node(kind).GetID()
            assert shown(f"{row}B", column)[0] == first.node(kind).GetID()
            assert place(row, column) == place(f"{row}B", column)
    # one window for both, also when it is dragged
    second.node("reconstruction").GetDisplayNode().SetWindowLevel(333, 44)
    assert first.node("reconstruction").GetDisplayNode().GetWindow() == 333
    panel.ui.errorRangeSpinBox.value = 120
    assert first.node("error").GetDisplayNode().GetWindow() == 240
    panel.ui.sideBySideCheckBox.click()
    assert first.node("reconstruction").GetDisplayNode().GetWindow() == 333
    panel.ui.fadeSlider.value = 0.25
    for row in ROWS:
        kind = row.lower()
        assert shown(row, "Coronal") == (second.node(kind).GetID(), first.node(kind).GetID(), 0.25)
    # the other way round: without what was saved the latest one would be chosen
    choose(panel.ui.resultSelector, first.id)
    choose(panel.ui.compareSelector, second.id)
    names = second.name, first.name
    saved = host.save_scene(tmp_path / "scene")
    host.load_scene(saved)
    assert (panel.results.compare.other.name, result_of(panel).name) == names
    assert (panel.ui.fadeSlider.value, panel.ui.sideBySideCheckBox.checked) == (0.25, False)
    # what is compared is gone: the result alone remains
    choose(panel.ui.resultSelector, panel.results.compare.other.id)
    assert panel.results.compare.other is None
    panel.ui.removeResultButton.click()
    assert shown("Error", "Axial")[1] is None
    assert not panel.ui.compareSelector.enabled
    # Back is from any of these layouts to the user's own
    panel.ui.inputRowCheckBox.click()
    panel.ui.layoutBackButton.click()
    assert slicer.app.layoutManager().layout == slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView
