"""What the panel is told before a reconstruction: plausible for both kinds of network, and without torch."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from conftest import REPOSITORY

from MAESILLib.checkpoint_info import FirstReleaseModel
from MAESILLib.config import ModelConfig
from MAESILLib.estimate import START_S, Cost, reconstruction_cost

FIRST = FirstReleaseModel((128,) * 3, (8,) * 3, 320, 8, 192, 3, 64, 4.0, True, 0, 1, (16, 48), True)
SMALL = ModelConfig()
CHEST = {"source_voxels": 512 * 512 * 150, "model_shape": (200, 230, 230), "mask_ratio": 0.75, "cores": 2}


def cost(model: Any = SMALL, **changes: Any) -> Cost:
    return reconstruction_cost(model, **{**CHEST, **changes})


@pytest.mark.parametrize("model", [FIRST, SMALL], ids=["first release", "small"])
def test_what_takes_longer(model: Any) -> None:
    plain = cost(model)
    assert START_S + 3 < plain.seconds < 60
    assert 500 < plain.memory_mib < 4000
    for more in ({"is_complete": True}, {"overlap": 0.5}, {"mask_ratio": 0.5}, {"cores": 1}):
        assert cost(model, **more).seconds > plain.seconds
    assert cost(model, device="cuda").seconds < plain.seconds
    larger = cost(model, source_voxels=10**9, model_shape=(400, 460, 460))
    assert larger.seconds > plain.seconds
    assert larger.memory_mib > 2 * plain.memory_mib


def test_the_network_counts() -> None:
    assert cost().seconds < cost(FIRST).seconds
    base = cost(replace(SMALL, encoder_width=792, encoder_depth=12, decoder_width=264))
    assert base.seconds > 2 * cost().seconds


def test_it_needs_no_torch() -> None:
    code = "import sys, MAESILLib.estimate; assert not {'torch', 'safetensors'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)
