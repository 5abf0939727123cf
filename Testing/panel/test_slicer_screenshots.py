"""The panel as a user meets it: clicked through on the sample and on real CT, and pictured.

With MAESIL_SCREENSHOTS=DIR the pictures are kept: those of README come from here.
"""

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import slicer
from gui_factory import COLUMNS, ROWS, load_ct, reconstructed, result_of, wait_for_end
from matplotlib.image import imread

PICTURED = "MAESIL_SCREENSHOTS" in os.environ


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Where pictures go."""
    folder = Path(os.environ.get("MAESIL_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def take(host: Any, path: Path) -> np.ndarray:
    """Take a picture of the window; return it as (height, width, 3)."""
    host.screenshot(path)
    picture = imread(path)
    assert picture.shape[:2] == (1000, 1600)
    return picture[..., :3]


def plane_of(panel: Any, row: str, column: str) -> np.ndarray:
    """The plane that a view shows (its 4x4 matrix to RAS mm), and its field of view (mm)."""
    node = panel.views.slice_node(row, column)
    return np.r_[slicer.util.arrayFromVTKMatrix(node.GetSliceToRAS()).ravel(), node.GetFieldOfView()[:2]]


def test_reconstruct_the_sample(host: Any, panel: Any, pictures: Path) -> None:
    """From the empty scene: load the sample, apply, look; Slicer responds all the while."""
    panel.ui.sampleButton.click()
    host.process_events(0.2)
    busy = [time.thread_time()]
    panel.ui.applyButton.click()
    task = panel.reconstruct.task
    host.process_events(
        until=lambda: busy.append(time.thread_time()) or task.loader is not None or not task.is_running, timeout=120
    )
    wait_for_end(host, panel.reconstruct)
    # what Slicer's own thread was busy with in one turn; the time other programs take does not count
    assert max(np.diff(busy)) < 0.15
    result = result_of(panel)
    assert result.metrics["psnr_masked_db"] > result.metrics["baseline_harmonic_psnr_masked_db"]
    host.render()
    for column in COLUMNS:
        # the same anatomy in the three views of a column: one plane and one scale
        for row in ROWS:
            first = plane_of(panel, "Masked", column)
            assert plane_of(panel, row, column) == pytest.approx(first, rel=0.02, abs=1e-6)
            brightness = np.asarray(host.view_pixels(f"MAESIL-{row}-{column}"), float).mean(2)
            assert (brightness > 60).mean() > 0.1
    panel.ui.outlinesCheckBox.click()
    host.click_in_slice("MAESIL-Reconstruction-Axial", 150, 150)
    assert "Superpatch" in panel.ui.superpatchLabel.text
    panel.ui.outlinesCheckBox.click()
    picture = take(host, pictures / "panel.png")
    assert picture.std() > 0.1


def test_reconstruct_a_real_ct(host: Any, panel: Any, pictures: Path, real_ct: Path, tmp_path: Path) -> None:
    """A real chest, for the picture the whole, with every patch predicted unseen, superpatches outlined."""
    chest = sitk.ReadImage(str(real_ct / "val" / "lidc__lidc_0314.nii.gz"))
    sitk.WriteImage(chest if PICTURED else chest[90:154, 75:139, 70:118], str(tmp_path / "chest.nrrd"))
    panel.parameters.inputVolume = load_ct(tmp_path / "chest.nrrd")
    panel.parameters.coverage = "complete"
    metrics = reconstructed(host, panel, 240).metrics
    for kind in ("masked", "complete"):
        assert metrics[f"psnr_{kind}_db"] > metrics[f"baseline_harmonic_psnr_{kind}_db"] + 0.5
    panel.ui.lungWindowButton.click()
    panel.ui.outlinesCheckBox.click()
    take(host, pictures / "real.png")


def test_train(
    host: Any, panel: Any, pictures: Path, real_ct: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A short training on real CT, stopped half-way."""
    pictures = pictures.resolve()
    # relative, because a picture for others should not show this computer's folders
    monkeypatch.chdir(tmp_path)
    for section in (panel.ui.inputSection, panel.ui.reconstructSection):
        section.collapsed = True
    for section in (panel.ui.trainSection, panel.ui.advancedSection):
        section.collapsed = False
    data = Path("CTs")
    data.mkdir()
    for name in ("sts__sts_005", "sts__sts_029", "sts__sts_033"):
        (data / f"{name}.nii.gz").symlink_to(real_ct / "val" / f"{name}.nii.gz")
    panel.ui.dataFolderSelector.currentPath = str(data)
    panel.ui.runFolderSelector.currentPath = "training"
    panel.ui.stepsSpinBox.value = 60
    panel.ui.trainButton.click()
    rows = panel.train.plots.rows["training"]
    host.process_events(until=lambda: rows and rows[-1][0] >= (40 if PICTURED else 5), timeout=240)
    host.process_events(0.6)
    take(host, pictures / "training.png")
    panel.ui.stopTrainButton.click()
    wait_for_end(host, panel.train, 20)
