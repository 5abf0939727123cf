"""Half a day of interruptions in miniature: kill -9 at twenty random moments of a run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training_factory import tiny_config

from MAESILLib.checkpoint import load_checkpoint
from MAESILLib.config import to_dict
from MAESILLib.data.cache import Cache
from MAESILLib.training.log import read_log
from MAESILLib.training.state import read_state
from MAESILLib.training.trainer import Trainer

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_twenty_kills_change_nothing(tmp_path: Path, cache: Cache) -> None:
    config = tiny_config(steps=150, checkpoint_every=4, validate_every=10, log_every=2)
    (tmp_path / "c.json").write_text(json.dumps(to_dict(config)))
    result = subprocess.run(
        [
            sys.executable,
            str(ROOT / "Testing" / "interrupted_run.py"),
            *(str(cache.folder), str(tmp_path / "c.json"), str(tmp_path / "killed"), "20", "7"),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert result.returncode == 0, result.stderr[-3000:]
    kills = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(kills) == 20
    assert all(kill["killed"] for kill in kills), "the run ended before its last kill"
    steps = [kill["state"] or 0 for kill in kills]
    assert steps == sorted(steps), "a kill threw the run back behind a saved state"
    assert 0 < steps[-1] < 150
    assert len(set(steps)) > 5
    # once there is a state, it and a checkpoint can be loaded after every kill, without falling back
    first = next(number for number, kill in enumerate(kills) if kill["checkpoints"])
    assert all(kill["checkpoints"] and kill["problem"] == "" for kill in kills[first:])

    Trainer(config, cache, tmp_path / "whole").run()
    assert os.path.getsize(tmp_path / "killed" / "state.previous.pt") > 0
    for part in ("model", "average"):
        whole, killed = (read_state(tmp_path / name).values[part] for name in ("whole", "killed"))
        assert all(torch.equal(whole[key], killed[key]) for key in whole)
    for name in ("model.safetensors", "best.safetensors"):
        whole, killed = (load_checkpoint(tmp_path / run / name)[0].state_dict() for run in ("whole", "killed"))
        assert all(torch.equal(whole[key], killed[key]) for key in whole)
    rows = [
        [(row["step"], row["loss"], row["val_psnr_masked_db"]) for row in read_log(tmp_path / run / "log.csv")]
        for run in ("whole", "killed")
    ]
    assert rows[0] == rows[1]
    assert not list((tmp_path / "killed").glob(".*"))


def test_what_a_killed_save_left_is_removed(tmp_path: Path, cache: Cache) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".1234abcd.partial.state.new.pt").write_bytes(b"half a state")
    (folder / ".mine").write_bytes(b"")
    Trainer(tiny_config(steps=2), cache, folder).run()
    assert [left.name for left in folder.glob(".*")] == [".mine"]
