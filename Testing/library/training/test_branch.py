"""Cool-down branches of ``maesil pretrain``: they begin where a run is, end at the lowest rate, and leave it alone."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from cli_factory import QUIET, assert_refused, maesil
from training_factory import StopAfter, assert_same, four_volumes, tiny_config

from MAESILLib.config import from_dict, to_dict
from MAESILLib.data.cache import Cache, read_cache
from MAESILLib.data.records import hash_of_patient
from MAESILLib.mae.checkpoint import read_info
from MAESILLib.runtime.errors import CancelledError, InputError
from MAESILLib.training.log import read_log
from MAESILLib.training.state import cooled_down, read_state
from MAESILLib.training.trainer import Trainer

STEPS = 6
CONFIG = tiny_config(
    steps=1000,
    cooldown_share=0.0,
    batch_size=8,
    crop_size=(16, 16, 16),
    validate_every=4,
    checkpoint_every=2,
    teacher_crops=2,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``cache``, ``run`` without end that was stopped after six updates, and ``branch`` of four, from it."""
    folder = tmp_path_factory.mktemp("branch")
    cache = four_volumes(folder / "cache")
    with pytest.raises(CancelledError):
        Trainer(CONFIG, cache, folder / "run", stop=StopAfter(STEPS)).run()
    before = contents(folder / "run")
    branch(folder, "branch", 4).checked()
    assert contents(folder / "run") == before, "branching changed its run"
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def branch(folder: Path, name: str, updates: int, *more: object):
    """Branch from ``run`` on the command line."""
    arguments = ("--data", folder / "cache", "--output", folder / name, "--threads", 1, "--device", "cpu")
    return maesil("pretrain", *arguments, "--from", folder / "run", "--cooldown", updates, *more, *QUIET)


def test_a_branch_continues_its_run_and_ends_at_the_final_rate(folder: Path) -> None:
    rows = read_log(folder / "branch" / "log.csv")
    assert [row["step"] for row in rows] == [7, 8, 9, 10]
    train = CONFIG.train
    gained = train.learning_rate - train.final_learning_rate
    expected = [train.final_learning_rate + gained * (1 - (n / 4) ** 0.5) for n in (1, 2, 3, 4)]
    assert [row["lr"] for row in rows] == pytest.approx(expected, rel=1e-5)
    assert rows[-1]["lr"] == train.final_learning_rate
    assert [row["samples"] for row in rows] == [8 * step for step in (7, 8, 9, 10)]
    state = read_state(folder / "branch").values
    assert state["progress"]["step"] == 10
    assert (state["config"]["train"]["steps"], state["config"]["train"]["cooldown_share"]) == (10, 0.4)
    saved = json.loads((folder / "branch" / "config.json").read_text())
    config = from_dict(saved)
    same = dataclasses.replace(config.train, steps=train.steps, cooldown_share=0.0)
    assert dataclasses.replace(config, train=same) == CONFIG
    assert config.train.cooldown_from == STEPS
    assert read_info(folder / "branch" / "model.safetensors").training["steps"] == 10


def test_every_second_update_of_a_branch_has_the_larger_crops(folder: Path) -> None:
    shapes: list[tuple[int, ...]] = []

    class Watching(Trainer):
        def _update(self, loader, step):
            done = super()._update(loader, step)
            shapes.append(tuple(self.batch.hu.shape))
            return done

    saved = read_state(folder / "run")
    config = from_dict(cooled_down(saved, 4))
    trainer = Watching(config, read_cache(folder / "cache"), folder / "watched", start=saved)
    for part, module in (("model", trainer.model), ("average", trainer.update.average)):
        assert_same(module.state_dict(), saved.values[part])
    trainer.run()
    assert shapes == [(8, 1, 16, 16, 16), (1, 1, 32, 32, 32)] * 2
    assert_same_weights(folder / "watched", folder / "branch")


def assert_same_weights(one: Path, other: Path) -> None:
    here, there = (read_state(path).values for path in (one, other))
    for part in ("model", "average", "optimizer"):
        assert_same(here[part], there[part])


