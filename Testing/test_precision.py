"""bf16: close to fp32, taken by reconstruct on CUDA by itself and never by evaluate, and said in the results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_factory import QUIET, maesil, reconstruct
from training_factory import make_cache
from volume_factory import trunk

from MAESILLib import reconstruction
from MAESILLib.checkpoint import load_checkpoint
from MAESILLib.device import use_bf16
from MAESILLib.masking import MaskSpec
from MAESILLib.plan import Plan


@pytest.mark.parametrize("coverage", ["single", "complete"])
def test_bf16_is_close_to_fp32(checkpoint: Path, coverage: str) -> None:
    model, _ = load_checkpoint(checkpoint)
    unit = ((np.clip(trunk((40, 40, 41)), -1000, 1000) + 1000) / 2000).astype(np.float32)
    plan = Plan(MaskSpec("dual"), coverage)
    full, half = (reconstruction.reconstruct(model, unit, plan, name="scan", bf16=bf16) for bf16 in (False, True))
    assert half.prediction.dtype == np.float32
    difference = np.abs(full.prediction - half.prediction)
    assert 0 < difference.max() < 0.02
    assert difference.mean() < 0.002
    np.testing.assert_array_equal(full.hidden, half.hidden)


def test_auto_is_fp32_but_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert not use_bf16("auto", torch.device("cpu"))
    assert not use_bf16("auto", torch.device("mps"))
    assert use_bf16("auto", torch.device("cuda"))
    # an older card only pretends, slowly
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert not use_bf16("auto", torch.device("cuda"))
    assert not use_bf16("fp32", torch.device("cuda"))
    assert use_bf16("bf16", torch.device("cpu"))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What reconstructions were asked for: bf16 or not."""
    calls: list[bool] = []

    def watched(*rest: Any, bf16: bool = False, **options: Any) -> reconstruction.Reconstruction:
        calls.append(bf16)
        return reconstruction.reconstruct(*rest, bf16=bf16, **options)

    for module in ("results", "evaluation.evaluate"):
        monkeypatch.setattr(f"MAESILLib.{module}.reconstruct", watched)
    return calls


@pytest.mark.parametrize("has_bf16", [False, True])
def test_reconstruct_takes_what_the_device_has_and_evaluate_fp32(
    tmp_path: Path, scan: Path, checkpoint: Path, asked: list[bool], has_bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if has_bf16:
        monkeypatch.setattr("MAESILLib.results.use_bf16", lambda precision, _: precision == "auto")
    precision = "bf16" if has_bf16 else "fp32"
    assert reconstruct(scan, tmp_path / "out", checkpoint).status == 0
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["precision"] == precision
    make_cache(tmp_path / "cache", [(24, 32, 32)], ["val"])
    arguments = ("--data", tmp_path / "cache", "--output", tmp_path / "e", "--checkpoint", checkpoint)
    assert maesil("evaluate", *arguments, "--settings", "dual 0.75", *QUIET).status == 0
    # figures are to be compared, whatever they were measured on
    assert json.loads((tmp_path / "e" / "evaluation.json").read_text())["precision"] == "fp32"
    assert asked == [has_bf16, False]
