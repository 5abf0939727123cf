"""What the panel is told before a reconstruction: plausible, and without torch."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

from conftest import REPOSITORY

from MAESILLib.config import ModelConfig
from MAESILLib.estimate import START_S, Cost, reconstruction_cost

SMALL = ModelConfig()
CHEST = {"source_voxels": 512 * 512 * 150, "model_shape": (200, 230, 230), "mask_ratio": 0.75, "cores": 2}


def cost(model: Any = SMALL, **changes: Any) -> Cost:
    return reconstruction_cost(model, **{**CHEST, **changes})


def test_what_takes_longer() -> None:
    plain = cost()
    assert START_S + 3 < plain.seconds < 60
    assert 500 < plain.memory_mib < 4000
    for more in ({"is_complete": True}, {"overlap": 0.5}, {"mask_ratio": 0.5}, {"cores": 1}):
        assert cost(**more).seconds > plain.seconds
    assert cost(device="cuda").seconds < plain.seconds
    larger = cost(source_voxels=10**9, model_shape=(400, 460, 460))
    assert larger.seconds > plain.seconds
    assert larger.memory_mib > 2 * plain.memory_mib


def test_the_network_counts() -> None:
    base = cost(replace(SMALL, encoder_width=792, encoder_depth=12, decoder_width=264))
    assert base.seconds > 2 * cost().seconds


def test_it_needs_no_torch() -> None:
    code = "import sys, MAESILLib.estimate; assert not {'torch', 'safetensors'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)
