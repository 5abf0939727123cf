"""Several ranks: the same update however it is shared out, resuming with another number of them, and their ends."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from cli_factory import PYTHON, REPOSITORY, run_script
from training_factory import four_volumes, make_cache, tiny_config

from MAESILLib.config import Config, to_dict
from MAESILLib.data.cache import Cache
from MAESILLib.mae.checkpoint import load_checkpoint
from MAESILLib.runtime.errors import InputError
from MAESILLib.training.loader import check_shares, samples_of_pass
from MAESILLib.training.log import read_log
from MAESILLib.training.ranks import LAUNCHER, Ranks, own_device
from MAESILLib.training.run_folder import holds_state
from MAESILLib.training.state import read_state
from MAESILLib.training.task import MASKED_AUTOENCODING
from MAESILLib.training.trainer import Trainer

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--master-port", "0"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
STEPS = 4
JOB = {"preview_at": 0, "completion": False}


def config(**train: object) -> Config:
    # four crops of the completion, so that some ranks and passes have none
    crops = {"completion_crops": 4, "teacher_crops": 5, "cooldown_share": 0.4, "batch_size": 8}
    return tiny_config(**{**crops, "steps": STEPS, "validate_every": 2, "checkpoint_every": 2, **train})


def torchrun(ranks: int, *arguments: object, options: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    command = [*TORCHRUN, "--nproc-per-node", str(ranks), "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    return subprocess.Popen(
        [*command, *options, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",  # whatever locale another test has set
        errors="replace",
        env=ENVIRONMENT,
    )


def do_jobs(cache: Cache, folder: Path, jobs: dict[int, list[dict[str, Any]]]) -> str:
    """Let each number of ranks do its jobs."""
    (folder / "jobs.json").write_text(json.dumps(list(jobs.items())))
    done = run_script("rank_jobs.py", cache.folder, folder / "jobs.json", timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "FutureWarning" not in done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same training by one process, by 2 and by 4 ranks, whole and in passes, and begun by others."""
    folder = tmp_path_factory.mktemp("ranks")
    cache = four_volumes(folder / "cache", (36, 40, 40))

    def job(name: str, **values: Any) -> dict[str, Any]:
        train = {key: values.pop(key) for key in ("accumulation",) if key in values}
        return {"folder": str(folder / name), "config": to_dict(config(**train)), **values}

    Trainer(config(), cache, folder / "1x8").run()
    Trainer(config(accumulation=4), cache, folder / "1x2x4 passes").run()
    begun = [job("4 then 2", stop_at=2), job("4 then 1", stop_at=2)]
    by_four = [job("4x2"), job("4x1x2 passes", accumulation=2), *begun]
    by_two = [job("2x4"), job("2x2x2 passes", accumulation=2), job("4 then 2", resume=True)]
    out = do_jobs(cache, folder, {4: by_four, 2: by_two})
    assert out.count("STOPPED stopped at step 2 (the last rank was asked)") == 2
    assert read_state(folder / "4 then 1").values["progress"]["step"] == 2
    Trainer(config(), cache, folder / "4 then 1", resume=True).run()
    return folder


NAMES = ["1x2x4 passes", "2x4", "4x2", "4x1x2 passes", "2x2x2 passes", "4 then 2", "4 then 1"]
NUMBERS = ("loss", *MASKED_AUTOENCODING.metrics, "gradient_norm", "val_psnr_masked_db", "samples", "mask_ratio")


@pytest.mark.parametrize("name", NAMES)
def test_an_update_is_the_same_however_it_is_shared_out(runs: Path, name: str) -> None:
    expected, found = (read_log(runs / n / "log.csv") for n in ("1x8", name))
    assert [row["step"] for row in found] == list(range(1, STEPS + 1))
    assert [row["mask"] for row in found] == [row["mask"] for row in expected]
    for key in NUMBERS:
        numbers = [[row[key] for row in rows if row[key] is not None] for rows in (expected, found)]
        assert len(numbers[0]) == (2 if key.startswith("val") else STEPS)
        # rows hold six digits, and sums in another order differ in the last of them
        np.testing.assert_allclose(*numbers, rtol=2e-5, err_msg=key)
    whole, shared = (load_checkpoint(runs / n / "model.safetensors")[0].state_dict() for n in ("1x8", name))
    for key, weight in whole.items():
        # Adam magnifies the rounding of a gradient near 0, so single weights may differ: the tensor as a whole may not
        apart = torch.linalg.vector_norm(shared[key] - weight)
        assert apart < 1e-4 * torch.linalg.vector_norm(weight) + 1e-5 * weight.numel() ** 0.5, key


