"""What stands for a reader in tests of workers; a module of its own, because every worker has to import it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

from MAESILLib.data.one_source import Outcome, Setup, Task
from MAESILLib.data.records import Record
from MAESILLib.errors import DiskFullError


def pretend(setup: Setup, task: Task) -> Outcome:
    """Stands for a reader: a file's name says what it does to its process."""
    name = task.source.path.name
    if name.startswith("kill"):
        os.kill(os.getpid(), signal.SIGKILL)
    if name.startswith("crash"):
        os.kill(os.getpid(), signal.SIGSEGV)
    if name.startswith("exit"):
        os._exit(7)
    if name.startswith("full"):
        raise DiskFullError("disk full", "free space")
    if name.startswith("slow"):
        time.sleep(60)
    return Outcome(Record(str(task.source.path), task.order))


def no_work(setup: Setup, task: Task) -> Outcome:
    raise AssertionError


class Unpicklable:
    """As a worker meets what it cannot import."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os._exit, (3,)
