"""The training state: whole at every moment; one that cannot be read is refused."""

import io
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_factory import QUIET, assert_refused, maesil
from training_factory import tiny_config, write_of_first_release

from MAESILLib.data.cache import Cache
from MAESILLib.runtime.errors import InputError
from MAESILLib.training.state import read_state
from MAESILLib.training.trainer import Trainer

CONFIG = tiny_config(steps=4, checkpoint_every=2, completion=False)


def test_a_damaged_state_is_refused_and_there_is_no_moment_without_one(
    tmp_path: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ended before its rename, a save leaves the state of the step before."""
    run = tmp_path / "run"
    Trainer(CONFIG, cache, run).run()
    state, foreign = (run / "state.pt").read_bytes(), io.BytesIO()
    torch.save({"format": "another"}, foreign)
    zeroed = state[: len(state) // 2] + bytes(len(state) - len(state) // 2)
    values = torch.load(run / "state.pt", weights_only=True)
    weights = next(iter(values["model"].values())).numpy().tobytes()
    flipped = bytearray(state)
    flipped[state.index(weights) + 5] ^= 1
    made_up = [io.BytesIO() for _ in range(5)]
    moments = {name: {"exp_avg": torch.zeros(1, 2, 3)} for name in values["optimizer"]}
    for change, file in zip(
        (
            *({"progress": []}, {"progress": {"more": 1}}, {"progress": {"best_psnr_masked_db": "x"}}),
            *({"optimizer": moments}, {"model": {}}),
        ),
        made_up,
        strict=True,
    ):
        torch.save(values | change, file)
    more = (bytes(flipped), *(file.getvalue() for file in made_up))
    for damaged in (b"", bytes(range(3, 40)), state[:1000], zeroed, foreign.getvalue(), *more):
        (run / "state.pt").write_bytes(damaged)
        with pytest.raises(InputError, match=r"state\.pt cannot be read \(.*with --init from a checkpoint of this one"):
            Trainer(CONFIG, cache, run, resume=True)
    (run / "state.pt").write_bytes(state)
    trainer = Trainer(CONFIG, cache, run, resume=True)
    before = (run / "state.pt").read_bytes()

    class KilledError(Exception):
        pass

    def killed(*_: object) -> None:
        raise KilledError

    monkeypatch.setattr("MAESILLib.runtime.files.os.replace", killed)
    with pytest.raises(KilledError):
        trainer._save()
    assert (run / "state.pt").read_bytes() == before
    assert [path.name for path in run.glob("state*")] == ["state.pt"]


def test_a_state_cannot_run_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path}/owned",)

    torch.save({"format": "maesil-training-state/1", "model": Evil()}, tmp_path / "state.pt")
    with pytest.raises(InputError, match="cannot be read") as refusal:
        read_state(tmp_path)
    assert "weights_only" not in str(refusal.value), "advice to read it unsafely"
    assert not (tmp_path / "owned").exists()


class TestFirstRelease:
    """What it left is refused in one line, and nothing of it is lost."""

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (("--resume",), ("state.pt cannot be read (its format is not", "start a new run in another folder")),
            (("--resume", "auto"), ("state.pt cannot be read (its format is not",)),
            ((), ("already holds a run",)),
            (("--preset", "tiny", "--steps", 3), ("already holds a run",)),
            (("--from", "RUN", "--cooldown", 5), ("state.pt cannot be read (its format is not",)),
            (("--init", "CHECKPOINT"), ("first.safetensors has format 'maesil-checkpoint/1'", "/2'; train it anew")),
        ],
    )
    def test_its_runs(self, tmp_path: Path, cache: Cache, options: tuple[object, ...], words: tuple[str, ...]) -> None:
        """Resumed, branched from, and their checkpoints."""
        run = tmp_path / "run"
        run.mkdir()
        torch.save({"format": "maesil-training-state/2", "task": "maesil", "config": {}}, run / "state.pt")
        (run / "log.csv").write_text("step\n1\n")
        paths = {"RUN": run, "CHECKPOINT": write_of_first_release(run / "first.safetensors")}
        before = {path.name: path.read_bytes() for path in run.iterdir()}
        output = run if paths.keys().isdisjoint(options) else tmp_path / "new"
        given = (paths.get(str(option), option) for option in options)
        result = maesil("pretrain", "--data", cache.folder, "--output", output, "--threads", 1, *given, *QUIET)
        assert_refused(result, str(run), *words)
        assert {path.name: path.read_bytes() for path in run.iterdir()} == before
        assert not (tmp_path / "new").exists()

    def test_caches_of_earlier_versions(self, tmp_path: Path) -> None:
        (tmp_path / "cache").mkdir()
        (tmp_path / "cache" / "index.json").write_text('{"schema": "maesil-cache/3", "volumes": []}')
        result = maesil("pretrain", "--data", tmp_path / "cache", "--output", tmp_path / "new", *QUIET)
        assert_refused(result, "not of schema 'maesil-cache/5'", "prepare the data again")
