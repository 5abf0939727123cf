"""One writer for a folder: a lock file that names the process and the host that write into it."""

import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from MAESILLib.runtime.errors import InputError

LOCK = ".lock"
HOST = socket.gethostname()
SAME_START_S = 2.0
"""A process's start is computed from the system's clock, which may have been corrected since."""


@contextmanager
def only_writer(folder: Path, name: str = LOCK, work: str = "") -> Iterator[None]:
    """Keep ``folder`` for this process.

    A lock is taken over on its own host where its process is gone. That of another host never is, because whether its
    process runs cannot be seen from here.

    Args:
        name: of the lock file; writers of different files of a folder have one each.
        work: kept in the lock, for :func:`lock_holder`.

    Raises:
        InputError: another process has it.
        OSError: the folder cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    file, is_free = _opened(path)
    try:
        holder = lock_holder(path)
        if holder or not is_free:
            raise in_use(folder, path, holder or {})
        own = {"host": HOST, "pid": os.getpid(), "started": _start_of(os.getpid()), "work": work}
        try:
            os.ftruncate(file, 0)
            os.lseek(file, 0, os.SEEK_SET)
            os.write(file, json.dumps(own).encode())
            yield
        finally:
            # Windows removes no open file, but an empty one is free
            os.ftruncate(file, 0)
            with suppress(OSError):
                path.unlink()
    finally:
        os.close(file)


def _opened(path: Path) -> tuple[int, bool]:
    """Open a lock file, made if need be; say whether no other process of this host has it."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        is_free = _try_lock(file)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file), os.stat(path)):
                return file, is_free
        # whoever had it has just removed it
        os.close(file)


def _try_lock(file: int) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            # behind what is written, because others could not read what is locked
            os.lseek(file, 1 << 40, os.SEEK_SET)
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        # a file system without locks: what the file says has to do
        pass
    return True


def lock_holder(path: Path) -> dict[str, Any] | None:
    """Return what a lock file says of the process that has it: ``host``, ``pid``, ``work``; None where none has."""
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        host, pid, started = str(holder["host"]), int(holder["pid"]), float(holder["started"])
    except (OSError, ValueError, KeyError, TypeError):
        # none, or an empty one
        return None
    # another process may have the number by now
    is_gone = host == HOST and abs(_start_of(pid) - started) > SAME_START_S
    return None if is_gone else holder


def _start_of(pid: int) -> float:
    """Return when a process began, in seconds since 1970; 0 of one that has ended."""
    import psutil

    try:
        process = psutil.Process(pid)
        # one that was killed keeps its number until its parent has looked at it
        return 0.0 if process.status() == psutil.STATUS_ZOMBIE else float(process.create_time())
    except psutil.NoSuchProcess:
        return 0.0


def in_use(folder: Path, path: Path, holder: dict[str, Any]) -> InputError:
    """Return the error that says who writes into a folder, whose lock file is at ``path``."""
    who = f"process {holder['pid']} on {holder['host']}" if holder else "another process"
    gone = f"; if it is gone, delete {path}" if holder.get("host", HOST) != HOST else ""
    return InputError(f"{folder} is in use by {who}", f"wait until it has ended, or end it{gone}")
