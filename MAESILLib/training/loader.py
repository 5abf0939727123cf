"""Batches ahead of time: which samples a rank takes for each pass, assembled in threads while the device works."""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

from MAESILLib.config import Config
from MAESILLib.data.crops import Crops
from MAESILLib.errors import InputError
from MAESILLib.training.batch import Batch, make_batch, samples_of_update
from MAESILLib.training.ranks import ALONE, Ranks

AHEAD = 2
"""Batches made in advance."""


def samples_of_pass(config: Config, ranks: Ranks, step: int, number: int) -> range:
    """Return the samples of one pass of one rank.

    An update is made of the same samples whatever number of ranks and passes shares them out.
    """
    samples = samples_of_update(config, step)
    size = len(samples) // (ranks.size * config.train.accumulation)
    first = samples.start + (number * ranks.size + ranks.rank) * size
    return range(first, first + size)


def check_shares(config: Config, ranks: Ranks) -> None:
    """Raise InputError unless every update can be shared out evenly over ranks and passes."""
    train = config.train
    shares = ranks.size * train.accumulation
    # the second update of the cool-down is the first one of larger crops
    for step in (0, min(train.cooldown_from + 1, train.steps - 1)):
        count = len(samples_of_update(config, step))
        if count % shares:
            raise InputError(
                f"an update of {count} crops cannot be shared by {ranks.size} ranks in "
                f"train.accumulation {train.accumulation} passes",
                f"choose train.batch_size and train.cooldown_crop_size so that it is a multiple of {shares}",
            )


class BatchLoader:
    """Makes the coming batches while the current one is trained on.

    Attributes:
        last: the batch given out last.
        waited: seconds the training has waited for batches.
    """

    def __init__(self, config: Config, crops: Crops, ranks: Ranks = ALONE, pin: bool = False) -> None:
        self.config, self.crops, self.ranks, self.pin = config, crops, ranks, pin
        self.pool = ThreadPoolExecutor(1, "batches")
        self.pending: deque[tuple[tuple[int, int], Future[Batch]]] = deque()
        self.last: Batch | None = None
        self.waited = 0.0

    def batch(self, step: int, number: int) -> Batch:
        """Return the batch of pass ``number`` of update ``step``."""
        key = (step, number)
        if not self.pending or self.pending[0][0] != key:
            self._drop()
            self._submit(key)
        while len(self.pending) <= AHEAD and (after := self._after(self.pending[-1][0])):
            self._submit(after)
        _, future = self.pending.popleft()
        began = time.monotonic()
        self.last = future.result()
        self.waited += time.monotonic() - began
        return self.last

    def close(self) -> None:
        """End the thread."""
        self._drop()
        self.pool.shutdown(wait=True, cancel_futures=True)
        self.crops.close()

    def _after(self, key: tuple[int, int]) -> tuple[int, int] | None:
        step, number = key
        if number + 1 < self.config.train.accumulation:
            return step, number + 1
        return (step + 1, 0) if step + 1 < self.config.train.steps else None

    def _submit(self, key: tuple[int, int]) -> None:
        samples = samples_of_pass(self.config, self.ranks, *key)
        self.pending.append((key, self.pool.submit(self._make, key[0], samples)))

    def _make(self, step: int, samples: range) -> Batch:
        batch = make_batch(self.config, self.crops, step, samples)
        return batch.pinned() if self.pin else batch

    def _drop(self) -> None:
        for _, future in self.pending:
            future.cancel()
        self.pending.clear()
