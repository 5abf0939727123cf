"""What the module's self test checks, in a real Slicer: the sample is reconstructed where it lies."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import slicer

from MAESILWidgets.jobs.packages import REQUIRED, packages
from MAESILWidgets.scene.export import ijk_to_lps
from MAESILWidgets.scene.results_scene import VOLUMES


def run(test: Any, logic: Any) -> None:
    """Run all checks.

    Args:
        test: the running MAESILTest.
        logic: a MAESILLogic.
    """
    test.setUp()
    what_is_no_ct_is_refused(test, logic)
    missing = [package.name for package in packages(REQUIRED) if not package.is_fine]
    if missing:
        # Slicer has torch only when a user installed it
        test.delayDisplay(f"Reconstruction not tested: {', '.join(missing)} not installed")
        return
    test.setUp()
    sample_is_reconstructed_where_it_lies(test, logic)


def what_is_no_ct_is_refused(test: Any, logic: Any) -> None:
    """A volume without Hounsfield units is refused before anything is started."""
    node = slicer.util.addVolumeFromArray(np.linspace(0, 1, 16**3).reshape(16, 16, 16))
    with test.assertRaises(ValueError):
        logic.reconstruct(node)


def sample_is_reconstructed_where_it_lies(test: Any, logic: Any) -> None:
    """Every result lies on the input's grid, and the model beats the harmonic fill."""
    had_torch = "torch" in sys.modules
    test.delayDisplay("Loading the sample")
    volume = logic.loadSample()
    test.delayDisplay("Reconstructing it")
    result = logic.reconstruct(volume, waitForCompletion=True)
    for kind in VOLUMES:
        node = result.node(kind)
        test.assertEqual(ijk_to_lps(node).tolist(), ijk_to_lps(volume).tolist(), kind)
        test.assertEqual(slicer.util.arrayFromVolume(node).shape, slicer.util.arrayFromVolume(volume).shape, kind)
    metrics = result.metrics
    test.assertGreater(metrics["psnr_masked_db"], metrics["baseline_harmonic_psnr_masked_db"])
    test.assertEqual("torch" in sys.modules, had_torch)
    test.delayDisplay("Reconstructed")
