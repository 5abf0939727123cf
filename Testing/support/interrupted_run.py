"""A training that is killed again and again: ``interrupted_run.py CACHE CONFIG.json RUN KILLS SEED``.

Each start is a forked process, so that torch is imported once. It prints a JSON line about what it finds, and is killed
after a random number of updates and a random moment more, which falls into a forward pass, a save, a validation, or
the start itself. The last start is left to end.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # by the first optimizer, for seconds
import torch.utils.tensorboard  # by every log

from MAESILLib.config import from_dict
from MAESILLib.data.cache import read_cache
from MAESILLib.mae.checkpoint import load_checkpoint
from MAESILLib.runtime.events import Reporter
from MAESILLib.training.run_folder import BEST, MODEL, holds_state
from MAESILLib.training.state import read_state
from MAESILLib.training.trainer import Trainer


class Beats(Reporter):
    """Writes a byte for each update, and waits for one: no update is ahead of who kills it."""

    def __init__(self, beat: int, go: int) -> None:
        super().__init__("off")
        self.beat, self.go = beat, go

    def progress(self, *arguments: Any, **more: Any) -> None:
        os.write(self.beat, b".")
        os.read(self.go, 1)


def start(folder: Path) -> tuple[int, int, int]:
    """Fork a process that resumes the run; return its id and the pipes of its beats, the first before it does.

    It waits for a byte after every other beat, unless its pipe is closed.
    """
    (beats, beat), (go, ahead) = os.pipe(), os.pipe()
    child = os.fork()
    if child:
        os.close(beat)
        os.close(go)
        return child, beats, ahead
    os.close(ahead)
    status = 1
    try:
        torch.set_num_threads(1)
        print(json.dumps(look_at(folder)), flush=True)
        os.write(beat, b".")
        with open(sys.argv[2], encoding="utf-8") as file:
            config = from_dict(json.load(file))
        resume = holds_state(folder)
        Trainer(config, read_cache(sys.argv[1]), folder, resume=resume, reporter=Beats(beat, go)).run()
        status = 0
    finally:
        os._exit(status)


def look_at(folder: Path) -> dict[str, Any]:
    """Load everything that the killed process left; damage raises."""
    left: dict[str, Any] = {"state": None, "checkpoints": []}
    if holds_state(folder):
        left["state"] = read_state(folder).values["progress"]["step"]
    for name in (MODEL, BEST):
        if (folder / name).exists():
            left["checkpoints"].append(load_checkpoint(folder / name)[1].training["steps"])
    return left


def main() -> None:
    folder, kills, rng = Path(sys.argv[3]), int(sys.argv[4]), random.Random(int(sys.argv[5]))
    for _ in range(kills):
        child, beats, ahead = start(folder)
        os.read(beats, 1)
        for _ in range(rng.randrange(6)):
            os.read(beats, 1)
            os.write(ahead, b".")
        time.sleep(rng.random() * 0.02)
        os.kill(child, signal.SIGKILL)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != -signal.SIGKILL:
            sys.exit("a run ended before it was killed, or could not load what a kill left")
        os.close(beats)
        os.close(ahead)
    child, _, ahead = start(folder)
    os.close(ahead)
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


main()
