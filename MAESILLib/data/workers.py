"""Worker processes that isolate readers: a file that ends its process costs no other file.

Readers are native code: a file may crash its process, keep it busy for ever or fill the memory, after which an
executor of the standard library gives up all work. Here each worker has a pipe, so the task that it was on is known:
that task has failed, and another worker takes its place.
"""

import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from MAESILLib.runtime.errors import DiskFullError, InputError
from MAESILLib.runtime.stopping import StopRequest
from MAESILLib.runtime.system import machine_memory

POLL_S = 0.1
"""A stop is noticed within this time."""
READ_LIMIT_S = 1800.0
"""For reading a CT, and storing it."""
END_S = 1.0
"""A process that was killed is waited for this long."""

T = TypeVar("T")
R = TypeVar("R")


class Worker:
    """A process that does one task after the other."""

    def __init__(self, work: Callable[[Any], Any], task: Any) -> None:
        # spawned on every system: a fork would copy locks that the parent's threads hold
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, work), daemon=True)
        self.process.start()
        # so that the pipe ends when the process does
        other.close()
        self.is_usable, self.is_late = True, False
        self.give(task)
        # its clock begins when it has started
        self.begin = math.inf

    def give(self, task: Any) -> None:
        self.task, self.begin = task, time.monotonic()
        # where it has died, reading the pipe finds out
        with suppress(OSError):
            self.pipe.send(task)

    def receive(self, failed: Callable[[Any, str], Any]) -> Any:
        """Return the result of its task; None when it has started.

        Raises:
            DiskFullError: the disk is full.
            InputError: its process did not start.
        """
        try:
            message = self.pipe.recv()
        except (EOFError, OSError):
            self.is_usable = False
            if self.begin == math.inf:
                raise InputError("worker processes do not start here", "run without them: --workers 0") from None
            return failed(self.task, self._why_it_died())
        if isinstance(message, DiskFullError):
            raise message
        if message is None:
            self.begin = time.monotonic()
        return message

    def _why_it_died(self) -> str:
        self.process.join(END_S)
        if self.is_late:
            return "reading it took too long. check the file, or try it alone with --workers 0, which has no time limit"
        code = self.process.exitcode or 0
        how = f"signal {-code}" if code < 0 else f"exit status {code}"
        hint = "try it alone with --workers 0" if how != "signal 9" else "if memory ran out, use fewer --workers"
        return f"the reader died ({how}) while it was on this file. {hint}"

    def end(self) -> None:
        """End it at once, whatever it does."""
        self.process.kill()
        # the system may keep a process that waits for a file server
        self.process.join(END_S)
        self.pipe.close()


def run_in_workers(
    work: Callable[[T], R],
    tasks: Iterable[T],
    count: int,
    stop: StopRequest,
    *,
    limit_s: float,
    failed: Callable[[T, str], R],
) -> Generator[R, None, None]:
    """Do tasks in ``count`` processes, or in this one if 0; yield their results as they come.

    When the caller closes the iterator, or it raises, all workers have ended.

    Args:
        work: a function of a module, with its first arguments perhaps (``functools.partial``).
        limit_s: seconds for a task; in this process there is no limit.
        failed: returns the result of a task whose process died or took too long, and why.

    Raises:
        CancelledError: a stop was asked for.
        DiskFullError: the disk is full.
        InputError: processes do not start.
    """
    # a worker may not have others
    if not count or multiprocessing.current_process().daemon:
        for task in tasks:
            stop.check()
            yield work(task)
        return
    left = deque(tasks)
    workers: list[Worker] = []
    try:
        while left or workers:
            stop.check()
            while left and len(workers) < count:
                workers.append(Worker(work, left.popleft()))
            for worker in workers:
                if time.monotonic() - worker.begin > limit_s:
                    worker.is_usable, worker.is_late = False, True
                    worker.process.kill()
            ready = wait([worker.pipe for worker in workers], POLL_S)
            for worker in [one for one in workers if one.pipe in ready]:
                result = worker.receive(failed)
                if result is None:
                    continue
                if left and worker.is_usable:
                    worker.give(left.popleft())
                else:
                    workers.remove(worker)
                    worker.end()
                yield result
    finally:
        # all at once: giving back their memory takes each some time
        for worker in workers:
            worker.process.kill()
        for worker in workers:
            worker.end()


def _serve(pipe: Connection, work: Callable[[Any], Any]) -> None:
    """Do what comes through the pipe, until it ends."""
    # a terminal and a scheduler signal all processes of a job; the parent decides
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # what a native reader prints is no word for a user, and must not come between the parent's events
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    # the other cores are for the other workers
    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = "1"
    _limit_memory()
    with suppress(EOFError):
        pipe.send(None)
        while True:
            task = pipe.recv()
            try:
                pipe.send(work(task))
            except DiskFullError as error:
                pipe.send(error)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _limit_memory() -> None:
    """Let a file that takes more than half of the memory, and more than is free, fail alone."""
    if sys.platform == "linux":
        import resource

        total, free = machine_memory()
        ceiling = max(total // 2, free)
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (ceiling if hard < 0 else min(ceiling, hard), hard))
