"""The processes of a training: alone, or as ranks that torchrun started on one machine or many.

What one rank knows and the others must follow (a stop, a mean, a choice) goes through here; the exchange of
gradients is torch's own.
"""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from MAESILLib.runtime.errors import EXIT_DONE, CancelledError, InputError, MAESILError

LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun tells its processes."""

LAUNCHER_SEES = 5.0
"""Seconds in which torchrun has seen that one of its processes ended, on a busy machine too."""


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this rank writes files and reports."""
        return self.rank == 0

    @property
    def name(self) -> str:
        """What to call this process in messages."""
        return f"rank {self.rank} of {self.size} on {socket.gethostname()}"

    def any(self, flag: bool) -> bool:
        """Say whether any rank says so; all ranks have to ask, and get the same answer."""
        return bool(self.sum(torch.tensor(float(flag))) > 0) if self.size > 1 else flag

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum over all ranks, on each of them."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def wait(self) -> None:
        """Wait until every rank is here, and until gloo's threads have let go of Python's tensors.

        Those that do so while Python ends abort the process; here they get the lock that they need, and a barrier has
        no tensors.
        """
        if self.size > 1:
            dist.barrier()

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's plain value, on each of them."""
        gathered = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(gathered, value)
        return gathered


ALONE = Ranks()


def is_launched() -> bool:
    """Say whether torchrun, or whatever sets the same variables, started this process."""
    return all(name in os.environ for name in LAUNCHER)


def own_device(name: str) -> str:
    """Return the device of this process for ``--device``: under a launcher, the card with its local number.

    Raises:
        InputError: one card was named for several ranks.
    """
    if not is_launched() or name == "cpu":
        return name
    if name not in ("auto", "cuda"):
        raise InputError(f"--device {name} for several ranks", "give auto, cuda or cpu; each rank takes its own card")
    is_cuda = name == "cuda" or torch.cuda.is_available()
    return f"cuda:{os.environ['LOCAL_RANK']}" if is_cuda else "cpu"


@contextmanager
def joined(device: torch.device) -> Iterator[Ranks]:
    """Join the other ranks for as long as the block runs; alone without a launcher.

    Raises:
        InputError: no other rank could be reached.
        MAESILError: what the block raised, with the name of this rank.
    """
    if not is_launched():
        yield ALONE
        return
    ranks = Ranks(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        store, *_ = next(dist.rendezvous("env://"))
        # the launcher keeps its store through restarts on one machine, with addresses of processes that have ended
        store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
        # values for the host travel by gloo even where gradients travel by NCCL: they wait for no card
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=ranks.rank, world_size=ranks.size)
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"{ranks.name} cannot reach the others: {str(error).partition(chr(10))[0]}",
            "check the network; GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME name the device to use",
        ) from None
    try:
        yield ranks
    except CancelledError as error:
        # the launcher takes every other status for a failure, and may start the job anew
        error.exit_status = EXIT_DONE
        dist.destroy_process_group()
        if not ranks.is_main:
            raise SystemExit(EXIT_DONE) from None
        raise
    except Exception as error:
        if isinstance(error, MAESILError):
            error.message = f"{ranks.name}: {error.message}"
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            # another rank is gone: the launcher, which looks ten times a second, shall see that one first
            time.sleep(LAUNCHER_SEES)
        # the launcher's report names the rank that failed first, and why
        get_error_handler().record_exception(error)
        raise
    dist.destroy_process_group()
