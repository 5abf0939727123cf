"""The panel, driven by clicks, with real background processes."""

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slicer
import vtk
from gui_factory import (
    COLUMNS,
    RESULT_KINDS,
    ROWS,
    apply_and_wait,
    choose,
    ct_node,
    ijk_to_ras,
    load_ct,
    reconstructed,
    result_of,
    scene_state,
    slice_logic,
    status_message,
    use_checkpoint,
    wait_for_end,
    workers_of_this_process,
)

from MAESILLib.mae.checkpoint import read_info
from MAESILLib.runtime.resources import embedded_checkpoint


@pytest.fixture
def ready(panel: Any, checkpoint: Path) -> Any:
    """The panel with a small CT and a checkpoint that is quick to run."""
    use_checkpoint(panel, checkpoint)
    panel.parameters.inputVolume = ct_node()
    return panel


def background(row: str, column: str) -> str:
    """Node id of the volume that a view shows."""
    return str(slice_logic(row, column).GetSliceCompositeNode().GetBackgroundVolumeID())


def legend_views(result: Any) -> set[str]:
    """Node ids of the views that show the legend of the error map."""
    legend = slicer.modules.colors.logic().GetColorLegendDisplayNode(result.node("error"))
    assert legend.GetVisibility()
    return {legend.GetNthViewNodeID(n) for n in range(legend.GetNumberOfViewNodeIDs())}


