"""The script for a bare machine with a card, on a CPU: data there, checks, training in two calls, weights back."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from training_factory import make_cache

from MAESILLib.data.cache import read_cache
from MAESILLib.mae.checkpoint import load_checkpoint
from MAESILLib.training.log import read_log

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "Testing" / "gpu"))
import carry  # noqa: E402

SPLITS = ["train", "train", "train", "val"]


def test_differences_of_any_volume_are_restored() -> None:
    rng = np.random.default_rng(0)
    for shape in ((5, 6, 7), (1, 1, 1), (3, 1, 9)):
        volume = rng.integers(-32768, 32768, shape).astype(np.int16)
        assert np.array_equal(carry.restored(carry.residual(volume)), volume)


@pytest.mark.parametrize("step", [1, 12])
def test_a_cache_arrives_part_by_part(tmp_path: Path, step: int) -> None:
    cache = make_cache(tmp_path / "here", [(20, 30, 40), (24, 24, 24), (9, 50, 33), (16, 16, 16)], SPLITS)
    parts = carry.pack(cache, tmp_path / "packed", 2, step)
    assert len(carry.unpack(tmp_path / "there", parts[:1]).entries) == 2
    there = carry.unpack(tmp_path / "there", parts[1:])
    assert [(e.name, e.split, e.shape_dhw) for e in there.entries] == [
        (e.name, e.split, e.shape_dhw) for e in cache.entries
    ]
    for here, arrived in zip(cache.entries, there.entries, strict=True):
        there.verify(arrived)
        difference = np.asarray(cache.open(here)).astype(int) - there.open(arrived)
        assert np.abs(difference).max() <= step // 2
    packed, plain = sum(p.stat().st_size for p in parts), sum(2 * np.prod(e.shape_dhw) for e in cache.entries)
    assert packed < plain


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_the_script_trains_in_calls_and_brings_the_weights_back(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "here", [(64, 64, 64)] * 4, SPLITS)
    carry.pack(cache, tmp_path / "carried", 2, 12)
    small = "--set train.batch_size=2 --set train.validate_every=3 --set train.log_every=1 --set train.warmup_steps=2"
    small += " --set train.crop_size=[32,32,32] --set train.cooldown_crop_size=[32,32,32]"
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "CARRIED": str(tmp_path / "carried"),
        "WORK": str(tmp_path / "work"),
        "OUT": str(tmp_path / "out"),
        "PRESET": "tiny",
        "PRESETS": "tiny",
        "MINUTES": "0.02",
        "BENCH": "--device cpu --batch 1 --steps 1 --warm-up 1 --eager --no-monai",
        "TRAIN": f"--device cpu --threads 1 --set train.compile=false {small}",
    }

    def call(*steps: str) -> str:
        result = subprocess.run(
            ["bash", str(ROOT / "Testing" / "gpu" / "run.sh"), *steps],
            env=environment,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=300,
        )
        assert result.returncode == 0, result.stderr[-3000:]
        return result.stdout

    out = call("data", "check")
    assert "4 volumes" in out
    assert "bf16 product" in out
    assert len(read_cache(tmp_path / "work" / "cache").entries) == 4
    # found and run, or skipped without a card
    assert "[100%]" in (tmp_path / "out" / "test_cuda.txt").read_text(encoding="utf-8")
    (tmp_path / "work" / "steps").write_text("5")
    # a call whose time is over at once leaves a state, and the next one goes on
    call("train:0.0001")
    assert (tmp_path / "work" / "run" / "state.pt").exists()
    call("train:3")
    rows = read_log(tmp_path / "out" / "log.csv")
    assert rows[-1]["step"] == 5
    pieces = sorted((tmp_path / "out").glob("model.safetensors.*"))
    assert pieces
    whole = tmp_path / "model.safetensors"
    whole.write_bytes(b"".join(piece.read_bytes() for piece in pieces))
    model, info = load_checkpoint(whole)
    assert info.training["steps"] == 5
    trained, _ = load_checkpoint(tmp_path / "work" / "run" / "model.safetensors")
    for name, weight in trained.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], weight, atol=1e-3, rtol=1e-3)
    assert (tmp_path / "out" / "bench.json").exists()
    assert carry.steps_in(tmp_path / "out" / "bench.json", 100, "tiny") > 0
