"""The panel, driven by clicks, with real background processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gui_factory import (
    RESULT_KINDS,
    apply_and_wait,
    choose,
    ct_node,
    result_of,
    scene_state,
    use_checkpoint,
    workers_of_this_process,
)

ROWS, COLUMNS = ("Masked", "Reconstruction", "Error"), ("Axial", "Coronal", "Sagittal")


class TestInput:
    def test_without_a_volume_apply_says_what_is_missing(self, panel: Any) -> None:
        assert not panel.ui.applyButton.enabled
        assert "volume" in panel.ui.applyButton.toolTip

    def test_a_ct_is_described(self, panel: Any, checkpoint: Path) -> None:
        use_checkpoint(panel, checkpoint)
        panel.parameters.inputVolume = ct_node((40, 48, 44))
        line = panel.ui.volumeInfoLabel.text
        for part in ("44 x 48 x 40", "1.5 x 1.5 x 1.5 mm", "HU", "8 superpatches"):
            assert part in line
        assert panel.ui.applyButton.enabled
        assert not panel.ui.volumeWarningLabel.isVisible()

    def test_too_little_free_memory_is_a_warning(
        self, panel: Any, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        free = {"bytes": 2**40}
        monkeypatch.setattr("MAESILLib.runtime.system.machine_memory", lambda: (2**40, free["bytes"]))
        use_checkpoint(panel, checkpoint)
        panel.parameters.inputVolume = ct_node((40, 48, 44))
        assert panel.ui.hintLabel.text == ""
        assert not panel.ui.hintLabel.isVisible()
        free["bytes"] = 2**29
        panel.reconstruct.update()
        assert "0.6 GiB of memory, and 0.5 GiB are free" in panel.ui.hintLabel.text
        assert panel.ui.hintLabel.isVisible()
        assert panel.ui.applyButton.enabled

    def test_a_volume_of_the_scene_is_taken_up_on_entering(self, host: Any, panel: Any) -> None:
        node = ct_node()
        panel.exit()
        panel.enter()
        assert panel.ui.inputSelector.currentNode() is node

    @pytest.mark.parametrize(
        ("values", "word"),
        [
            (np.random.default_rng(0).random((40, 40, 40)), "normalised"),
            (np.random.default_rng(0).integers(0, 5, (40, 40, 40)).astype(np.int16), "label map"),
            (np.full((40, 40, 40), -1000, np.int16), "same value"),
        ],
    )
    def test_what_is_no_ct_is_refused_before_the_work(self, panel: Any, values: np.ndarray, word: str) -> None:
        import slicer

        node = slicer.util.addVolumeFromArray(values, name="other")
        panel.parameters.inputVolume = node
        assert word in panel.ui.volumeWarningLabel.text
        assert not panel.ui.applyButton.enabled
        assert word in panel.ui.applyButton.toolTip

    def test_a_sheared_volume_is_refused_before_the_work(self, panel: Any) -> None:
        import slicer
        import vtk

        node = ct_node()
        matrix = vtk.vtkMatrix4x4()
        node.GetIJKToRASMatrix(matrix)
        matrix.SetElement(1, 2, 0.4)
        node.SetIJKToRASMatrix(matrix)
        panel.parameters.inputVolume = node
        assert "perpendicular" in panel.ui.volumeWarningLabel.text
        assert not panel.ui.applyButton.enabled
        assert slicer.mrmlScene.GetNodeByID(node.GetID()) is node

    def test_edited_voxels_are_described_anew(self, panel: Any) -> None:
        import slicer

        node = ct_node()
        panel.parameters.inputVolume = node
        slicer.util.arrayFromVolume(node)[0, 0, 0] = 2999
        slicer.util.arrayFromVolumeModified(node)
        panel.update()
        assert "2999" in panel.ui.volumeInfoLabel.text

    def test_the_embedded_checkpoint_comes_first(self, panel: Any) -> None:
        assert panel.ui.checkpointSelector.itemData(0) == ""
        assert "3.8 M" in panel.ui.checkpointInfoLabel.text
        from MAESILLib.mae.checkpoint import read_info
        from MAESILLib.runtime.resources import embedded_checkpoint

        # every part of its training counts
        training, samples = read_info(embedded_checkpoint()).training, 0
        while training:
            samples += training["samples"]
            training = training.get("initialised_from", {}).get("training", {})
        assert f"{samples:,} crops" in panel.ui.checkpointInfoLabel.text

    def test_a_checkpoint_is_browsed_for(self, host: Any, panel: Any, checkpoint: Path) -> None:
        host.answers.append(str(checkpoint))
        panel.ui.browseCheckpointButton.click()
        index = panel.ui.checkpointSelector.currentIndex
        assert panel.ui.checkpointSelector.itemData(index) == str(checkpoint)
        assert panel.parameters.checkpoint == str(checkpoint)

    def test_a_cancelled_browse_changes_nothing(self, host: Any, panel: Any) -> None:
        host.answers.append("")
        panel.ui.browseCheckpointButton.click()
        assert panel.parameters.checkpoint == ""

    def test_a_truncated_checkpoint_is_told_before_the_work(self, panel: Any, checkpoint: Path, tmp_path: Path) -> None:
        cut = tmp_path / "cut.safetensors"
        cut.write_bytes(checkpoint.read_bytes()[:-1000])
        panel.parameters.inputVolume = ct_node()
        use_checkpoint(panel, cut)
        assert "cut.safetensors" in panel.ui.volumeWarningLabel.text
        assert "damaged" in panel.ui.applyButton.toolTip
        assert not panel.ui.applyButton.enabled

    def test_the_sample_is_loaded_by_one_click(self, host: Any, panel: Any) -> None:
        panel.ui.sampleButton.click()
        node = panel.parameters.inputVolume
        assert node.GetName() == "MAESILSampleCT"
        assert node.GetImageData().GetDimensions()[0] > 100
        assert node.GetStorageNode() is None
        assert not list(panel.temporary.iterdir())
        assert panel.ui.applyButton.enabled


class TestReconstruct:
    def test_mask_ratio_follows_mask_and_ratios(self, panel: Any) -> None:
        panel.ui.planeRatioSlider.value = 0.5
        panel.ui.axisRatioSlider.value = 0.5
        assert "75.0 %" in panel.ui.hiddenShareLabel.text
        panel.ui.planeRatioSlider.value = 0.0
        assert "50.0 %" in panel.ui.hiddenShareLabel.text
        choose(panel.ui.maskSelector, "none")
        assert "0.0 %" in panel.ui.hiddenShareLabel.text
        assert not panel.ui.planeRatioSlider.enabled

    def test_a_device_that_is_not_there_is_not_replaced(self, host: Any, panel: Any, checkpoint: Path) -> None:
        """As in a scene from a computer with a GPU: it is named as it is, and the worker says what is wrong."""
        use_checkpoint(panel, checkpoint)
        panel.parameters.inputVolume = ct_node()
        panel.parameters.device = "cuda:7"
        assert "not found" in panel.ui.deviceSelector.currentText
        apply_and_wait(host, panel)
        assert "cuda:7" in panel.ui.statusLabel.text

    def test_nothing_hidden_gives_no_masked_figures(self, host: Any, panel: Any, checkpoint: Path) -> None:
        use_checkpoint(panel, checkpoint)
        panel.parameters.inputVolume = ct_node()
        choose(panel.ui.maskSelector, "none")
        apply_and_wait(host, panel)
        host.click_in_slice("MAESIL-Reconstruction-Axial", 60, 60)
        for box in result_of(panel).metrics["superpatches"]:
            assert "psnr_masked_db" not in box
            assert box["psnr_autoencoding_db"] > 0
        assert "auto-encoding" in panel.ui.superpatchLabel.text

    def test_a_cover_of_nothing_is_refused(self, panel: Any) -> None:
        panel.parameters.inputVolume = ct_node()
        choose(panel.ui.maskSelector, "none")
        choose(panel.ui.coverageSelector, "complete")
        assert not panel.ui.applyButton.enabled
        assert "hides no patches" in panel.ui.applyButton.toolTip

    def test_a_click_fills_nine_views(self, host: Any, panel: Any, checkpoint: Path) -> None:
        import slicer

        use_checkpoint(panel, checkpoint)
        node = ct_node()
        panel.parameters.inputVolume = node
        apply_and_wait(host, panel)
        result = result_of(panel)
        manager = slicer.app.layoutManager()
        host.render()
        for row, kind in zip(ROWS, ("masked", "reconstruction", "error"), strict=True):
            for column in COLUMNS:
                name = f"MAESIL-{row}-{column}"
                composite = manager.sliceWidget(name).sliceLogic().GetSliceCompositeNode()
                assert composite.GetBackgroundVolumeID() == result.node(kind).GetID()
                assert manager.sliceWidget(name).sliceLogic().GetSliceNode().GetOrientation() == column
                assert np.asarray(host.view_pixels(name)).std() > 3, f"{name} is empty"
        assert result.node("input") is node
        assert panel.ui.metricsTable.rowCount > 5
        assert panel.ui.inputSelector.currentNode() is node
        assert not list(panel.temporary.iterdir())
        assert not workers_of_this_process()

    def test_results_are_the_command_s(self, host: Any, panel: Any, checkpoint: Path) -> None:
        """What is shown is what the worker wrote: visible voxels are the input's, the error is the difference."""
        import slicer

        use_checkpoint(panel, checkpoint)
        node = ct_node()
        panel.parameters.inputVolume = node
        apply_and_wait(host, panel)
        result = result_of(panel)
        arrays = {kind: slicer.util.arrayFromVolume(result.node(kind)).astype(int) for kind in RESULT_KINDS}
        hu = np.clip(slicer.util.arrayFromVolume(node), -1000, 1000).astype(int)
        hidden = arrays["mask"] == 1
        assert hidden.mean() == pytest.approx(result.metrics["mask"]["mask_voxel_ratio"], abs=1e-3)
        assert (arrays["masked"][~hidden] == hu[~hidden]).all()
        assert (arrays["masked"][hidden] == -1000).all()
        assert (arrays["error"] == arrays["reconstruction"] - hu).all()
        assert (arrays["composite"][hidden] == arrays["reconstruction"][hidden]).all()
        assert (arrays["composite"][~hidden] == hu[~hidden]).all()

    def test_the_completion_can_be_left_out(self, host: Any, panel: Any, checkpoint: Path) -> None:
        import slicer

        use_checkpoint(panel, checkpoint)
        panel.parameters.inputVolume = ct_node()
        predicted = []
        for wanted in (True, False):
            if panel.ui.completionCheckBox.isChecked() != wanted:
                panel.ui.completionCheckBox.click()
            assert panel.parameters.completion is wanted
            apply_and_wait(host, panel)
            assert result_of(panel).metrics["completion"] is wanted
            predicted.append(slicer.util.arrayFromVolume(result_of(panel).node("reconstruction")).astype(int))
        assert np.abs(predicted[0] - predicted[1]).max() > 1

    def test_several_results_side_by_side(self, host: Any, panel: Any, checkpoint: Path) -> None:
        import slicer

        use_checkpoint(panel, checkpoint)
        panel.parameters.inputVolume = ct_node()
        apply_and_wait(host, panel)
        first = result_of(panel)
        choose(panel.ui.coverageSelector, "complete")
        apply_and_wait(host, panel)
        second = result_of(panel)
        assert panel.ui.resultSelector.count == 2
        assert first.id != second.id
        tree = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
        folders = {tree.GetItemParent(tree.GetItemByDataNode(r.text_node)) for r in (first, second)}
        assert len(folders) == 2
        for result, folder in zip((first, second), sorted(folders), strict=True):
            assert tree.GetItemLevel(folder) == "Folder"
            children = {tree.GetItemParent(tree.GetItemByDataNode(result.node(kind))) for kind in RESULT_KINDS}
            assert children == {folder}
        choose(panel.ui.resultSelector, first.id)
        composite = slicer.app.layoutManager().sliceWidget("MAESIL-Error-Axial").sliceLogic().GetSliceCompositeNode()
        assert composite.GetBackgroundVolumeID() == first.node("error").GetID()
        assert "psnr_complete_db" not in first.metrics
        assert second.metrics["psnr_complete_db"] > 0

    def test_a_result_is_removed_whole(self, host: Any, panel: Any, checkpoint: Path) -> None:
        import slicer

        use_checkpoint(panel, checkpoint)
        panel.parameters.inputVolume = ct_node()
        before = scene_state()
        apply_and_wait(host, panel)
        panel.ui.outlinesCheckBox.click()
        host.click_in_slice("MAESIL-Masked-Axial", 60, 60)
        panel.ui.removeResultButton.click()
        assert scene_state() == before
        assert panel.ui.resultSelector.count == 0
        assert not panel.ui.layoutButton.enabled
        tree = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
        assert tree.GetNumberOfItemChildren(tree.GetSceneItemID()) == 1


