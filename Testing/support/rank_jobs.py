"""Trainings that several ranks do one after the other, in one start: joining takes longer than the work.

torchrun --nproc-per-node N Testing/support/rank_jobs.py CACHE JOBS.json
"""

import json
import sys

import torch

from MAESILLib.config import from_dict
from MAESILLib.data.cache import read_cache
from MAESILLib.runtime.errors import CancelledError
from MAESILLib.runtime.events import Reporter
from MAESILLib.runtime.stopping import StopRequest
from MAESILLib.training.ranks import joined
from MAESILLib.training.trainer import Trainer


class StopAtStep(StopRequest):
    """Asks for a stop at a step, on the last rank alone."""

    def __init__(self, step: int, is_last: bool) -> None:
        super().__init__()
        self.left, self.is_last = step, is_last

    def requested(self) -> bool:
        self.left -= 1
        if self.left < 0 and self.is_last:
            self.reason = "the last rank was asked"
        return bool(self.reason)


def main() -> None:
    torch.set_num_threads(1)
    cache = read_cache(sys.argv[1])
    with open(sys.argv[2], encoding="utf-8") as file:
        jobs = json.load(file)
    with joined(torch.device("cpu")) as ranks:
        for job in jobs:
            trainer = Trainer(
                from_dict(job["config"]),
                cache,
                job["folder"],
                resume=job.get("resume", False),
                stop=StopAtStep(job.get("stop_at", 10**9), ranks.rank == ranks.size - 1),
                reporter=Reporter("off"),
                ranks=ranks,
            )
            try:
                trainer.run()
            except CancelledError as error:
                if ranks.is_main:
                    print("STOPPED", error, flush=True)


main()
