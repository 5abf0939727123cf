"""Several CTs one after the other: volumes of the scene, and the files of a folder."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import slicer
from cli_factory import read_rows, write_ct
from gui_factory import SOON_S, choose, ct_node, use_checkpoint, wait_for_end, wait_for_worker

SMALL = (16, 24, 20)


def test_volumes_of_the_scene(host: Any, panel: Any, checkpoint: Path, qt: Any) -> None:
    from MAESILWidgets.scene.results_scene import results

    use_checkpoint(panel, checkpoint)
    panel.parameters.mask = "uniform"
    nodes = [ct_node(SMALL, name) for name in ("no CT", "ct")]
    slicer.util.arrayFromVolume(nodes[0])[:] = 7
    choose(panel.ui.batchSourceSelector, "scene")
    assert "Check at least one" in panel.ui.batchButton.toolTip
    for node in nodes:
        panel.ui.batchVolumesSelector.setCheckState(node, qt.Qt.Checked)
    panel.ui.batchButton.click()
    assert not panel.ui.batchButton.enabled
    wait_for_end(host, panel.batch, 180)
    assert [one.node("input").GetName() for one in results()] == ["ct"]
    assert all(one.metrics["mask"]["strategy"] == "uniform" for one in results())
    assert "no CT:" in panel.ui.batchStatusLabel.text
    assert not list(panel.temporary.iterdir())


def test_a_volume_that_cannot_be_written_ends_the_batch(
    host: Any, panel: Any, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full when the file is begun: the task ends while it is being started."""
    import qt
    from MAESILWidgets.scene import export

    use_checkpoint(panel, checkpoint)
    choose(panel.ui.batchSourceSelector, "scene")
    panel.ui.batchVolumesSelector.setCheckState(ct_node(SMALL), qt.Qt.Checked)

    def full(*_: object) -> Any:
        return open("/dev/full", "wb", buffering=0)

    monkeypatch.setattr(export, "open", full, raising=False)
    panel.ui.batchButton.click()
    assert panel.batch.task is None
    assert "disk full" in panel.ui.batchStatusLabel.text
    assert panel.ui.batchButton.enabled
    assert not panel.ui.batchStopButton.enabled
    assert not list(panel.temporary.iterdir())


def test_a_folder_is_stopped_and_resumed(host: Any, panel: Any, checkpoint: Path, tmp_path: Path) -> None:
    use_checkpoint(panel, checkpoint)
    write_ct(tmp_path / "scans" / "a.nrrd", SMALL)
    (tmp_path / "scans" / "broken.nii.gz").write_text("no image")
    panel.ui.batchFolderSelector.currentPath = str(tmp_path / "scans")
    assert "results" in panel.ui.batchButton.toolTip
    panel.ui.batchOutputSelector.currentPath = str(tmp_path / "out")
    panel.ui.batchButton.click()
    wait_for_worker(host, lambda: SimpleNamespace(job=panel.batch.task))
    panel.ui.batchStopButton.click()
    wait_for_end(host, panel.batch, SOON_S)
    assert "Stopped" in panel.ui.batchStatusLabel.text
    panel.ui.batchButton.click()
    wait_for_end(host, panel.batch)
    assert "broken.nii.gz" in panel.ui.batchStatusLabel.text
    assert "1 of 2 inputs failed" in panel.ui.batchStatusLabel.text
    assert [row["result"] for row in read_rows(tmp_path / "out" / "metrics.csv")] == ["a"]
    shutil.rmtree(tmp_path / "scans")
    panel.batch.update()
    assert not panel.ui.batchButton.enabled
    assert not list(panel.temporary.iterdir())
