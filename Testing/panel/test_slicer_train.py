"""Training from the panel: start, watch, stop, resume, and the checkpoint at the end."""

import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slicer
import torch
from cli_factory import write_ct
from gui_factory import (
    ROWS,
    SOON_S,
    choose,
    ct_node,
    is_alive,
    reconstructed,
    slice_logic,
    slicer_process,
    wait_for_end,
    wait_for_worker,
    wait_until_gone,
    workers_of_this_process,
)
from safetensors.numpy import load_file
from volume_factory import trunk, write_dicom

from MAESILLib.config import HIDING_NAMES, PRESETS, STRATEGY_NAMES, from_dict
from MAESILLib.data.cache import read_cache
from MAESILLib.mae.network import Network
from MAESILLib.training.log import read_log

SMALL = (72, 72, 72)
"""One training crop of the tiny preset fits."""


@pytest.fixture(scope="module")
def cts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of four CTs of as many patients, so that one is held out; tests read it only."""
    folder = tmp_path_factory.mktemp("CTs")
    for number in range(4):
        write_ct(folder / f"patient {number}" / f"scan_{number}.nrrd", SMALL, seed=number)
    return folder


def set_up(panel: Any, folder: Path, run: Path, steps: int) -> None:
    """Fill the Train section."""
    panel.ui.trainSection.collapsed = False
    choose(panel.ui.dataSourceSelector, "folder")
    panel.ui.dataFolderSelector.currentPath = str(folder)
    panel.ui.runFolderSelector.currentPath = str(run)
    choose(panel.ui.presetSelector, "tiny")
    panel.ui.stepsSpinBox.value = steps


def start(panel: Any, folder: Path, run: Path, steps: int) -> None:
    set_up(panel, folder, run, steps)
    panel.ui.trainButton.click()


def wait_until_done(host: Any, panel: Any) -> None:
    wait_for_end(host, panel.train, 180)
    assert "Done" in panel.ui.trainStatusLabel.text, panel.ui.trainStatusLabel.text


def steps_done(panel: Any) -> int:
    """The last step that the curves show."""
    rows = panel.train.plots.rows["training"]
    return int(rows[-1][0]) if rows else 0


class TestForm:
    def test_says_what_is_missing(self, panel: Any, cts: Path, tmp_path: Path, qt: Any) -> None:
        ui = panel.ui
        assert not ui.trainButton.enabled
        assert "folder of CTs" in ui.trainButton.toolTip
        ui.dataFolderSelector.currentPath = str(cts)
        assert "output folder" in ui.trainButton.toolTip
        ui.runFolderSelector.currentPath = str(tmp_path / "run")
        assert ui.trainButton.enabled
        assert not ui.resumeTrainButton.enabled
        assert "no training" in ui.resumeTrainButton.toolTip
        choose(ui.dataSourceSelector, "scene")
        assert "at least one volume" in ui.trainButton.toolTip
        assert not ui.dataFolderSelector.isVisibleTo(ui.trainSection)
        ui.sceneVolumesSelector.setCheckState(ct_node(), qt.Qt.Checked)
        assert ui.trainButton.enabled

    def test_the_series_of_a_dicom_folder_are_listed(self, host: Any, panel: Any, tmp_path: Path) -> None:
        for number, name in enumerate(("ARTERIAL", "VENOUS"), 3):
            tags = {"0020|0011": str(number), "0008|103e": name, "0018|1210": "B30f"}
            stored = trunk((12, 40, 48)).astype(np.int16) + 1024
            write_dicom(tmp_path / "CT" / name, stored, uid=f"1.2.826.0.1.3680043.8.498.{number}", tags=tags)
        panel.ui.dataFolderSelector.currentPath = str(tmp_path / "CT")
        host.process_events(until=lambda: " CT series " in panel.ui.trainInfoLabel.text, timeout=120)
        lines = panel.ui.trainInfoLabel.text.splitlines()[-3:]
        assert lines[0].startswith("2 CT series in ")
        for line, name in zip(lines[1:], ("ARTERIAL", "VENOUS"), strict=True):
            for part in (name, "12 slices", "2.5 mm apart", "kernel B30f"):
                assert part in line

    def test_presets_and_masks_are_called_what_they_are(self, host: Any, panel: Any) -> None:
        from MAESILWidgets.panels import choices

        assert list(choices.PRESETS) == list(PRESETS)
        for name, title in choices.PRESETS.items():
            config = from_dict({"preset": name})
            parts = [part for part in ("completion", "readout") if getattr(config.train, part)]
            with torch.device("meta"):
                network = Network(config.model, config.preprocessing.windows_hu, tuple(parts))
            weights = sum(p.numel() for p in network.parameters()) / 1e6
            (told,) = re.findall(r"([\d.]+) M weights", title)
            assert told == (f"{weights:.1f}" if weights < 1 else f"{weights:.0f}"), name
        for strategy in from_dict({}).mask.strategies:
            assert strategy in choices.TRAIN_MASKS["mix"]
        assert tuple(choices.MASKS) == STRATEGY_NAMES
        assert tuple(choices.TRAIN_MASKS) == ("mix", *HIDING_NAMES)


class TestTraining:
    def test_curves_follow_their_points_until_the_user_zooms(self, host: Any, panel: Any) -> None:
        plots = panel.train.plots
        plots.begin()
        panel.train.show()
        chart = plots.charts["Loss"]

        def add(step: int) -> None:
            for one in (step - 1, step):
                plots.add({"step": one, "loss": 1 / one, "psnr_masked_db": one})

        for step in (10, 20, 40):
            add(step)
            host.process_events(until=lambda step=step: chart.GetXAxisRange()[1] >= step, timeout=5)
        chart.SetXAxisRange(2, 5)
        add(80)
        host.process_events(2)
        assert chart.GetXAxisRange() == (2, 5)

    def test_from_start_to_checkpoint(self, host: Any, panel: Any, cts: Path, tmp_path: Path) -> None:
        run = tmp_path / "run"
        start(panel, cts, run, 6)
        assert panel.ui.stopTrainButton.enabled
        assert not panel.ui.trainButton.enabled
        wait_until_done(host, panel)
        # the curves hold what the log holds
        log, plots = read_log(run / "log.csv"), panel.train.plots
        assert [row[0] for row in plots.rows["training"]] == [row["step"] for row in log]
        for curve, column, key in (
            ("training", 1, "loss"),
            ("validation", 1, "val_psnr_masked_db"),
            ("encoder", 2, "val_patch_r2"),
        ):
            logged = [row[key] for row in log if row[key] is not None]
            assert [row[column] for row in plots.rows[curve]] == pytest.approx(logged, rel=1e-4)
        assert plots.tables["training"].GetNumberOfRows() == len(log)
        for part in ("Step 6 of 6", "loss", "PSNR", "samples/s"):
            assert part in panel.ui.trainFiguresLabel.text
        # the preview is in the views
        for row in ROWS:
            node = slice_logic(row, "Axial").GetNthLayerVolumeNode(0)
            assert node.GetAttribute("MAESIL.Preview") == row.lower()
        host.render()
        assert np.asarray(host.view_pixels("MAESIL-Masked-Axial")).std() > 3
        for name in ("Loss", "PSNR", "Encoder"):
            view = slicer.mrmlScene.GetSingletonNode(f"MAESIL-{name}", "vtkMRMLPlotViewNode")
            assert view.GetPlotChartNodeID() == plots.charts[name].GetID()
            # the curves fill their charts
            axis = slicer.app.layoutManager().viewWidget(view).plotView().chart().GetAxis(1)
            host.process_events(until=lambda axis=axis: axis.GetMaximum() >= 6, timeout=2)
        assert not host.vtk_errors
        # the checkpoint is chosen, and reconstructs
        assert panel.parameters.checkpoint == str(run / "best.safetensors")
        assert not list(panel.temporary.iterdir())
        panel.parameters.inputVolume = ct_node()
        assert reconstructed(host, panel).metrics["checkpoint"]["name"] == "best.safetensors"
        # a folder that holds a training is not trained into again
        assert not panel.ui.trainButton.enabled
        assert "already holds" in panel.ui.trainButton.toolTip

    def test_stop_and_resume_are_as_one_run(self, host: Any, panel: Any, cts: Path, tmp_path: Path) -> None:
        """A stopped training, resumed from its folder alone, ends with the weights of an unbroken one.

        As in another session: the data are gone, another preset and mask are chosen; the run keeps its own.
        """
        data, whole, broken = tmp_path / "data", tmp_path / "whole", tmp_path / "broken"
        shutil.copytree(cts, data)
        choose(panel.ui.trainMaskSelector, "tube")
        start(panel, data, whole, 8)
        wait_until_done(host, panel)
        start(panel, data, broken, 8)
        host.process_events(until=lambda: steps_done(panel), timeout=120)
        pid = panel.train.task.job.worker_pid
        panel.ui.stopTrainButton.click()
        wait_for_end(host, panel.train, SOON_S)
        assert not is_alive(pid)
        assert "Click Resume" in panel.ui.trainStatusLabel.text
        assert steps_done(panel) < 8
        assert not (broken / ".maesil-stop").exists()
        shutil.rmtree(data)
        choose(panel.ui.presetSelector, "small")
        choose(panel.ui.trainMaskSelector, "mix")
        assert not panel.ui.trainButton.enabled
        panel.ui.resumeTrainButton.click()
        assert panel.ui.trainProgressBar.value >= 1000 // 8
        wait_until_done(host, panel)
        assert [row[0] for row in panel.train.plots.rows["training"]] == [1, 5, 8]
        expected, found = load_file(whole / "model.safetensors"), load_file(broken / "model.safetensors")
        assert expected.keys() == found.keys()
        assert all((expected[key] == found[key]).all() for key in expected)

    def test_volumes_of_the_scene(self, host: Any, panel: Any, tmp_path: Path, qt: Any) -> None:
        choose(panel.ui.dataSourceSelector, "scene")
        for number in range(3):
            node = ct_node(SMALL, name=f"scan {number} / ü", seed=number)
            panel.ui.sceneVolumesSelector.setCheckState(node, qt.Qt.Checked)
        panel.ui.runFolderSelector.currentPath = str(tmp_path / "run ü")
        panel.ui.stepsSpinBox.value = 1
        panel.ui.trainButton.click()
        wait_until_done(host, panel)
        assert not list(panel.temporary.iterdir())
        cache = read_cache(tmp_path / "run ü" / "cache")
        assert len(cache.entries) == 3
        assert len({entry.patient for entry in cache.entries}) == 3

    def test_from_python(self, host: Any, panel: Any, cts: Path, tmp_path: Path) -> None:
        import MAESIL

        events: list[Any] = []
        path = MAESIL.MAESILLogic().train(
            tmp_path / "run", folders=[cts], steps=1, waitForCompletion=True, onEvent=events.append
        )
        assert Path(path).is_file()
        assert {"metric", "done"} <= {event["event"] for event in events}
        with pytest.raises(ValueError, match="nothing to train on"):
            MAESIL.MAESILLogic().train(tmp_path / "other")


class TestEnds:
    def test_killed_and_resumed(self, host: Any, panel: Any, cts: Path, tmp_path: Path) -> None:
        """The state of an earlier stop stays; resumed with another number of steps."""
        start(panel, cts, tmp_path / "run", 40)
        host.process_events(until=lambda: steps_done(panel), timeout=120)
        panel.ui.stopTrainButton.click()
        wait_for_end(host, panel.train, SOON_S)
        panel.ui.resumeTrainButton.click()
        os.kill(wait_for_worker(host, lambda: panel.train.task), signal.SIGKILL)
        wait_for_end(host, panel.train, SOON_S)
        assert "signal 9" in panel.ui.trainStatusLabel.text
        panel.ui.stepsSpinBox.value = 7
        panel.ui.resumeTrainButton.click()
        wait_until_done(host, panel)
        assert steps_done(panel) == 7

    def test_stopped_while_it_prepares(self, host: Any, panel: Any, cts: Path, tmp_path: Path) -> None:
        """The views show nothing of an earlier training meanwhile."""
        panel.ui.runFolderSelector.currentPath = str(tmp_path / "earlier")
        (tmp_path / "earlier" / "previews").mkdir(parents=True)
        arrays = {kind: np.zeros((8, 8, 8), np.int16) for kind in ("masked", "reconstruction", "error")}
        np.savez(tmp_path / "earlier" / "previews" / "latest.npz", **arrays, spacing_mm=np.float64(1.5))
        panel.ui.curvesButton.click()
        composite = slice_logic("Error", "Axial").GetSliceCompositeNode()
        assert composite.GetBackgroundVolumeID()
        start(panel, cts, tmp_path / "run", 1)
        assert not composite.GetBackgroundVolumeID()
        wait_for_worker(host, lambda: panel.train.task)
        panel.ui.stopTrainButton.click()
        wait_for_end(host, panel.train, 20)
        assert "nothing to resume" in panel.ui.trainStatusLabel.text
        assert not workers_of_this_process()
        panel.ui.trainButton.click()
        wait_until_done(host, panel)

    def test_what_cannot_be_trained(self, host: Any, panel: Any, cts: Path, tmp_path: Path) -> None:
        """No data; an output folder that cannot be made."""
        (tmp_path / "empty").mkdir()
        (tmp_path / "file").write_text("")
        for data, run, words in (
            (tmp_path / "empty", tmp_path / "run", ("empty", "⚠")),
            (cts, tmp_path / "file" / "run", ("another output folder",)),
        ):
            start(panel, data, run, 10)
            wait_for_end(host, panel.train, 60)
            for word in words:
                assert word in panel.ui.trainStatusLabel.text

    def test_slicer_closes(self, cts: Path, tmp_path: Path) -> None:
        """Slicer does not wait for the worker, which saves its state and ends."""
        run = tmp_path / "run"
        script = f"""
import signal, time
ui = panel.ui
ui.dataFolderSelector.currentPath, ui.runFolderSelector.currentPath = {str(cts)!r}, {str(run)!r}
ui.stepsSpinBox.value = 500
ui.trainButton.click()
host.process_events(until=lambda: panel.train.plots.rows["training"], timeout=120)
pid, begin = panel.train.task.job.worker_pid, time.monotonic()
os.kill(pid, signal.SIGSTOP)
host.close()
print(pid, time.monotonic() - begin, flush=True)
"""
        process = slicer_process(tmp_path, script)
        pid, seconds = process.stdout.readline().split()
        assert float(seconds) < SOON_S
        os.kill(int(pid), signal.SIGCONT)
        # at the end of its step, and when its state is saved
        wait_until_gone(int(pid), 60)
        assert (run / "state.pt").is_file()
        assert (run / "model.safetensors").is_file()
        assert not (run / ".maesil-stop").exists()
