"""What the module's self test checks, in a real Slicer: from a click on Apply to nine views.

Slicer has torch only where a user installed it. Elsewhere Resources/SelfTest/worker.py stands in for the worker.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import slicer

from MAESILWidgets.jobs import packages, running
from MAESILWidgets.jobs.job import BackgroundJob
from MAESILWidgets.panels import reconstruct_panel
from MAESILWidgets.scene.export import ijk_to_lps
from MAESILWidgets.scene.layout import view_names
from MAESILWidgets.scene.results_scene import VOLUMES, Result, results


def run(test: Any, logic: Any, resource: Callable[[str], str]) -> None:
    """Run all checks.

    Args:
        test: the running MAESILTest.
        logic: a MAESILLogic.
        resource: path of a file in Resources.
    """
    test.setUp()
    what_is_no_ct_is_refused(test, logic)
    test.setUp()
    slicer.util.selectModule("MAESIL")
    panel = slicer.util.getModuleWidget("MAESIL").panel
    had_torch = "torch" in sys.modules
    with a_worker(resource("SelfTest/worker.py")):
        panel.system.refresh()
        test.delayDisplay("Loading the sample")
        panel.ui.sampleButton.click()
        test.delayDisplay("Starting and cancelling")
        cancelling_leaves_nothing(test, panel)
        test.delayDisplay("Reconstructing")
        sample_is_reconstructed_where_it_lies(test, panel)
    panel.system.refresh()
    test.assertEqual("torch" in sys.modules, had_torch)
    test.delayDisplay("Reconstructed")


@contextmanager
def a_worker(stand_in: str) -> Iterator[None]:
    """Let a stand-in work where packages are missing."""
    if all(package.is_fine for package in packages.packages(packages.REQUIRED)):
        yield
        return
    with (
        mock.patch.object(packages, "REQUIRED", {}),
        mock.patch.object(BackgroundJob, "PROGRAM", (stand_in,)),
        # it asks psutil
        mock.patch.object(reconstruct_panel, "memory_warning", return_value=""),
    ):
        yield


def what_is_no_ct_is_refused(test: Any, logic: Any) -> None:
    """A volume without Hounsfield units is refused before anything is started."""
    node = slicer.util.addVolumeFromArray(np.linspace(0, 1, 16**3).reshape(16, 16, 16))
    with test.assertRaises(ValueError):
        logic.reconstruct(node)


def cancelling_leaves_nothing(test: Any, panel: Any) -> None:
    """The scene is as it was."""
    panel.ui.applyButton.click()
    task = panel.reconstruct.task
    panel.ui.cancelButton.click()
    while task.is_running:
        slicer.app.processEvents()
    test.assertEqual((task.state, results()), ("cancelled", []))


def sample_is_reconstructed_where_it_lies(test: Any, panel: Any) -> None:
    """Every result lies on the input's grid, the views show them, and the model beats the harmonic fill."""
    volume = panel.parameters.inputVolume
    panel.ui.applyButton.click()
    task = panel.reconstruct.task
    running.wait(task)
    result = Result(task.result)
    for kind in VOLUMES:
        node = result.node(kind)
        test.assertEqual(ijk_to_lps(node).tolist(), ijk_to_lps(volume).tolist(), kind)
        test.assertEqual(slicer.util.arrayFromVolume(node).shape, slicer.util.arrayFromVolume(volume).shape, kind)
    metrics = result.metrics
    test.assertGreater(metrics["psnr_masked_db"], metrics["baseline_harmonic_psnr_masked_db"])
    test.assertEqual(panel.ui.metricsTable.rowCount, len(result.rows()))
    names = view_names()
    test.assertEqual(len(names), 9)
    for name in names:
        logic = slicer.app.layoutManager().sliceWidget(name).sliceLogic()
        shown = logic.GetSliceCompositeNode().GetBackgroundVolumeID()
        test.assertEqual(shown, result.node(name.split("-")[1].lower()).GetID(), name)
        # fitted to the volume: the offset lies in it, and so does the middle of the view
        test.assertGreater(min(logic.GetSliceNode().GetFieldOfView()[:2]), 50, name)
