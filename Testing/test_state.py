"""The training state: which file a run goes on from, whatever moment it was ended at, and what is said of it."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_factory import QUIET, assert_refused, maesil
from training_factory import tiny_config, write_of_first_release

from MAESILLib.data.cache import Cache
from MAESILLib.errors import InputError
from MAESILLib.events import Reporter, parse_event
from MAESILLib.training.state import read_state
from MAESILLib.training.trainer import Trainer

CONFIG = tiny_config(steps=4, checkpoint_every=2)


@pytest.fixture
def run(tmp_path: Path, cache: Cache) -> Path:
    """A run of four steps: state.pt after the fourth, state.previous.pt after the second."""
    Trainer(CONFIG, cache, tmp_path / "run").run()
    return tmp_path / "run"


def resumed(cache: Cache, run: Path) -> tuple[Trainer, list[str]]:
    """Resume without training; return the trainer and the warnings."""
    out = io.StringIO()
    trainer = Trainer(CONFIG, cache, run, resume=True, reporter=Reporter("json", out, io.StringIO()))
    events = [parse_event(line) for line in out.getvalue().splitlines()]
    return trainer, [event["message"] for event in events if event and event["event"] == "warning"]


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


def test_a_whole_state_is_read_without_a_word(cache: Cache, run: Path) -> None:
    trainer, warnings = resumed(cache, run)
    assert trainer.progress.step == 4
    assert warnings == []
    saved = read_state(run)
    assert (saved.path, saved.problem) == (run / "state.pt", "")


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=list(DAMAGES))
def test_a_damaged_state_falls_back_to_the_one_before_and_says_so(
    cache: Cache, run: Path, damage: Callable[[bytes], bytes]
) -> None:
    state = run / "state.pt"
    state.write_bytes(damage(state.read_bytes()))
    trainer, warnings = resumed(cache, run)
    assert trainer.progress.step == 2
    (warning,) = warnings
    assert "state.pt: " in warning
    assert str(run / "state.previous.pt") in warning
    assert "step 2" in warning
    (run / "state.previous.pt").unlink()
    with pytest.raises(InputError, match=r"no training state in .* can be read \(state.pt: "):
        read_state(run)


def test_the_one_before_alone_is_no_usual_end(cache: Cache, run: Path) -> None:
    (run / "state.pt").unlink()
    trainer, (warning,) = resumed(cache, run)
    assert trainer.progress.step == 2
    assert "state.pt: it is not there" in warning


def at_first_save(run: Path) -> None:
    (run / "state.pt").rename(run / "state.new.pt")
    (run / "state.previous.pt").unlink()


def before_the_renames(run: Path) -> None:
    (run / "state.pt").rename(run / "state.new.pt")
    shutil.copy(run / "state.previous.pt", run / "state.pt")


def between_the_renames(run: Path) -> None:
    (run / "state.pt").rename(run / "state.new.pt")


@pytest.mark.parametrize("moment", [at_first_save, before_the_renames, between_the_renames])
def test_a_run_killed_while_it_saved_is_resumed_from_its_newest_state(
    cache: Cache, run: Path, moment: Callable[[Path], None]
) -> None:
    moment(run)
    with pytest.raises(InputError, match="already holds a run"):
        Trainer(CONFIG, cache, run)
    trainer, warnings = resumed(cache, run)
    assert trainer.progress.step == 4
    assert warnings == []
    trainer._save()
    assert not (run / "state.new.pt").exists()
    assert resumed(cache, run)[0].progress.step == 4


@pytest.mark.parametrize("name", ["state.pt", "state.new.pt", "state.previous.pt"])
def test_a_folder_that_holds_any_state_is_in_use(tmp_path: Path, cache: Cache, name: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_bytes(b"x")
    with pytest.raises(InputError, match="already holds a run"):
        Trainer(CONFIG, cache, tmp_path / "run")


def test_saving_is_at_no_moment_without_a_state(cache: Cache, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ended before any of its renames, a save leaves a state of the step before or of this one."""
    trainer, _ = resumed(cache, run)
    replace = Path.replace

    class KilledError(Exception):
        pass

    for survived in range(2):
        calls = []

        def until(self: Path, target: Path) -> Path:
            if len(calls) == survived:  # noqa: B023 (called within the turn)
                raise KilledError
            calls.append(target)  # noqa: B023
            return replace(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", until)
            with pytest.raises(KilledError):
                trainer._save()
        again, warnings = resumed(cache, run)
        assert again.progress.step == 4
        assert warnings == []


def test_a_state_cannot_run_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path}/owned",)

    torch.save({"format": "maesil-training-state/1", "model": Evil()}, tmp_path / "state.pt")
    with pytest.raises(InputError, match="can be read"):
        read_state(tmp_path)
    assert not (tmp_path / "owned").exists()


class TestFirstRelease:
    """What it left is refused in one line, and nothing of it is lost."""

    @pytest.fixture
    def run(self, tmp_path: Path) -> Path:
        """A run of the first release."""
        run = tmp_path / "run"
        run.mkdir()
        for name in ("state.pt", "state.previous.pt"):
            torch.save({"format": "maesil-training-state/2", "task": "maesil", "config": {}}, run / name)
        (run / "log.csv").write_text("step\n1\n")
        return run

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (("--resume",), ("state.pt: a run of the first release", "start a new run in another folder")),
            (("--resume", "auto"), ("state.pt: a run of the first release",)),
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
        assert_refused(result, "state.pt: a run of the first release")
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