class TestViews:
    @pytest.fixture
    def shown(self, host: Any, panel: Any, checkpoint: Path) -> Any:
        use_checkpoint(panel, checkpoint)
        panel.parameters.inputVolume = ct_node()
        apply_and_wait(host, panel)
        return panel

    def test_window_presets_hold_for_all_grey_volumes(self, shown: Any) -> None:
        result = result_of(shown)
        shown.ui.lungWindowButton.click()
        for kind in ("masked", "reconstruction", "composite"):
            node = result.node(kind).GetDisplayNode()
            assert (node.GetLevel(), node.GetWindow()) == (-600, 1500)
        assert result.node("error").GetDisplayNode().GetWindow() == 600
        assert shown.parameters.windowPreset == "lung"

    def test_the_button_of_a_window_is_pressed_while_it_is_shown(self, shown: Any) -> None:
        shown.ui.lungWindowButton.click()
        assert shown.ui.lungWindowButton.checked
        result_of(shown).node("masked").GetDisplayNode().SetWindowLevel(333, 44)
        shown.results.update()
        assert not any(button.checked for button in shown.results.window_buttons.values())
        result_of(shown).node("masked").GetDisplayNode().SetWindowLevel(1800, 400)
        assert shown.ui.boneWindowButton.checked

    def test_a_window_dragged_in_one_view_holds_for_the_others(self, shown: Any) -> None:
        result = result_of(shown)
        result.node("reconstruction").GetDisplayNode().SetWindowLevel(333, 44)
        for kind in ("masked", "composite"):
            node = result.node(kind).GetDisplayNode()
            assert (node.GetWindow(), node.GetLevel()) == (333, 44)

    def test_error_range(self, host: Any, shown: Any) -> None:
        shown.ui.errorRangeSpinBox.value = 100
        node = result_of(shown).node("error").GetDisplayNode()
        assert (node.GetWindow(), node.GetLevel()) == (200, 0)
        assert list(node.GetColorNode().GetColorTransferFunction().GetRange()) == [-100, 100]
        # another volume of ours must not change the range under the legend
        from MAESILWidgets.scene import display

        display.set_up(ct_node(name="another"), "error")
        assert list(node.GetColorNode().GetColorTransferFunction().GetRange()) == [-100, 100]
        shown.ui.errorRangeSpinBox.value = -5
        assert shown.parameters.errorRange == 10

    def test_views_of_a_column_scroll_together(self, host: Any, shown: Any) -> None:
        import slicer

        def offset(row: str, column: str) -> float:
            widget = slicer.app.layoutManager().sliceWidget(f"MAESIL-{row}-{column}")
            return float(widget.sliceLogic().GetSliceOffset())

        before = {(row, column): offset(row, column) for row in ROWS for column in COLUMNS}
        logic = slicer.app.layoutManager().sliceWidget("MAESIL-Masked-Coronal").sliceLogic()
        logic.StartSliceOffsetInteraction()
        logic.SetSliceOffset(before["Masked", "Coronal"] + 6)
        logic.EndSliceOffsetInteraction()
        host.process_events()
        for row in ROWS:
            assert offset(row, "Coronal") == pytest.approx(before[row, "Coronal"] + 6)
            assert offset(row, "Axial") == before[row, "Axial"]

    def test_back_restores_the_layout(self, host: Any, panel: Any, checkpoint: Path) -> None:
        import slicer

        manager = slicer.app.layoutManager()
        manager.setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView)
        use_checkpoint(panel, checkpoint)
        panel.parameters.inputVolume = ct_node()
        apply_and_wait(host, panel)
        assert panel.views.is_shown()
        panel.ui.layoutBackButton.click()
        assert manager.layout == slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView
        panel.ui.layoutButton.click()
        assert panel.views.is_shown()

    def test_a_click_selects_the_superpatch_there(self, host: Any, shown: Any) -> None:
        import slicer

        result = result_of(shown)
        view = slicer.app.layoutManager().sliceWidget("MAESIL-Reconstruction-Axial").sliceView()
        x, y = view.width // 3, view.height // 2
        ras = host.click_in_slice("MAESIL-Reconstruction-Axial", x, y)
        number = shown.results.selected
        assert number is not None
        box = result.metrics["superpatches"][number]
        # independent of the code: the voxel under the mouse, found with the node's own matrix
        import vtk

        matrix = vtk.vtkMatrix4x4()
        result.node("reconstruction").GetRASToIJKMatrix(matrix)
        i, j, k = np.rint(matrix.MultiplyPoint((*ras, 1.0))[:3])
        for index, start, size in zip((k, j, i), box["start_dhw"], box["size_dhw"], strict=True):
            assert start <= index < start + size
        text = shown.ui.superpatchLabel.text
        assert f"Superpatch {number + 1} of {len(result.metrics['superpatches'])}" in text
        assert f"{box['psnr_masked_db']:.2f} dB" in text
        assert result.node("selected").GetDisplayNode().GetVisibility()

    def test_a_drag_selects_nothing(self, host: Any, shown: Any) -> None:
        import slicer

        interactor = slicer.app.layoutManager().sliceWidget("MAESIL-Masked-Axial").sliceView().interactor()
        for x, event in ((50, "LeftButtonPressEvent"), (90, "MouseMoveEvent"), (90, "LeftButtonReleaseEvent")):
            interactor.SetEventInformation(x, 50, 0, 0, "\0", 0, None)
            interactor.InvokeEvent(event)
        assert shown.results.selected is None

    def test_outlines_enclose_the_volume(self, host: Any, shown: Any) -> None:
        result = result_of(shown)
        shown.ui.outlinesCheckBox.click()
        model, volume = result.node("outlines"), result.node("reconstruction")
        ours, theirs = [0.0] * 6, [0.0] * 6
        model.GetRASBounds(ours)
        volume.GetRASBounds(theirs)
        assert ours == pytest.approx(theirs, abs=0.76)
        assert model.GetPolyData().GetNumberOfCells() == 6 * len(result.metrics["superpatches"])
        host.render()
        with_lines = np.asarray(host.view_pixels("MAESIL-Masked-Axial")).copy()
        shown.ui.outlinesCheckBox.click()
        host.render()
        assert (with_lines != np.asarray(host.view_pixels("MAESIL-Masked-Axial"))).any()

    def test_the_legend_is_in_an_error_view_alone(self, host: Any, shown: Any) -> None:
        import slicer

        error = result_of(shown).node("error")
        legend = slicer.modules.colors.logic().GetColorLegendDisplayNode(error)
        assert legend.GetVisibility()
        shown_in = {legend.GetNthViewNodeID(n) for n in range(legend.GetNumberOfViewNodeIDs())}
        assert shown_in == {shown.views.slice_node("Error", "Axial").GetID()}


