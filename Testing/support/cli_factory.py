"""Running the command line in tests: in this process or as a process of its own, with a small random checkpoint."""

import contextlib
import csv
import io
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from training_factory import awakened, tiny_config
from volume_factory import geometry, image_of, trunk

from MAESILLib import cli
from MAESILLib.config import Preprocessing
from MAESILLib.ct.geometry import Geometry
from MAESILLib.mae.checkpoint import CheckpointInfo, save_checkpoint
from MAESILLib.mae.checkpoint_info import PARTS
from MAESILLib.mae.network import Network
from MAESILLib.runtime.events import parse_event

REPOSITORY = Path(__file__).resolve().parents[2]
PYTHON = (sys.executable, "-m", "MAESILLib")
QUIET = ("--progress", "off")
JSON = ("--progress", "json")
EVENT_NAMES = {"started", "progress", "metric", "artifact", "info", "warning", "error", "done"}


@dataclass(frozen=True)
class Result:
    """How a command ended, and what it said."""

    status: int
    out: str
    err: str

    @property
    def events(self) -> list[dict[str, Any]]:
        """Every line of stdout as an event; fails where a line is none."""
        events = [parse_event(line) for line in self.out.splitlines()]
        assert all(event is not None for event in events), f"not an event in {self.out!r}"
        return [event for event in events if event is not None]

    def checked(self) -> Self:
        """Return this result of a command that is to succeed; fail with its words where it did not."""
        assert self.status == 0, self.err
        return self

    def named(self, name: str) -> list[dict[str, Any]]:
        """The events of one name."""
        assert name in EVENT_NAMES
        return [event for event in self.events if event["event"] == name]


@contextlib.contextmanager
def kept_signals() -> Iterator[None]:
    """The command line takes SIGTERM and SIGINT; give them back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def maesil(*arguments: object) -> Result:
    """Run the command line in this process; an exception other than its own is a bug and passes through."""
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.TextIOWrapper(io.BytesIO(), "utf-8")
    with kept_signals(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.main([str(a) for a in arguments])
        out.flush()
        err.flush()
    return Result(status, *(stream.buffer.getvalue().decode() for stream in (out, err)))


@pytest.fixture(scope="session")
def warm_python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """What starts the command line with torch imported; signals are for the process that it reports."""
    script, address = str(Path(__file__).with_name("warm_python.py")), str(tmp_path_factory.mktemp("warm") / "socket")
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONUTF8": "1", "OMP_NUM_THREADS": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, script, "serve", address], env=environment, **pipes) as server:
        assert server.stdout.readline() == b"ready\n"
        yield [sys.executable, "-I", "-S", script, "run", address]
        server.stdin.close()


def maesil_process(*arguments: object, start: Sequence[str] = PYTHON, **options: Any) -> subprocess.Popen[str]:
    """Start the command line as a process of its own, stdout and stderr as pipes; ``start`` may be warm_python."""
    return subprocess.Popen(
        [*start, *map(str, arguments)],
        cwd=options.pop("cwd", REPOSITORY),
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def run_script(name: str, *arguments: object, timeout: float) -> subprocess.CompletedProcess[str]:
    """Run a script that lies beside this file."""
    return subprocess.run(
        [sys.executable, Path(__file__).with_name(name), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        encoding="utf-8",  # whatever locale another test has set
        errors="replace",
        timeout=timeout,
        check=False,
    )


def run_python(code: str, *arguments: object, cwd: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    """Run code in a Python of its own."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def run_process(*arguments: object, **options: Any) -> Result:
    """Run the command line as a process of its own to its end."""
    process = maesil_process(*arguments, **options)
    out, err = process.communicate(timeout=60)
    return Result(process.returncode, out, err)


def assert_refused(result: Result, *words: str, status: int = 2) -> None:
    """Check that a command ended with one clear line and no traceback (give it --progress off)."""
    assert result.status == status, result
    assert result.out == ""
    lines = result.err.splitlines()
    assert len(lines) == 1, result.err
    assert lines[0].startswith("maesil: ")
    assert "Traceback" not in result.err
    for word in words:
        assert word in lines[0], f"{word!r} is not in {lines[0]!r}"


def assert_refused_event(result: Result, kind: str, status: int) -> dict[str, Any]:
    """Check that a command with --progress json ended with an error event, and return it."""
    assert result.status == status, result
    error = result.events[-1]
    assert error["event"] == "error"
    assert error["kind"] == kind
    assert error["message"]
    assert "Traceback" not in result.err
    assert not result.named("done")
    return error


def write_checkpoint(
    path: Path,
    seed: int = 0,
    preprocessing: Preprocessing | None = None,
    parts: tuple[str, ...] = PARTS,
    training: dict[str, Any] | None = None,
) -> Path:
    """Write a small checkpoint with random weights, none of them zero."""
    config = tiny_config()
    preprocessing = preprocessing or config.preprocessing
    torch.manual_seed(seed)
    network = awakened(Network(config.model, preprocessing.windows_hu, parts), 0.02)
    info = CheckpointInfo(config.model, preprocessing, training=training or {}, parts=parts)
    save_checkpoint(path, network.state_dict(), info)
    return path


def write_ct(
    path: Path, size_dhw: Sequence[int] = (40, 48, 44), seed: int = 0, packed: bool = False, **grid: Any
) -> Path:
    """Write a synthetic CT as the suffix of ``path`` says; ``grid`` as for volume_factory.geometry."""
    d, h, w = size_dhw
    write_image(path, trunk((d, h, w), seed), geometry((d, h, w), **grid), packed)
    return path


def write_image(path: Path, array: np.ndarray, grid: Geometry, packed: bool = False) -> None:
    """Write an array with SimpleITK alone; what is ``packed`` is read in a process of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image_of(array, grid), str(path), useCompression=packed)


def read_array(path: Path) -> np.ndarray:
    """Read voxels (D, H, W) with SimpleITK alone."""
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def read_rows(path: Path) -> list[dict[str, str]]:
    """Read a CSV."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_strict_json(path: Path) -> Any:
    """Read JSON; a number that is not finite fails the test."""
    text = path.read_text(encoding="utf-8")
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in {path.name}"))


def leftovers(folder: Path) -> list[str]:
    """Names of all files below ``folder`` that no command may leave there."""
    return [str(p.relative_to(folder)) for p in folder.rglob("*") if "partial" in p.name]


def reconstruction(scan: Path, output: Path, checkpoint: Path, *more: object) -> tuple[object, ...]:
    """Arguments of a reconstruction without figure and without a word, unless ``more`` asks for words."""
    return ("reconstruct", scan, "--output", output, "--checkpoint", checkpoint, "--no-figure", *QUIET, *more)


def reconstruct(scan: Path, output: Path, checkpoint: Path, *more: object) -> Result:
    """Reconstruct in this process, without figure and without a word."""
    return maesil(*reconstruction(scan, output, checkpoint, *more))


@contextlib.contextmanager
def no_root() -> Iterator[None]:
    """Give up root's right to write anywhere, if this is root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@contextlib.contextmanager
def file_size_limit(limit: int) -> Iterator[None]:
    """Let no file grow past ``limit`` bytes, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
