"""What stands for a reader in tests of workers; a module of its own, because every worker has to import it."""

import mmap
import os
import signal
import time
from pathlib import Path
from typing import Any

from MAESILLib.ct.scan import Given
from MAESILLib.data.one_source import Outcome, Setup, Task
from MAESILLib.data.sources import Source
from MAESILLib.data.tree import Looked
from MAESILLib.runtime.errors import DiskFullError
from MAESILLib.runtime.system import machine_memory


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
    # as native libraries do
    os.write(1, b"words")
    os.write(2, b"words")
    reason = "no memory" if name.startswith("hog") and not can_take_all_memory() else ""
    return Outcome(task, task.record(None, reason=reason))


def look_at(files: tuple[Path, ...]) -> tuple[tuple[Path, ...], list[Looked]]:
    """Stands for reading headers."""
    for file in files:
        pretend(Setup(file, 1.5, False), Task(Source(file), "", 0))
    return files, [Looked(kind=file.name) for file in files]


def header(given: Given, source: Source) -> dict[str, Any]:
    """Stands for reading the header of a volume."""
    pretend(Setup(source.path, 1.5, False), Task(source, "", 0))
    return {"source": source.key, "problem": "", "size_dhw": (8, 8, 8), "spacing_dhw_mm": (1, 1, 1)}


def can_take_all_memory() -> bool:
    """Ask for nearly all of the machine's memory, without using it."""
    total, _ = machine_memory()
    try:
        mmap.mmap(-1, int(0.99 * total), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except OSError:
        return False
    return True
