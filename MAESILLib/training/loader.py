"""Batches ahead of time: which samples a rank takes for each pass, assembled in threads while the device works."""

from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor

from MAESILLib.config import Config
from MAESILLib.data.sampling import CropSampler
from MAESILLib.runtime.errors import InputError
from MAESILLib.training.batch import Batch, make_batch, samples_of_update
from MAESILLib.training.ranks import ALONE, Ranks


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


def batches(
    config: Config, sampler: CropSampler, ranks: Ranks = ALONE, *, first: int = 0, pin: bool = False
) -> Generator[Batch, None, None]:
    """Yield the batches of a rank's passes in order, made in threads ahead of time; closing it ends them.

    Args:
        first: the update (from 0) to begin with.
        pin: make them in page-locked memory, from which a card copies without waiting.
    """
    train = config.train

    def made(step: int, number: int) -> Batch:
        batch = make_batch(config, sampler, step, samples_of_pass(config, ranks, step, number))
        return batch.pinned() if pin else batch

    pending: deque[Future[Batch]] = deque()
    pool = ThreadPoolExecutor(train.loader_threads, "batches")
    try:
        for step, number in ((s, n) for s in range(first, train.steps) for n in range(train.accumulation)):
            pending.append(pool.submit(made, step, number))
            if len(pending) > train.loader_threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
