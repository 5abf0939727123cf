"""The training state: whole at every moment; one that cannot be read is refused."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
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

CONFIG = tiny_config(steps=4, checkpoint_every=2)


@pytest.fixture
def run(tmp_path: Path, cache: Cache) -> Path:
    """A run of four steps."""
    Trainer(CONFIG, cache, tmp_path / "run").run()
    return tmp_path / "run"


def cut(data: bytes) -> bytes:
    return data[:1000]


def zeroed(data: bytes) -> bytes:
    return data[: len(data) // 2] + bytes(len(data) - len(data) // 2)


def foreign(data: bytes) -> bytes:
    packed = io.BytesIO()
    torch.save({"format": "another"}, packed)
    return packed.getvalue()


DAMAGES = {
    "empty": lambda _: b"",
    "noise": lambda _: bytes(range(3, 40)),
    "cut": cut,
    "zeroed": zeroed,
    "foreign": foreign,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=list(DAMAGES))
def test_a_damaged_state_is_refused(cache: Cache, run: Path, damage: Callable[[bytes], bytes]) -> None:
    state = run / "state.pt"
    state.write_bytes(damage(state.read_bytes()))
    with pytest.raises(InputError, match=r"state\.pt cannot be read \(.*with --init from a checkpoint of this one"):
        Trainer(CONFIG, cache, run, resume=True)


def test_a_folder_that_holds_a_state_is_in_use(tmp_path: Path, cache: Cache) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "state.pt").write_bytes(b"x")
    with pytest.raises(InputError, match="already holds a run"):
        Trainer(CONFIG, cache, tmp_path / "run")


def test_saving_is_at_no_moment_without_a_state(cache: Cache, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ended before its rename, a save leaves the state of the step before."""
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
    with pytest.raises(InputError, match="cannot be read"):
        read_state(tmp_path)
    assert not (tmp_path / "owned").exists()


class TestFirstRelease:
    """What it left is refused in one line, and nothing of it is lost."""

    @pytest.fixture
    def run(self, tmp_path: Path) -> Path:
        """A run of the first release."""
        run = tmp_path / "run"
        run.mkdir()
        torch.save({"format": "maesil-training-state/2", "task": "maesil", "config": {}}, run / "state.pt")
        (run / "log.csv").write_text("step\n1\n")
        return run

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (("--resume",), ("state.pt cannot be read (its format is not", "start a new run in another folder")),
            (("--resume", "auto"), ("state.pt cannot be read (its format is not",)),
            ((), ("already holds a run",)),
            (("--preset", "tiny", "--steps", 3), ("already holds a run",)),
        ],
    )
    def test_its_runs(self, cache: Cache, run: Path, options: tuple[object, ...], words: tuple[str, ...]) -> None:
        before = {path.name: path.read_bytes() for path in run.iterdir()}
        result = maesil("pretrain", "--data", cache.folder, "--output", run, "--threads", 1, *options, *QUIET)
        assert_refused(result, str(run), *words)
        assert {path.name: path.read_bytes() for path in run.iterdir()} == before

    def test_branches_from_its_runs(self, tmp_path: Path, cache: Cache, run: Path) -> None:
        arguments = ("--data", cache.folder, "--output", tmp_path / "new", "--threads", 1)
        result = maesil("pretrain", *arguments, "--from", run, "--cooldown", 5, *QUIET)
        assert_refused(result, "state.pt cannot be read (its format is not")
        assert not (tmp_path / "new").exists()

    def test_its_checkpoints(self, tmp_path: Path, cache: Cache) -> None:
        arguments = ("--data", cache.folder, "--output", tmp_path / "new", "--threads", 1)
        first = write_of_first_release(tmp_path / "first.safetensors")
        result = maesil("pretrain", *arguments, "--init", first, *QUIET)
        assert_refused(result, str(first), "maesil-checkpoint/1", "train it anew")
        assert not (tmp_path / "new").exists()

    def test_caches_of_earlier_versions(self, tmp_path: Path) -> None:
        (tmp_path / "cache").mkdir()
        (tmp_path / "cache" / "index.json").write_text('{"schema": "maesil-cache/3", "volumes": []}')
        result = maesil("pretrain", "--data", tmp_path / "cache", "--output", tmp_path / "new", *QUIET)
        assert_refused(result, "not of schema 'maesil-cache/4'", "prepare the data again")
