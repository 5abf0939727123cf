"""The memory that the panel warns of before a reconstruction: plausible, and without torch."""

import subprocess
import sys

import pytest
from conftest import REPOSITORY

from MAESILLib.reconstruct.estimate import reconstruction_memory_mib

CHEST = (512 * 512 * 150, (200, 230, 230))


def test_memory_grows_with_both_grids_and_with_complete_coverage() -> None:
    plain = reconstruction_memory_mib(*CHEST)
    assert 500 < plain < 4000
    assert reconstruction_memory_mib(10**9, (400, 460, 460)) > 2 * plain
    cover = reconstruction_memory_mib(*CHEST, is_complete=True) - plain
    assert cover == pytest.approx(10 * 200 * 230 * 230 / 1e6)


def test_it_needs_no_torch() -> None:
    code = "import sys, MAESILLib.reconstruct.estimate; assert not {'torch', 'safetensors'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)
