"""Processes that prepare sources side by side, of which each may die without harm to the others.

A reader of images is native code: a strange file can end its process, and so can the system when memory runs out.
An executor of the standard library then gives up all its work. Here every worker has a pipe of its own, so it is known
which source it was on: that one is refused, another worker takes its place, and the rest goes on.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from MAESILLib.data.one_source import Outcome, Setup, Task, prepare_source, refused
from MAESILLib.errors import DiskFullError, InputError
from MAESILLib.stopping import StopRequest

POLL_S = 0.1
"""A stop is noticed within this time."""
END_S = 1.0
"""A process that was killed is waited for this long."""
MOST_FAILED_STARTS = 3
READY = "ready"

Work = Callable[[Setup, Task], Outcome]


def available_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True)
class Failure:
    """A worker's message that nothing can be stored any more."""

    message: str
    hint: str


class Worker:
    """A process that prepares one source after the other."""

    def __init__(self, setup: Setup, work: Work) -> None:
        # spawned on every system: a fork would copy locks that the parent's threads hold
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, setup, work), daemon=True)
        self.process.start()
        # so that the pipe ends when the process does
        other.close()
        self.is_ready = False
        self.task: Task | None = None

    def give(self, task: Task) -> None:
        """Let it prepare a source."""
        self.task = task
        try:
            self.pipe.send(task)
        except OSError:
            # it has died; reading the pipe says so
            return

    def end(self) -> None:
        """End it at once, whatever it does."""
        self.process.kill()
        # the system may keep a process that waits for a file server
        self.process.join(END_S)
        self.pipe.close()

    def why_it_died(self) -> str:
        """Return how its process ended, in words."""
        self.process.join(END_S)
        code = self.process.exitcode or 0
        return f"signal {-code}" if code < 0 else f"exit status {code}"


def prepare_in_workers(
    setup: Setup, tasks: Iterable[Task], count: int, stop: StopRequest, work: Work = prepare_source
) -> Iterator[Outcome]:
    """Prepare sources in ``count`` processes; yield their outcomes as they come.

    When the caller closes the iterator, or it raises, all workers have ended.

    Args:
        work: what is done with each source: a function of a module, because other processes have to find it.

    Raises:
        CancelledError: a stop was asked for.
        DiskFullError: the disk is full.
        InputError: no worker can be started.
    """
    left = deque(tasks)
    workers = [Worker(setup, work) for _ in range(min(count, len(left)))]
    failed_starts = 0
    try:
        while left or any(worker.task for worker in workers):
            stop.check()
            for pipe in wait([worker.pipe for worker in workers], POLL_S):
                worker = next(w for w in workers if w.pipe is pipe)
                message = _message(worker)
                task, worker.task = worker.task, None
                if message is None:
                    failed_starts += not worker.is_ready
                    if failed_starts >= MOST_FAILED_STARTS:
                        raise InputError(f"no worker process could start ({worker.why_it_died()})", "use --workers 1")
                    workers.remove(worker)
                    how = worker.why_it_died()
                    worker.end()
                    if left:
                        workers.append(Worker(setup, work))
                    if task is not None:
                        yield _died(task, how)
                    continue
                worker.is_ready, failed_starts = True, 0
                if left:
                    worker.give(left.popleft())
                if isinstance(message, Failure):
                    raise DiskFullError(message.message, message.hint)
                if isinstance(message, Outcome):
                    yield message
    finally:
        for worker in workers:
            # all at once: giving back their memory takes each some time
            worker.process.kill()
        for worker in workers:
            worker.end()


def _message(worker: Worker) -> Any:
    """Return what a worker says; None if it died."""
    try:
        return worker.pipe.recv()
    except (EOFError, OSError):
        return None


def _died(task: Task, how: str) -> Outcome:
    hint = "try it alone with --workers 1" if how != "signal 9" else "if memory ran out, use fewer --workers"
    return refused(task, f"the reader died ({how}) while it was on this file. {hint}")


def _serve(pipe: Connection, setup: Setup, work: Work) -> None:
    """Prepare what comes through the pipe, until it ends."""
    # a terminal and a scheduler signal all processes of a job; the parent decides
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _use_one_thread()
    pipe.send(READY)
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        try:
            message: Outcome | Failure = work(setup, task)
        except DiskFullError as error:
            message = Failure(error.message, error.hint)
        pipe.send(message)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _use_one_thread() -> None:
    """Leave the other cores to the other workers."""
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    if sys.stdout is not None:
        # what a reader prints must not come between the parent's events
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
