"""Training from the panel: start, watch, stop, resume, and the checkpoint at the end."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_factory import write_ct
from gui_factory import (
    apply_and_wait,
    choose,
    ct_node,
    is_alive,
    result_of,
    wait_for_end,
    wait_for_worker,
    wait_until_gone,
    workers_of_this_process,
)

SMALL = (72, 72, 72)
"""One training crop of the tiny preset fits."""


@pytest.fixture
def cts(tmp_path: Path) -> Path:
    """A folder of four CTs of as many patients, so that one is held out."""
    folder = tmp_path / "CTs"
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


def steps_done(panel: Any) -> int:
    """The last step that the curves show."""
    rows = panel.train.plots.rows["training"]
    return int(rows[-1][0]) if rows else 0


class TestForm:
    def test_says_what_is_missing(self, panel: Any, cts: Path, tmp_path: Path) -> None:
        assert not panel.ui.trainButton.enabled
        assert "folder of CTs" in panel.ui.trainButton.toolTip
        panel.ui.dataFolderSelector.currentPath = str(cts)
        assert "output folder" in panel.ui.trainButton.toolTip
        panel.ui.runFolderSelector.currentPath = str(tmp_path / "run")
        assert panel.ui.trainButton.enabled
        assert not panel.ui.resumeTrainButton.enabled
        assert "no training" in panel.ui.resumeTrainButton.toolTip

    def test_volumes_of_the_scene(self, panel: Any, tmp_path: Path) -> None:
        import qt

        panel.ui.runFolderSelector.currentPath = str(tmp_path / "run")
        choose(panel.ui.dataSourceSelector, "scene")
        assert "at least one volume" in panel.ui.trainButton.toolTip
        assert not panel.ui.dataFolderSelector.isVisibleTo(panel.ui.trainSection)
        node = ct_node()
        panel.ui.sceneVolumesSelector.setCheckState(node, qt.Qt.Checked)
        assert panel.ui.trainButton.enabled


class TestChoices:
    def test_presets_are_called_what_they_are(self, host: Any) -> None:
        import re

        import torch
        from MAESILWidgets.panels.choices import PRESETS as TITLES
        from MAESILWidgets.panels.choices import TRAIN_MASKS

        from MAESILLib.config import PRESETS, from_dict
        from MAESILLib.mae.network import Network

        assert list(TITLES) == list(PRESETS)
        for name, title in TITLES.items():
            config = from_dict({"preset": name})
            parts = [part for part in ("completion", "readout") if getattr(config.train, part)]
            with torch.device("meta"):
                network = Network(config.model, config.preprocessing.windows_hu, tuple(parts))
            weights = sum(p.numel() for p in network.parameters()) / 1e6
            (told,) = re.findall(r"([\d.]+) M weights", title)
            assert told == (f"{weights:.1f}" if weights < 1 else f"{weights:.0f}"), name
        for strategy in from_dict({}).mask.strategies:
            assert strategy in TRAIN_MASKS["mix"]

    def test_every_mask_is_offered(self, host: Any) -> None:
        from MAESILWidgets.panels.choices import MASKS, TRAIN_MASKS

        from MAESILLib.config import HIDING_NAMES, STRATEGY_NAMES

        assert tuple(MASKS) == STRATEGY_NAMES
        assert tuple(TRAIN_MASKS) == ("mix", *HIDING_NAMES)


class TestTraining:
    def test_from_start_to_checkpoint(self, host: Any, panel: Any, cts: Path, tmp_path: Path) -> None:
        import slicer

        run = tmp_path / "run"
        set_up(panel, cts, run, 12)
        panel.ui.trainButton.click()
        assert panel.ui.stopTrainButton.enabled
        assert not panel.ui.trainButton.enabled
        wait_for_end(host, panel.train, 180)
        assert "Done" in panel.ui.trainStatusLabel.text
        # the curves hold what the log holds
        from MAESILLib.training.log import read_log

        log = read_log(run / "log.csv")
        training = panel.train.plots.rows["training"]
        assert [row[0] for row in training] == [row["step"] for row in log]
        assert [row[1] for row in training] == pytest.approx([row["loss"] for row in log], rel=1e-4)
        assert [row[1] for row in panel.train.plots.rows["validation"]] == pytest.approx(
            [row["val_psnr_masked_db"] for row in log if row["val_psnr_masked_db"] is not None], rel=1e-4
        )
        assert [row[2] for row in panel.train.plots.rows["encoder"]] == pytest.approx(
            [row["val_patch_r2"] for row in log if row["val_patch_r2"] is not None], rel=1e-4
        )
        table = panel.train.plots.tables["training"]
        assert table.GetNumberOfRows() == len(log)
        figures = panel.ui.trainFiguresLabel.text
        for part in ("Step 12 of 12", "loss", "PSNR", "samples/s"):
            assert part in figures
        # the preview is in the views
        manager = slicer.app.layoutManager()
        for row in ("Masked", "Reconstruction", "Error"):
            composite = manager.sliceWidget(f"MAESIL-{row}-Axial").sliceLogic().GetSliceCompositeNode()
            node = slicer.mrmlScene.GetNodeByID(composite.GetBackgroundVolumeID())
            assert node.GetAttribute("MAESIL.Preview") == row.lower()
        host.render()
        assert np.asarray(host.view_pixels("MAESIL-Masked-Axial")).std() > 3
        for name in ("Loss", "PSNR", "Encoder"):
            view = slicer.mrmlScene.GetSingletonNode(f"MAESIL-{name}", "vtkMRMLPlotViewNode")
            assert view.GetPlotChartNodeID() == panel.train.plots.charts[name].GetID()
        # the checkpoint is chosen, and reconstructs
        assert panel.parameters.checkpoint == str(run / "best.safetensors")
        assert not list(panel.temporary.iterdir())
        panel.parameters.inputVolume = ct_node()
        apply_and_wait(host, panel)
        assert result_of(panel).metrics["checkpoint"]["name"] == "best.safetensors"
        # a folder that holds a training is not trained into again
        assert not panel.ui.trainButton.enabled
        assert "already holds" in panel.ui.trainButton.toolTip

    def test_stop_and_resume_are_as_one_run(self, host: Any, panel: Any, cts: Path, tmp_path: Path) -> None:
        """A stopped and resumed training ends with the weights of an unbroken one."""
        from safetensors.numpy import load_file

        whole, broken = tmp_path / "whole", tmp_path / "broken"
        set_up(panel, cts, whole, 16)
        panel.ui.trainButton.click()
        wait_for_end(host, panel.train, 180)
        set_up(panel, cts, broken, 16)
        panel.ui.trainButton.click()
        host.process_events(until=lambda: steps_done(panel) >= 5, timeout=120)
        pid = panel.train.task.job.worker_pid
        panel.ui.stopTrainButton.click()
        begin = time.monotonic()
        wait_for_end(host, panel.train, 20)
        assert time.monotonic() - begin < 5
        assert not is_alive(pid)
        assert "Click Resume" in panel.ui.trainStatusLabel.text
        stopped_at = steps_done(panel)
        assert stopped_at < 16
        assert not (broken / ".maesil-stop").exists()
        panel.ui.resumeTrainButton.click()
        wait_for_end(host, panel.train, 180)
        assert "Done" in panel.ui.trainStatusLabel.text
        assert [row[0] for row in panel.train.plots.rows["training"]] == [1, 5, 10, 15, 16]
        expected, found = load_file(whole / "model.safetensors"), load_file(broken / "model.safetensors")
        assert expected.keys() == found.keys()
        assert all((expected[key] == found[key]).all() for key in expected)

    def test_resume_needs_the_output_folder_alone(self, host: Any, panel: Any, cts: Path, tmp_path: Path) -> None:
        """Another session: data gone, another preset chosen; the run goes on with its own."""
        import shutil

        run = tmp_path / "run"
        set_up(panel, cts, run, 30)
        choose(panel.ui.trainMaskSelector, "tube")
        panel.ui.trainButton.click()
        host.process_events(until=lambda: steps_done(panel) >= 5, timeout=120)
        panel.ui.stopTrainButton.click()
        wait_for_end(host, panel.train, 20)
        shutil.rmtree(cts)
        choose(panel.ui.presetSelector, "small")
        choose(panel.ui.trainMaskSelector, "mix")
        panel.ui.stepsSpinBox.value = 31
        assert not panel.ui.trainButton.enabled
        panel.ui.resumeTrainButton.click()
        wait_for_end(host, panel.train, 180)
        assert "Done" in panel.ui.trainStatusLabel.text, panel.ui.trainStatusLabel.text
        assert steps_done(panel) == 31

    def test_volumes_of_the_scene(self, host: Any, panel: Any, tmp_path: Path) -> None:
        import qt

        nodes = [ct_node(SMALL, name=f"scan {n} / ü", seed=n) for n in range(3)]
        choose(panel.ui.dataSourceSelector, "scene")
        for node in nodes:
            panel.ui.sceneVolumesSelector.setCheckState(node, qt.Qt.Checked)
        panel.ui.runFolderSelector.currentPath = str(tmp_path / "run ü")
        panel.ui.stepsSpinBox.value = 3
        panel.ui.trainButton.click()
        wait_for_end(host, panel.train, 180)
        assert "Done" in panel.ui.trainStatusLabel.text, panel.ui.trainStatusLabel.text
        assert not list(panel.temporary.iterdir())
        from MAESILLib.data.cache import read_cache

        cache = read_cache(tmp_path / "run ü" / "cache")
        assert len(cache.entries) == 3
        assert len({entry.patient for entry in cache.entries}) == 3

    def test_from_python(self, host: Any, panel: Any, cts: Path, tmp_path: Path) -> None:
        import MAESIL

        events: list[Any] = []
        path = MAESIL.MAESILLogic().train(
            tmp_path / "run", folders=[cts], steps=2, waitForCompletion=True, onEvent=events.append
        )
        assert Path(path).is_file()
        assert {"metric", "done"} <= {event["event"] for event in events}
        with pytest.raises(ValueError, match="nothing to train on"):
            MAESIL.MAESILLogic().train(tmp_path / "other")


class TestEnds:
    def test_killed_and_resumed(self, host: Any, panel: Any, cts: Path, tmp_path: Path) -> None:
        set_up(panel, cts, tmp_path / "run", 40)
        panel.ui.trainButton.click()
        host.process_events(until=lambda: (tmp_path / "run" / "state.pt").is_file(), timeout=120)
        os.kill(panel.train.task.job.worker_pid, signal.SIGKILL)
        wait_for_end(host, panel.train, 20)
        assert "signal 9" in panel.ui.trainStatusLabel.text
        panel.ui.resumeTrainButton.click()
        wait_for_end(host, panel.train, 180)
        assert "Done" in panel.ui.trainStatusLabel.text

    def test_stopped_while_it_prepares(self, host: Any, panel: Any, cts: Path, tmp_path: Path) -> None:
        set_up(panel, cts, tmp_path / "run", 10)
        panel.ui.trainButton.click()
        wait_for_worker(host, lambda: panel.train.task)
        panel.ui.stopTrainButton.click()
        wait_for_end(host, panel.train, 20)
        assert "nothing to resume" in panel.ui.trainStatusLabel.text
        assert not workers_of_this_process()
        panel.ui.trainButton.click()
        wait_for_end(host, panel.train, 180)
        assert "Done" in panel.ui.trainStatusLabel.text

    def test_nothing_to_learn_from(self, host: Any, panel: Any, tmp_path: Path) -> None:
        empty = tmp_path / "empty"
        empty.mkdir()
        set_up(panel, empty, tmp_path / "run", 10)
        panel.ui.trainButton.click()
        wait_for_end(host, panel.train, 60)
        assert "empty" in panel.ui.trainStatusLabel.text
        assert "⚠" in panel.ui.trainStatusLabel.text

    def test_an_output_folder_that_cannot_be_made(self, host: Any, panel: Any, cts: Path, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        set_up(panel, cts, tmp_path / "file" / "run", 10)
        panel.ui.trainButton.click()
        wait_for_end(host, panel.train, 60)
        assert "another output folder" in panel.ui.trainStatusLabel.text

    def test_slicer_closes(self, host: Any, panel: Any, cts: Path, tmp_path: Path) -> None:
        """The worker saves its state and ends."""
        run = tmp_path / "run"
        set_up(panel, cts, run, 500)
        panel.ui.trainButton.click()
        host.process_events(until=lambda: steps_done(panel) >= 5, timeout=120)
        pid = panel.train.task.job.worker_pid
        panel.close()
        wait_until_gone(pid, 5)
        assert (run / "state.pt").is_file()
        assert (run / "model.safetensors").is_file()