def click_middle(host: Any, name: str) -> None:
    view = slicer.app.layoutManager().sliceWidget(name).sliceView()
    host.click_in_slice(name, view.width // 2, view.height // 2)


def voxels(node: Any) -> np.ndarray:
    return slicer.util.arrayFromVolume(node).astype(int)


class TestInput:
    def test_a_volume_of_the_scene_is_taken_up_on_entering(self, panel: Any) -> None:
        assert not panel.ui.applyButton.enabled
        assert "volume" in panel.ui.applyButton.toolTip
        node = ct_node()
        panel.exit()
        panel.enter()
        assert panel.ui.inputSelector.currentNode() is node

    def test_the_only_volume_is_taken_up_when_it_is_loaded(self, host: Any, panel: Any, scan: Path) -> None:
        node = load_ct(scan)
        host.process_events(until=lambda: panel.ui.inputSelector.currentNode() is node, timeout=5)
        panel.ui.inputSelector.setCurrentNode(None)
        load_ct(scan)
        host.process_events(0.1)
        assert panel.ui.inputSelector.currentNode() is None

    def test_it_fits_slicer_s_dock(self, panel: Any, qt: Any) -> None:
        for section in (panel.ui.batchSection, panel.ui.trainSection, panel.ui.advancedSection):
            section.collapsed = False
        # the module panel adds the width that its horizontal scroll bar would like to have
        scroll_bar = qt.QScrollBar(qt.Qt.Horizontal).sizeHint.width()
        assert slicer.modules.maesil.widgetRepresentation().minimumSizeHint.width() + scroll_bar <= 410

    def test_sections_do_not_overlap(self, host: Any, panel: Any) -> None:
        """Slicer gives the panel its smallest height."""
        sections = (panel.ui.reconstructSection, panel.ui.exploreSection, panel.ui.trainSection)
        for section in sections:
            section.collapsed = False
        panel.ui.statusLabel.text = "word " * 60
        panel.ui.statusLabel.setVisible(True)
        widget = slicer.modules.maesil.widgetRepresentation()
        for _ in range(3):
            widget.resize(383, widget.minimumSizeHint.height())
            host.process_events()
        for section in sections:
            assert section.height >= section.layout().heightForWidth(section.width)

    def test_a_ct_is_described(self, ready: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        free = {"bytes": 2**40}
        monkeypatch.setattr("MAESILLib.runtime.system.machine_memory", lambda: (2**40, free["bytes"]))
        ready.update()
        for part in ("44 x 48 x 40", "1.5 x 1.5 x 1.5 mm", "HU", "8 superpatches"):
            assert part in ready.ui.volumeInfoLabel.text
        assert ready.ui.applyButton.enabled
        assert not ready.ui.volumeWarningLabel.isVisible()
        assert ready.ui.hintLabel.text == ""
        assert not ready.ui.hintLabel.isVisible()
        free["bytes"] = 2**29
        ready.reconstruct.update()
        assert "0.6 GiB of memory, and 0.5 GiB are free" in ready.ui.hintLabel.text
        assert ready.ui.hintLabel.isVisible()
        assert ready.ui.applyButton.enabled
        node = ready.parameters.inputVolume
        slicer.util.arrayFromVolume(node)[0, 0, 0] = 2999
        slicer.util.arrayFromVolumeModified(node)
        ready.update()
        assert "2999" in ready.ui.volumeInfoLabel.text

    def test_what_is_no_ct_is_refused_before_the_work(self, panel: Any) -> None:
        rng = np.random.default_rng(0)
        sheared, matrix = ct_node(), vtk.vtkMatrix4x4()
        sheared.GetIJKToRASMatrix(matrix)
        matrix.SetElement(1, 2, 0.4)
        sheared.SetIJKToRASMatrix(matrix)
        for volume, word in (
            (rng.random((40, 40, 40)), "normalised"),
            (rng.integers(0, 5, (40, 40, 40)).astype(np.int16), "label map"),
            (np.full((40, 40, 40), -1000, np.int16), "same value"),
            (sheared, "perpendicular"),
        ):
            is_array = isinstance(volume, np.ndarray)
            panel.parameters.inputVolume = slicer.util.addVolumeFromArray(volume) if is_array else volume
            text = panel.ui.volumeWarningLabel.text
            assert word in text
            # said once, in sentences
            assert panel.ui.hintLabel.text == ""
            assert not re.search(r"\. [a-z]", text), text
            assert not panel.ui.applyButton.enabled
            assert word in panel.ui.applyButton.toolTip

    def test_checkpoints(self, host: Any, panel: Any, checkpoint: Path, tmp_path: Path) -> None:
        # the embedded one comes first, and every part of its training counts
        assert panel.ui.checkpointSelector.itemData(0) == ""
        assert "3.8 M" in panel.ui.checkpointInfoLabel.text
        training, samples = read_info(embedded_checkpoint()).training, 0
        while training:
            samples += training["samples"]
            training = training.get("initialised_from", {}).get("training", {})
        assert f"{samples:,} crops" in panel.ui.checkpointInfoLabel.text
        # browsing, cancelled and not
        for answer in ("", str(checkpoint)):
            host.answers.append(answer)
            panel.ui.browseCheckpointButton.click()
            assert panel.parameters.checkpoint == answer
            index = panel.ui.checkpointSelector.currentIndex
            assert panel.ui.checkpointSelector.itemData(index) == answer
        # a truncated one is told before the work
        cut = tmp_path / "cut.safetensors"
        cut.write_bytes(checkpoint.read_bytes()[:-1000])
        panel.parameters.inputVolume = ct_node()
        use_checkpoint(panel, cut)
        assert "cut.safetensors" in panel.ui.volumeWarningLabel.text
        assert "not a readable checkpoint" in panel.ui.applyButton.toolTip
        assert not panel.ui.applyButton.enabled

    def test_the_sample_is_loaded_by_one_click(self, panel: Any) -> None:
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
        # a cover of nothing is refused
        panel.parameters.inputVolume = ct_node()
        choose(panel.ui.coverageSelector, "complete")
        assert not panel.ui.applyButton.enabled
        assert "hides no patches" in panel.ui.applyButton.toolTip

    def test_a_device_that_is_not_there_is_not_replaced(self, host: Any, ready: Any) -> None:
        """As in a scene from a computer with a GPU: it is named as it is, and the worker says what is wrong."""
        ready.parameters.device = "cuda:7"
        assert "not found" in ready.ui.deviceSelector.currentText
        apply_and_wait(host, ready)
        assert "cuda:7" in ready.ui.statusLabel.text

    def test_another_module_in_front_is_told_of_it(self, host: Any, ready: Any) -> None:
        ready.exit()
        ready.ui.applyButton.click()
        host.process_events(until=lambda: re.search(r"MAESIL: .*\(\d+%\)", status_message()), timeout=30)
        wait_for_end(host, ready.reconstruct)
        assert status_message() == "MAESIL: the reconstruction is done"

    def test_nothing_hidden_gives_no_masked_metrics(self, host: Any, ready: Any) -> None:
        choose(ready.ui.maskSelector, "none")
        apply_and_wait(host, ready)
        click_middle(host, "MAESIL-Reconstruction-Axial")
        for box in result_of(ready).metrics["superpatches"]:
            assert "psnr_masked_db" not in box
            assert box["psnr_autoencoding_db"] > 0
        assert "auto-encoding" in ready.ui.superpatchLabel.text

    def test_a_click_fills_nine_views(self, host: Any, ready: Any) -> None:
        """What is shown is what the worker wrote: visible voxels are the input's, the error is the difference."""
        node = ready.parameters.inputVolume
        result = reconstructed(host, ready)
        host.render()
        for row in ROWS:
            kind = row.lower()
            for column in COLUMNS:
                assert background(row, column) == result.node(kind).GetID()
                logic = slice_logic(row, column)
                assert logic.GetSliceNode().GetOrientation() == column
                # fitted to the size that the view got when the event loop ran
                shown = (logic.GetSliceOffset(), *logic.GetSliceNode().GetFieldOfView()[:2])
                logic.FitSliceToBackground()
                logic.SnapSliceOffsetToIJK()
                fitted = (logic.GetSliceOffset(), *logic.GetSliceNode().GetFieldOfView()[:2])
                assert shown == pytest.approx(fitted), (row, column)
                assert np.asarray(host.view_pixels(f"MAESIL-{row}-{column}")).std() > 3, f"{row} {column} is empty"
                assert f"B: {kind[:5]}" in host.corner_text(f"MAESIL-{row}-{column}")
        assert result.node("input") is node
        # results are no inputs
        assert (ready.ui.inputSelector.nodeCount(), ready.ui.sceneVolumesSelector.nodeCount()) == (1, 1)
        table = ready.ui.metricsTable
        assert table.rowCount > 5
        tips = {table.item(row, 0).text(): table.item(row, 0).toolTip() for row in range(table.rowCount)}
        assert "thin plate" in tips["PSNR of biharmonic fill"]
        assert "grid" in tips["Border index (1 = no grid)"]
        assert ready.ui.inputSelector.currentNode() is node
        assert not list(ready.temporary.iterdir())
        assert not workers_of_this_process()
        arrays = {kind: voxels(result.node(kind)) for kind in RESULT_KINDS}
        hu, hidden = np.clip(voxels(node), -1000, 1000), arrays["mask"] == 1
        assert hidden.mean() == pytest.approx(result.metrics["mask"]["mask_voxel_ratio"], abs=1e-3)
        assert (arrays["masked"][~hidden] == hu[~hidden]).all()
        assert (arrays["masked"][hidden] == -1000).all()
        assert (arrays["error"] == arrays["reconstruction"] - hu).all()
        assert (arrays["composite"][hidden] == arrays["reconstruction"][hidden]).all()
        assert (arrays["composite"][~hidden] == hu[~hidden]).all()

    def test_views_are_made_and_filled_one_a_turn_of_the_event_loop(self, host: Any, ready: Any, qt: Any) -> None:
        names = [f"MAESIL-{row}-{column}" for row in ROWS for column in COLUMNS]
        counts = []

        def count() -> None:
            views = [view for view in map(slicer.app.layoutManager().sliceWidget, names) if view is not None]
            shown = [view.sliceLogic().GetSliceCompositeNode().GetBackgroundVolumeID() for view in views]
            counts.append((len(views), len(list(filter(None, shown))), sum(view.isVisible() for view in views)))

        timer = qt.QTimer()
        timer.connect("timeout()", count)
        timer.start(0)
        apply_and_wait(host, ready)
        timer.stop()
        assert counts[-1] == (9, 9, 9)
        assert np.diff(counts, axis=0).max() == 1

    def test_several_results_side_by_side(self, host: Any, ready: Any) -> None:
        """The second without the completion."""
        found = []
        for completion in (True, False):
            if ready.ui.completionCheckBox.isChecked() != completion:
                ready.ui.completionCheckBox.click()
            assert ready.parameters.completion is completion
            found.append(reconstructed(host, ready))
            assert found[-1].metrics["completion"] is completion
        first, second = found
        assert np.abs(voxels(first.node("reconstruction")) - voxels(second.node("reconstruction"))).max() > 1
        assert ready.ui.resultSelector.count == 2
        assert first.id != second.id
        tree = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
        folders = [tree.GetItemParent(tree.GetItemByDataNode(result.text_node)) for result in found]
        assert folders[0] != folders[1]
        for result, folder in zip(found, folders, strict=True):
            assert tree.GetItemLevel(folder) == "Folder"
            children = {tree.GetItemParent(tree.GetItemByDataNode(result.node(kind))) for kind in RESULT_KINDS}
            assert children == {folder}
        choose(ready.ui.resultSelector, first.id)
        assert background("Error", "Axial") == first.node("error").GetID()
        assert "psnr_complete_db" not in first.metrics

    def test_a_result_is_removed_whole(self, host: Any, ready: Any) -> None:
        choose(ready.ui.coverageSelector, "complete")
        ready.ui.overlapSlider.value = 0.25
        share = ready.ui.hiddenShareLabel.text.split()[0]
        before = scene_state()
        assert reconstructed(host, ready).metrics["psnr_complete_db"] > 0
        rows = dict(result_of(ready).rows())
        assert rows["Hidden patches"] == f"{share}%"
        assert "overlap" in rows["PSNR of harmonic fill"]
        ready.ui.outlinesCheckBox.click()
        click_middle(host, "MAESIL-Masked-Axial")
        ready.ui.removeResultButton.click()
        assert scene_state() == before
        assert ready.ui.resultSelector.count == 0
        assert not ready.ui.layoutButton.enabled
        tree = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
        assert tree.GetNumberOfItemChildren(tree.GetSceneItemID()) == 1


class TestViews:
    def test_windows(self, host: Any, ready: Any) -> None:
        """One window for all gray volumes, whether a preset or dragged; the error has its own range."""
        from MAESILWidgets.scene import display

        result = reconstructed(host, ready)
        shown = {kind: result.node(kind).GetDisplayNode() for kind in RESULT_KINDS}
        ready.ui.lungWindowButton.click()
        for kind in ("masked", "reconstruction", "composite"):
            assert (shown[kind].GetLevel(), shown[kind].GetWindow()) == (-600, 1500)
        assert shown["error"].GetWindow() == 600
        assert ready.parameters.windowPreset == "lung"
        assert ready.ui.lungWindowButton.checked
        shown["reconstruction"].SetWindowLevel(333, 44)
        for kind in ("masked", "composite"):
            assert (shown[kind].GetWindow(), shown[kind].GetLevel()) == (333, 44)
        ready.results.update()
        assert not any(button.checked for button in ready.results.window_buttons.values())
        shown["masked"].SetWindowLevel(1800, 400)
        assert ready.ui.boneWindowButton.checked
        error = shown["error"]
        ready.ui.errorRangeSpinBox.value = 100
        assert (error.GetWindow(), error.GetLevel()) == (200, 0)
        assert list(error.GetColorNode().GetColorTransferFunction().GetRange()) == [-100, 100]
        # a drag on the error map is undone: its legend has that range
        error.SetWindowLevel(55, 12)
        assert (error.GetWindow(), error.GetLevel()) == (200, 0)
        # another volume of ours must not change the range under the legend
        display.set_up(ct_node(name="another"), "error")
        assert list(error.GetColorNode().GetColorTransferFunction().GetRange()) == [-100, 100]
        ready.ui.errorRangeSpinBox.value = -5
        assert ready.parameters.errorRange == 10

    def test_scrolling_clicking_and_going_back(self, host: Any, ready: Any, scan: Path) -> None:
        manager = slicer.app.layoutManager()
        assert manager.layout == 0
        result = reconstructed(host, ready)
        # a volume that is loaded goes into the user's own views alone
        offset = slice_logic("Masked", "Axial").GetSliceOffset()
        load_ct(scan)
        assert background("Masked", "Axial") == result.node("masked").GetID()
        assert slice_logic("Masked", "Axial").GetSliceOffset() == offset
        # views of a column scroll together
        before = {(row, column): slice_logic(row, column).GetSliceOffset() for row in ROWS for column in COLUMNS}
        logic = slice_logic("Masked", "Coronal")
        logic.StartSliceOffsetInteraction()
        logic.SetSliceOffset(before["Masked", "Coronal"] + 6)
        logic.EndSliceOffsetInteraction()
        host.process_events()
        for row in ROWS:
            assert slice_logic(row, "Coronal").GetSliceOffset() == pytest.approx(before[row, "Coronal"] + 6)
            assert slice_logic(row, "Axial").GetSliceOffset() == before[row, "Axial"]
        # a drag selects nothing
        interactor = manager.sliceWidget("MAESIL-Masked-Axial").sliceView().interactor()
        for x, event in ((50, "LeftButtonPressEvent"), (90, "MouseMoveEvent"), (90, "LeftButtonReleaseEvent")):
            interactor.SetEventInformation(x, 50, 0, 0, "\0", 0, None)
            interactor.InvokeEvent(event)
        assert ready.results.selected is None
        # a click selects the superpatch there: the voxel under the mouse, found with the node's own matrix
        view = manager.sliceWidget("MAESIL-Reconstruction-Axial").sliceView()
        ras = host.click_in_slice("MAESIL-Reconstruction-Axial", view.width // 3, view.height // 2)
        number = ready.results.selected
        assert number is not None
        box = result.metrics["superpatches"][number]
        i, j, k = np.rint(np.linalg.inv(ijk_to_ras(result.node("reconstruction"))) @ (*ras, 1.0))[:3]
        for index, start, size in zip((k, j, i), box["start_dhw"], box["size_dhw"], strict=True):
            assert start <= index < start + size
        text = ready.ui.superpatchLabel.text
        assert f"Superpatch {number + 1} of {len(result.metrics['superpatches'])}" in text
        assert f"{box['psnr_masked_db']:.2f} dB" in text
        assert result.node("selected").GetDisplayNode().GetVisibility()
        for own in ("SlicerLayoutFourUpView", "SlicerLayoutOneUpRedSliceView"):
            ready.ui.layoutBackButton.click()
            assert manager.layout == getattr(slicer.vtkMRMLLayoutNode, own)
            manager.setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutOneUpRedSliceView)
            ready.ui.layoutButton.click()
            assert ready.views.is_shown()
        # the user's own views stay in their group
        assert {manager.sliceWidget(name).mrmlSliceNode().GetViewGroup() for name in ("Red", "Green", "Yellow")} == {0}

    def test_outlines_and_legend(self, host: Any, ready: Any) -> None:
        apply_and_wait(host, ready)
        assert ready.views.is_shown()
        result = result_of(ready)
        ready.ui.outlinesCheckBox.click()
        model, volume = result.node("outlines"), result.node("reconstruction")
        ours, theirs = [0.0] * 6, [0.0] * 6
        model.GetRASBounds(ours)
        volume.GetRASBounds(theirs)
        assert ours == pytest.approx(theirs, abs=0.76)
        assert model.GetPolyData().GetNumberOfCells() == 6 * len(result.metrics["superpatches"])
        host.render()
        with_lines = np.asarray(host.view_pixels("MAESIL-Masked-Axial")).copy()
        ready.ui.outlinesCheckBox.click()
        host.render()
        assert (with_lines != np.asarray(host.view_pixels("MAESIL-Masked-Axial"))).any()
        # the legend is in one error view alone
        assert legend_views(result) == {ready.views.slice_node("Error", "Axial").GetID()}
        # Slicer may give the section less height than its wrapped texts need; the table lies over nothing then
        click_middle(host, "MAESIL-Reconstruction-Axial")
        section = ready.ui.reconstructSection
        section.resize(360, section.sizeHint.height() - 30)
        assert ready.ui.metricsTable.geometry.bottom() < ready.ui.lungWindowButton.geometry.top()
        # a result's outlines are in no view of a training, nor in those of another result
        ready.ui.outlinesCheckBox.click()
        click_middle(host, "MAESIL-Reconstruction-Axial")

        def are_shown() -> list[bool]:
            return [bool(result.node(role).GetDisplayNode().GetVisibility()) for role in ("outlines", "selected")]

        assert are_shown() == [True, True]
        ready.train.show()
        assert are_shown() == [False, False]
        ready.ui.layoutButton.click()
        assert are_shown() == [True, True]
        assert reconstructed(host, ready).id != result.id
        assert are_shown() == [False, False]


class TestScene:
    def test_after_the_scene_was_closed_views_are_fitted_again(
        self, host: Any, panel: Any, checkpoint: Path, scan: Path
    ) -> None:
        """Closing the scene resets the slice nodes, also for a volume of the same grid that comes next."""
        use_checkpoint(panel, checkpoint)
        shown = []
        for _ in range(2):
            panel.parameters.checkpoint = str(checkpoint)
            panel.parameters.inputVolume = ct_node()
            for row, column in itertools.product(ROWS if shown else (), COLUMNS):
                # the Segment Editor puts its source volume into every view there is
                composite = slice_logic(row, column).GetSliceCompositeNode()
                composite.SetBackgroundVolumeID(panel.parameters.inputVolume.GetID())
            apply_and_wait(host, panel)
            node = panel.views.slice_node("Error", "Sagittal")
            shown.append((node.GetOrientation(), node.GetFieldOfView(), node.GetSliceOffset()))
            host.close_scene()
            assert slicer.app.layoutManager().layout == slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView
        assert shown[1] == shown[0]
        load_ct(scan)
        assert {background(row, column) for row in ROWS for column in COLUMNS} == {"None"}

    def test_saving_and_loading_restores_panel_and_views(self, host: Any, ready: Any, tmp_path: Path) -> None:
        from MAESILWidgets.scene.results_scene import ResultBuilder

        ready.ui.planeRatioSlider.value = 0.25
        choose(ready.ui.maskSelector, "uniform")
        apply_and_wait(host, ready)
        ready.ui.boneWindowButton.click()
        ready.ui.errorRangeSpinBox.value = 150
        name, rows = result_of(ready).name, result_of(ready).rows()
        saved = host.save_scene(tmp_path / "scene")
        host.close_scene()
        assert ready.results.result is None
        slicer.app.layoutManager().setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView)
        host.load_scene(saved)
        assert ready.parameters.inputVolume.GetName() == "ct"
        assert ready.ui.planeRatioSlider.value == 0.25
        assert ready.ui.maskSelector.itemData(ready.ui.maskSelector.currentIndex) == "uniform"
        result = result_of(ready)
        assert (result.name, result.rows()) == (name, rows)
        # another one of the same volume and mask gets a name of its own
        assert ResultBuilder(result.node("input"), name.removeprefix("ct ")).name not in ("", name)
        assert result.is_whole()
        assert ready.ui.boneWindowButton.checked
        assert [b.font.bold() for b in ready.results.window_buttons.values()] == [False, False, True, False]
        assert result.node("masked").GetDisplayNode().GetLevel() == 400
        assert ready.views.is_shown()
        assert background("Error", "Sagittal") == result.node("error").GetID()
        composite = slice_logic("Error", "Sagittal").GetSliceCompositeNode()
        assert composite.GetLinkedControl()
        assert not composite.GetDoPropagateVolumeSelection()
        assert legend_views(result) == {ready.views.slice_node("Error", "Axial").GetID()}
        colors = {kind: result.node(kind).GetDisplayNode().GetColorNode() for kind in ("error", "mask")}
        assert list(colors["error"].GetColorTransferFunction().GetRange()) == [-150, 150]
        assert colors["error"].GetColorTransferFunction().GetSize() > 2
        assert colors["mask"].GetNumberOfColors() == 2
        click_middle(host, "MAESIL-Masked-Axial")
        assert "Superpatch" in ready.ui.superpatchLabel.text

    def test_what_is_deleted(self, host: Any, ready: Any) -> None:
        """Without the input the result stays; without a part of it nothing is shown; without its text it is gone."""
        apply_and_wait(host, ready)
        slicer.mrmlScene.RemoveNode(ready.parameters.inputVolume)
        assert result_of(ready).is_whole()
        assert not ready.ui.applyButton.enabled
        slicer.mrmlScene.RemoveNode(result_of(ready).node("error"))
        ready.ui.layoutButton.click()
        ready.ui.lungWindowButton.click()
        slicer.mrmlScene.RemoveNode(result_of(ready).text_node)
        assert ready.ui.resultSelector.count == 0