class TestScene:
    def test_after_the_scene_was_closed_views_are_fitted_again(self, host: Any, panel: Any, checkpoint: Path) -> None:
        """Closing the scene resets the slice nodes, also for a volume of the same grid that comes next."""
        use_checkpoint(panel, checkpoint)
        shown = []
        for _ in range(2):
            panel.parameters.checkpoint = str(checkpoint)
            panel.parameters.inputVolume = ct_node()
            apply_and_wait(host, panel)
            node = panel.views.slice_node("Error", "Sagittal")
            shown.append((node.GetOrientation(), node.GetFieldOfView(), node.GetSliceOffset()))
            host.close_scene()
        assert shown[1] == shown[0]

    def test_saving_and_loading_restores_panel_and_views(
        self, host: Any, panel: Any, checkpoint: Path, tmp_path: Path
    ) -> None:
        import slicer

        use_checkpoint(panel, checkpoint)
        panel.parameters.inputVolume = ct_node()
        panel.ui.planeRatioSlider.value = 0.25
        choose(panel.ui.maskSelector, "uniform")
        apply_and_wait(host, panel)
        panel.ui.boneWindowButton.click()
        name, rows = result_of(panel).name, result_of(panel).rows()
        saved = host.save_scene(tmp_path / "scene")
        host.close_scene()
        assert panel.results.result is None
        slicer.app.layoutManager().setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView)
        host.load_scene(saved)
        assert panel.parameters.inputVolume.GetName() == "ct"
        assert panel.ui.planeRatioSlider.value == 0.25
        assert panel.ui.maskSelector.itemData(panel.ui.maskSelector.currentIndex) == "uniform"
        result = result_of(panel)
        assert (result.name, result.rows()) == (name, rows)
        assert result.is_whole()
        assert panel.ui.boneWindowButton.checked
        assert result.node("masked").GetDisplayNode().GetLevel() == 400
        assert panel.views.is_shown()
        composite = slicer.app.layoutManager().sliceWidget("MAESIL-Error-Sagittal").sliceLogic().GetSliceCompositeNode()
        assert composite.GetBackgroundVolumeID() == result.node("error").GetID()
        host.click_in_slice("MAESIL-Masked-Axial", 60, 60)
        assert "Superpatch" in panel.ui.superpatchLabel.text

    def test_a_part_that_is_deleted_disables_the_views(self, host: Any, panel: Any, checkpoint: Path) -> None:
        import slicer

        use_checkpoint(panel, checkpoint)
        panel.parameters.inputVolume = ct_node()
        apply_and_wait(host, panel)
        slicer.mrmlScene.RemoveNode(result_of(panel).node("error"))
        panel.ui.layoutButton.click()
        panel.ui.lungWindowButton.click()
        slicer.mrmlScene.RemoveNode(result_of(panel).text_node)
        assert panel.ui.resultSelector.count == 0

    def test_deleting_the_input_keeps_the_result(self, host: Any, panel: Any, checkpoint: Path) -> None:
        import slicer

        use_checkpoint(panel, checkpoint)
        panel.parameters.inputVolume = ct_node()
        apply_and_wait(host, panel)
        slicer.mrmlScene.RemoveNode(panel.parameters.inputVolume)
        assert result_of(panel).is_whole()
        assert not panel.ui.applyButton.enabled
