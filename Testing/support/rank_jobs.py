"""Trainings that several ranks do one after the other: ``rank_jobs.py CACHE JOBS.json``.

Ranks are forked from a process that has imported torch: that takes longer than the work.
"""

import json
import math
import os
import socket
import sys
from typing import Any

import torch
import torch._dynamo  # by the first optimizer, for seconds
import torch.utils.tensorboard  # by every log
from torch.multiprocessing import start_processes
from training_factory import StopAfter

from MAESILLib.config import from_dict
from MAESILLib.data.cache import read_cache
from MAESILLib.runtime.errors import CancelledError
from MAESILLib.runtime.events import Reporter
from MAESILLib.training.ranks import LAUNCHER, joined
from MAESILLib.training.trainer import Trainer


def work(rank: int, size: int, port: int, jobs: list[dict[str, Any]]) -> None:
    torch.set_num_threads(1)
    cache = read_cache(sys.argv[1])
    os.environ |= dict(zip(LAUNCHER, (str(rank), str(size), str(rank), "localhost", str(port)), strict=True))
    with joined(torch.device("cpu")) as ranks:
        is_last = ranks.rank == ranks.size - 1
        for job in jobs:
            trainer = Trainer(
                from_dict(job["config"]),
                cache,
                job["folder"],
                resume=job.get("resume", False),
                stop=StopAfter(job.get("stop_at", math.inf) if is_last else math.inf, "the last rank was asked"),
                reporter=Reporter("off"),
                ranks=ranks,
            )
            try:
                trainer.run()
            except CancelledError as error:
                if ranks.is_main:
                    print("STOPPED", error, flush=True)


def main() -> None:
    with open(sys.argv[2], encoding="utf-8") as file:
        jobs_of = json.load(file)
    for size, jobs in jobs_of:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        start_processes(work, (size, port, jobs), size, start_method="fork")


main()