def test_the_samples_of_a_batch_differ(runs: Path) -> None:
    """If all ranks saw the same samples, or one was left out, the curve above would be another one."""
    one = read_log(runs / "1x8" / "log.csv")
    assert len({row["loss"] for row in one}) == STEPS
    alone = [samples_of_pass(config(), Ranks(), step, 0) for step in range(2)]
    for size, passes in ((2, 1), (4, 1), (2, 2), (1, 4)):
        shared = config(accumulation=passes)
        for step, expected in enumerate(alone):
            samples = [
                sample
                for rank in range(size)
                for number in range(passes)
                for sample in samples_of_pass(shared, Ranks(rank, size), step, number)
            ]
            assert sorted(samples) == list(expected)


def test_a_state_does_not_say_who_wrote_it(runs: Path) -> None:
    """Weights, moments and averages are stored under the model's own names."""
    alone, shared = (read_state(runs / n).values for n in ("1x8", "4x2"))
    for part in ("model", "average"):
        assert {k: v.shape for k, v in alone[part].items()} == {k: v.shape for k, v in shared[part].items()}
    for name, moments in alone["optimizer"].items():
        for key, moment in moments.items():
            torch.testing.assert_close(shared["optimizer"][name][key], moment, rtol=1e-2, atol=1e-6)
    # only the first rank wrote
    assert len((runs / "4x2" / "log.csv").read_text().splitlines()) == STEPS + 1
    assert len(list((runs / "4x2" / "previews").glob("step_*.png"))) == 2


def test_a_batch_that_cannot_be_shared_out_is_refused() -> None:
    """Nor the fewer, larger crops of a cool-down."""
    for size, accumulation in ((3, 1), (2, 3), (16, 1)):
        with pytest.raises(InputError, match=f"cannot be shared by {size} ranks"):
            check_shares(config(accumulation=accumulation), Ranks(0, size))
    small = {"crop_size": (16, 16, 16), "cooldown_crop_size": (32, 32, 32)}
    with pytest.raises(InputError, match=r"an update of 1 crops cannot be shared by 2 ranks .*cooldown_crop_size"):
        check_shares(config(**small), Ranks(0, 2))
    check_shares(config(**small), Ranks(0, 1))
    check_shares(config(**{**small, "cooldown_share": 0.0}), Ranks(0, 8))


def test_each_rank_takes_its_own_card(monkeypatch: pytest.MonkeyPatch) -> None:
    assert own_device("cuda:1") == "cuda:1"
    for name, value in zip(LAUNCHER, ("5", "8", "1", "a", "1"), strict=True):
        monkeypatch.setenv(name, value)
    assert own_device("cuda") == "cuda:1"
    assert own_device("cpu") == "cpu"
    with pytest.raises(InputError, match="for several ranks"):
        own_device("cuda:0")


