"""bf16: close to fp32, taken by reconstruct on CUDA by itself and never by evaluate, and said in the results.

Training takes it on a CPU too, where it is measured to be faster, and keeps what it took.
"""

import dataclasses
import io
import json
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_factory import QUIET, maesil, reconstruct
from training_factory import assert_same, make_cache, tiny_config
from volume_factory import trunk, unit_of

from MAESILLib.config import Config
from MAESILLib.data.cache import Cache
from MAESILLib.mae.checkpoint import load_checkpoint, read_info
from MAESILLib.mae.masking import MaskSpec
from MAESILLib.reconstruct import reconstruction
from MAESILLib.reconstruct.plan import Plan
from MAESILLib.runtime.device import has_bf16
from MAESILLib.runtime.events import Reporter
from MAESILLib.training.precision import bf16_speedup, choose_bf16
from MAESILLib.training.ranks import Ranks
from MAESILLib.training.state import read_state
from MAESILLib.training.trainer import Trainer


@pytest.mark.parametrize("coverage", ["single", "complete"])
def test_bf16_is_close_to_fp32(checkpoint: Path, coverage: str) -> None:
    model, _ = load_checkpoint(checkpoint)
    unit = unit_of(trunk((40, 40, 41)))
    plan = Plan(MaskSpec("dual"), coverage)
    full, half = (reconstruction.reconstruct(model, unit, plan, name="scan", bf16=bf16) for bf16 in (False, True))
    assert half.prediction.dtype == np.float32
    difference = np.abs(full.prediction - half.prediction)
    # random weights leave [0, 1], and bf16 has 8 bits
    assert 0 < difference.max() < 0.04
    assert difference.mean() < 0.002
    np.testing.assert_array_equal(full.hidden, half.hidden)


def test_what_reconstructs_is_fp32_but_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert not has_bf16(torch.device("cpu"))
    assert not has_bf16(torch.device("mps"))
    assert has_bf16(torch.device("cuda"))
    # an older card only pretends, slowly
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert not has_bf16(torch.device("cuda"))
    assert not choose_bf16("fp32", torch.device("cuda"))[0]
    assert choose_bf16("bf16", torch.device("cpu"))[0]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What reconstructions were asked for: bf16 or not."""
    calls: list[bool] = []

    def watched(*rest: Any, bf16: bool = False, **options: Any) -> reconstruction.Reconstruction:
        calls.append(bf16)
        return reconstruction.reconstruct(*rest, bf16=bf16, **options)

    for module in ("reconstruct.results", "evaluation.evaluate"):
        monkeypatch.setattr(f"MAESILLib.{module}.reconstruct", watched)
    return calls


@pytest.mark.parametrize("has_bf16", [False, True])
def test_reconstruct_takes_what_the_device_has_and_evaluate_fp32(
    tmp_path: Path, scan: Path, checkpoint: Path, asked: list[bool], has_bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if has_bf16:
        monkeypatch.setattr("MAESILLib.reconstruct.results.has_bf16", lambda _: True)
    precision = "bf16" if has_bf16 else "fp32"
    reconstruct(scan, tmp_path / "out", checkpoint).checked()
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["precision"] == precision
    make_cache(tmp_path / "cache", [(24, 32, 32)], ["val"])
    arguments = ("--data", tmp_path / "cache", "--output", tmp_path / "e", "--checkpoint", checkpoint)
    maesil("evaluate", *arguments, "--settings", "dual 0.75", *QUIET).checked()
    # figures are to be compared, whatever they were measured on
    assert json.loads((tmp_path / "e" / "evaluation.json").read_text())["precision"] == "fp32"
    assert asked == [has_bf16, False]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets what a calibration finds, and counts them."""

    def find(ratio: float) -> None:
        monkeypatch.setattr("MAESILLib.training.precision.bf16_speedup", lambda: ratio)

    return find


def test_training_takes_bf16_on_a_cpu_where_it_is_a_fifth_faster(
    measured: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = torch.device("cpu")
    for ratio, expected in ((0.1, False), (1.19, False), (1.2, True), (2.0, True)):
        measured(ratio)
        assert choose_bf16("auto", cpu) == (expected, f"bf16 is {ratio:.2g} times as fast as fp32 on this CPU")
    monkeypatch.setattr("MAESILLib.training.precision.bf16_speedup", lambda: pytest.fail("nothing is to be measured"))
    assert choose_bf16("fp32", cpu)[0] is False
    assert choose_bf16("bf16", cpu)[0] is True
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert choose_bf16("auto", torch.device("cuda"))[0] is True


def test_measuring_takes_less_than_half_a_second() -> None:
    began = time.process_time()
    assert 0 < bf16_speedup() < 100
    assert time.process_time() - began < 0.5


def test_a_run_says_what_it_takes_and_keeps_it(tmp_path: Path, cache: Cache, measured: Callable[[float], None]) -> None:
    """An exact resume does not depend on a timing."""

    def config_of(steps: int) -> Config:
        return tiny_config(steps=steps, precision="auto", completion=False, cooldown_share=0.0, validate_every=100)

    def trained(steps: int, folder: str, ratio: float, resume: bool = False) -> str:
        measured(ratio)
        log = io.StringIO()
        reporter = Reporter("off", io.StringIO(), log)
        Trainer(config_of(steps), cache, tmp_path / folder, resume=resume, reporter=reporter).run()
        (line,) = [line for line in log.getvalue().splitlines() if line.startswith("precision: ")]
        return line

    assert trained(2, "broken", 2.0) == "precision: bf16 (bf16 is 2 times as fast as fp32 on this CPU)"
    assert read_info(tmp_path / "broken" / "model.safetensors").training["precision"] == "bf16"
    state = read_state(tmp_path / "broken").values
    assert (state["device"], state["bf16"]) == ("cpu", True)
    assert trained(4, "broken", 0.1, resume=True) == "precision: bf16 (as the run began)"
    trained(4, "whole", 2.0)
    assert trained(4, "other", 0.1) == "precision: fp32 (bf16 is 0.1 times as fast as fp32 on this CPU)"
    whole, broken, other = (read_state(tmp_path / name).values["model"] for name in ("whole", "broken", "other"))
    assert_same(whole, broken)
    assert not all(torch.equal(weight, other[name]) for name, weight in whole.items())
    # on another kind of device it is chosen anew, and where it was saved before it was measured
    measured(0.1)
    saved = read_state(tmp_path / "broken")
    before = {key: value for key, value in saved.values.items() if key not in ("device", "bf16")}
    for values in ({**saved.values, "device": "cuda"}, before):
        start = dataclasses.replace(saved, values=values)
        assert Trainer(config_of(4), cache, tmp_path / "broken", resume=True, start=start).precision == "fp32"


def test_the_first_rank_decides(measured: Callable[[float], None], monkeypatch: pytest.MonkeyPatch) -> None:
    gathered = {}

    class Told(Ranks):
        def gather(self, value: Any) -> list[Any]:
            gathered[self.rank] = value
            return [gathered[rank] for rank in range(self.rank + 1)]

    def chosen(rank: int) -> tuple[bool, str]:
        training = types.SimpleNamespace(config=tiny_config(precision="auto"), device=torch.device("cpu"))
        training.ranks = Told(rank, 2)
        return Trainer._choose_bf16(training, None)

    measured(2.0)
    first = chosen(0)
    measured(0.1)
    assert chosen(1) == first == (True, "bf16 is 2 times as fast as fp32 on this CPU")
