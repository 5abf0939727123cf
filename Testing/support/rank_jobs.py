"""Trainings that several ranks do one after the other, in one start: joining takes longer than the work.

torchrun --nproc-per-node N Testing/support/rank_jobs.py CACHE JOBS.json
"""

import json
import math
import sys

import torch
from training_factory import StopAfter

from MAESILLib.config import from_dict
from MAESILLib.data.cache import read_cache
from MAESILLib.runtime.errors import CancelledError
from MAESILLib.runtime.events import Reporter
from MAESILLib.training.ranks import joined
from MAESILLib.training.trainer import Trainer


def main() -> None:
    torch.set_num_threads(1)
    cache = read_cache(sys.argv[1])
    with open(sys.argv[2], encoding="utf-8") as file:
        jobs = json.load(file)
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


main()