def test_branching_twice_gives_the_same_weights_and_a_broken_branch_resumes(folder: Path) -> None:
    """With --resume alone: the configuration is the branch's own."""
    (folder / "stop").touch()
    assert branch(folder, "broken", 4, "--stop-file", folder / "stop").status == 3
    assert not (folder / "broken" / "state.pt").exists(), "it was stopped before it began"
    saved = read_state(folder / "run")
    config = from_dict(cooled_down(saved, 4))
    cache = read_cache(folder / "cache")
    with pytest.raises(CancelledError):
        Trainer(config, cache, folder / "broken", start=saved, stop=StopAfter(2)).run()
    assert read_state(folder / "broken").values["progress"]["step"] == 8
    arguments = ("--data", folder / "cache", "--output", folder / "broken", "--threads", 1, "--device", "cpu")
    maesil("pretrain", *arguments, "--resume", "--set", "train.log_every=2", *QUIET).checked()
    assert_same_weights(folder / "broken", folder / "branch")
    assert [row["step"] for row in read_log(folder / "broken" / "log.csv")] == [7, 8, 10]
    branch(folder, "again", 4, "--resume", "auto", "--set", "train.log_every=4").checked()
    assert_same_weights(folder / "again", folder / "branch")
    # the same command line once more: there is nothing left to do
    branch(folder, "again", 4, "--resume", "auto").checked()
    assert_same_weights(folder / "again", folder / "branch")


REFUSED = {
    "no N": (("--cooldown", 0), ("--cooldown 0", "at least 1")),
    "preset": (("--preset", "tiny"), ("--preset cannot be combined with --from",)),
    "config": (("--config", "c.toml"), ("--config cannot be combined with --from",)),
    "init": (("--init", "m.safetensors"), ("--init cannot be combined with --from",)),
    "steps": (("--steps", 10), ("--steps cannot be combined with --from",)),
    "seed": (("--seed", 1), ("--seed cannot be combined with --from",)),
    "resume": (("--resume",), ("--resume cannot be combined with --from",)),
    "rate": (("--set", "train.learning_rate=1"), ("--set train.learning_rate cannot be combined with --from",)),
    "length": (("--set", "train.steps=9"), ("--set train.steps cannot be combined with --from",)),
    "shares": (("--set", "train.accumulation=2"), ("an update of 1 crops cannot be shared", "accumulation 2")),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(folder: Path, name: str) -> None:
    options, words = REFUSED[name]
    assert_refused(branch(folder, "refused", 4, *options), *words)
    assert not (folder / "refused").exists()


def test_a_branch_needs_a_run_a_length_and_a_folder_of_its_own(folder: Path, tmp_path: Path) -> None:
    start = ("pretrain", "--data", folder / "cache", "--output", tmp_path / "new", "--threads", 1, *QUIET)
    assert_refused(maesil(*start, "--from", folder / "run"), "--from RUN and --cooldown N belong together")
    assert_refused(maesil(*start, "--cooldown", 4), "--from RUN and --cooldown N belong together")
    empty = maesil(*start, "--from", tmp_path / "none", "--cooldown", 4)
    assert_refused(empty, "none holds no training state")
    cooled = maesil(*start, "--from", folder / "branch", "--cooldown", 4)
    assert_refused(cooled, "branch is in its own cool-down since step 6")
    before = contents(folder / "run")
    assert_refused(branch(folder, "run", 4), "run already holds a run")
    assert contents(folder / "run") == before
    assert not (tmp_path / "new").exists()


def test_a_branch_is_of_the_same_data(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "cache"
    shutil.copytree(folder / "cache", other)
    index = (other / "index.jsonl").read_text()
    patient = read_cache(other).entries[0].patient
    assert patient in index
    (other / "index.jsonl").write_text(index.replace(patient, hash_of_patient("p9")))
    saved = read_state(folder / "run")
    with pytest.raises(InputError, match="trained on other data"):
        Trainer(from_dict(cooled_down(saved, 4)), read_cache(other), tmp_path / "new", start=saved)


def test_resuming_takes_the_runs_own_configuration(tmp_path: Path, cache: Cache) -> None:
    """Unless another one is named, which then has to be the same."""
    with pytest.raises(CancelledError):
        Trainer(tiny_config(steps=4), cache, tmp_path / "run", stop=StopAfter(2)).run()
    arguments = ("pretrain", "--data", cache.folder, "--output", tmp_path / "run", "--threads", 1, "--resume", *QUIET)
    assert_refused(maesil(*arguments, "--preset", "tiny"), "trained with another configuration")
    assert_refused(maesil(*arguments, "--set", "train.learning_rate=1"), "train.learning_rate: 0.0008 -> 1")
    maesil(*arguments, "--steps", 5).checked()
    state = read_state(tmp_path / "run").values
    assert state["progress"]["step"] == 5
    assert state["config"] == to_dict(tiny_config(steps=5))
