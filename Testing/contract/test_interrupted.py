"""Half a day of interruptions in miniature: kill -9 at twenty random moments of a run."""

import json
import os
from contextlib import ExitStack
from pathlib import Path

import pytest
from cli_factory import file_size_limit, run_script
from training_factory import assert_same, tiny_config

from MAESILLib.config import to_dict
from MAESILLib.data.cache import Cache
from MAESILLib.mae.checkpoint import load_checkpoint
from MAESILLib.runtime.errors import DiskFullError
from MAESILLib.runtime.events import Reporter
from MAESILLib.training.log import read_log
from MAESILLib.training.state import read_state
from MAESILLib.training.trainer import Trainer

SMALL = {
    "crop_size": (16, 16, 16),
    "cooldown_crop_size": (16, 16, 16),
    "validation_superpatches": 1,
    "teacher_crops": 1,
    "completion_crops": 1,
}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_twenty_kills_change_nothing(tmp_path: Path, cache: Cache) -> None:
    config = tiny_config(steps=40, checkpoint_every=3, validate_every=6, log_every=2, **SMALL)
    (tmp_path / "c.json").write_text(json.dumps(to_dict(config)))
    given = (cache.folder, tmp_path / "c.json", tmp_path / "killed", 20, 7)
    result = run_script("interrupted_run.py", *given, timeout=600)
    assert result.returncode == 0, result.stderr[-3000:]
    fresh, *kills = [json.loads(line) for line in result.stdout.splitlines()]
    assert fresh == {"state": None, "checkpoints": []}
    assert len(kills) == 20
    steps = [kill["state"] or 0 for kill in kills]
    assert steps == sorted(steps), "a kill threw the run back behind a saved state"
    assert 0 < steps[-1] < 40
    assert len(set(steps)) > 5
    # once there is a state, it and a checkpoint can be loaded after every kill
    first = next(number for number, kill in enumerate(kills) if kill["checkpoints"])
    assert all(kill["checkpoints"] and kill["state"] is not None for kill in kills[first:])

    Trainer(config, cache, tmp_path / "whole").run()
    for part in ("model", "average"):
        assert_same(*(read_state(tmp_path / name).values[part] for name in ("whole", "killed")))
    for name in ("model.safetensors", "best.safetensors"):
        assert_same(*(load_checkpoint(tmp_path / run / name)[0].state_dict() for run in ("whole", "killed")))
    rows = [
        [(row["step"], row["loss"], row["val_psnr_masked_db"]) for row in read_log(tmp_path / run / "log.csv")]
        for run in ("whole", "killed")
    ]
    assert rows[0] == rows[1]
    assert not list((tmp_path / "killed").glob(".*"))


def test_what_a_killed_save_left_is_removed(tmp_path: Path, cache: Cache) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".1234abcd.partial.state.pt").write_bytes(b"half a state")
    (folder / ".mine").write_bytes(b"")
    (folder / "previews").mkdir()
    (folder / "previews" / ".1234abcd.partial.latest.npz").write_bytes(b"half a preview")
    Trainer(tiny_config(steps=2), cache, folder).run()
    assert [left.name for left in folder.rglob(".*")] == [".mine"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="limits the size of files")
@pytest.mark.parametrize("board", [True, False])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_disk_that_fills_up_ends_the_run_with_the_state_before(
    tmp_path: Path, cache: Cache, board: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not board:
        monkeypatch.setattr("MAESILLib.training.log._board", lambda *_: None)
    config = tiny_config(steps=8, checkpoint_every=4, **SMALL)
    folder = tmp_path / "run"

    class FillsUp(Reporter):
        def progress(self, stage: str, fraction: float, note: str = "") -> None:
            if note.startswith("step 6 "):
                limit.enter_context(file_size_limit(4096))

    with ExitStack() as limit, pytest.raises(DiskFullError, match=r"free space|another folder"):
        Trainer(config, cache, folder, reporter=FillsUp("off")).run()
    assert read_state(folder).values["progress"]["step"] == 4
    assert load_checkpoint(folder / "model.safetensors")[1].training["steps"] == 4
    assert not list(folder.glob(".*"))
    Trainer(config, cache, folder, resume=True).run()
    Trainer(config, cache, tmp_path / "whole").run()
    assert_same(*(read_state(path).values["model"] for path in (tmp_path / "whole", folder)))