class Job:
    """A distributed ``maesil pretrain`` that is long enough to be interrupted; ``start`` may be warm_python."""

    def __init__(
        self,
        folder: Path,
        *,
        steps: int = 2000,
        options: tuple[str, ...] = (),
        more: tuple[str, ...] = (),
        start: Sequence[str] = PYTHON,
    ) -> None:
        self.run = folder / "run"
        self.cache = make_cache(folder / "cache", [(40, 40, 40)] * 3, ["train", "train", "val"])
        values = to_dict(tiny_config(steps=steps, checkpoint_every=5, validate_every=1000, **JOB))
        lines = []
        for section in ("model", "train"):
            lines += [f"[{section}]", *(f"{key} = {json.dumps(value)}" for key, value in values[section].items())]
        (folder / "c.toml").write_text('preset = "tiny"\n' + "\n".join(lines))
        arguments = ("pretrain", "--data", self.cache.folder, "--output", self.run, "--config", folder / "c.toml")
        self.process = torchrun(
            *(2, "--no-python", *start, *arguments, "--device", "cpu", "--progress", "off", *more), options=options
        )

    def wait_for_state(self, after: float = 0.0) -> None:
        deadline = time.monotonic() + 120
        state = self.run / "state.pt"
        while not (state.exists() and state.stat().st_mtime > after):
            assert self.process.poll() is None, self.process.stderr.read()[-3000:]
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def rank(self, number: int) -> int:
        """Return the process id of a rank."""
        children = psutil.Process(self.process.pid).children()
        (rank,) = [child.pid for child in children if child.environ().get("RANK") == str(number)]
        return rank

    def end(self) -> tuple[int, str]:
        _, error = self.process.communicate(timeout=180)
        return self.process.returncode, error


needs_proc = pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for its processes in /proc")


@needs_proc
def test_a_rank_that_is_killed_ends_the_job_with_its_name(tmp_path: Path) -> None:
    # the launcher looks late, as on a busy machine: the rank that lost the other must not have ended by then
    job = Job(tmp_path, options=("--monitor-interval", "2"))
    job.wait_for_state()
    os.kill(job.rank(1), signal.SIGKILL)
    status, error = job.end()
    assert status == 1
    assert "Signal 9 (SIGKILL)" in error, error[-3000:]
    assert "rank      : 1" in error
    assert read_state(job.run).values["progress"]["step"] >= 5
    assert "Traceback" not in error.partition("Root Cause")[2]


@needs_proc
def test_a_job_that_its_launcher_starts_anew_goes_on(tmp_path: Path) -> None:
    job = Job(tmp_path, steps=40, options=("--max-restarts", "1"))
    job.wait_for_state()
    os.kill(job.rank(0), signal.SIGKILL)
    status, error = job.end()
    assert status == 0, error[-3000:]
    assert read_state(job.run).values["progress"]["step"] == 40
    rows = read_log(job.run / "log.csv")
    assert [row["step"] for row in rows] == list(range(1, 41))
    unbroken = tiny_config(steps=40, validate_every=1000, **JOB)
    Trainer(unbroken, job.cache, tmp_path / "whole").run()
    expected = read_log(tmp_path / "whole" / "log.csv")
    np.testing.assert_allclose([r["loss"] for r in rows], [r["loss"] for r in expected], rtol=1e-3)


def test_a_scheduler_that_ends_the_job_leaves_a_state_of_the_last_step(tmp_path: Path) -> None:
    job = Job(tmp_path)
    job.wait_for_state()
    job.process.send_signal(signal.SIGTERM)
    _, error = job.end()
    assert "stopped at step" in error, error[-3000:]
    step = int(error.partition("stopped at step ")[2].split()[0])
    assert "SIGTERM" in error
    assert read_state(job.run).values["progress"]["step"] == step


def test_a_stop_file_ends_all_ranks_without_a_failure(tmp_path: Path, warm_python: list[str]) -> None:
    stop = ("--stop-file", str(tmp_path / "stop"))
    job = Job(tmp_path, more=stop, options=("--max-restarts", "3"), start=warm_python)
    job.wait_for_state()
    (tmp_path / "stop").touch()
    status, error = job.end()
    assert status == 0, error[-3000:]
    assert error.count("stopped at step") == 1
    assert holds_state(job.run)


def test_what_one_rank_is_refused_names_the_rank(tmp_path: Path, warm_python: list[str]) -> None:
    job = Job(tmp_path, more=("--set", "train.batch_size=3"), start=warm_python)
    status, error = job.end()
    assert status == 1
    assert "rank 0 of 2" in error
    assert "an update of 3 crops cannot be shared by 2 ranks" in error
    assert not job.run.exists()
