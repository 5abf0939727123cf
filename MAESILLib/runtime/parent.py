"""Whether the process that this one works for still runs: its parent, or one further up, beyond a launcher.

A panel starts a launcher, and the launcher starts this process. When the panel is killed the launcher may stay, and
a parent that ended before this process could look is a parent never seen: so the panel says its own process id.
"""

from __future__ import annotations

import math
import os
import sys
import time
from typing import Any

INTERVAL_S = 0.2
"""The system is asked about other processes this often at most."""
SYNCHRONIZE = 0x00100000
WAIT_TIMEOUT = 0x102
ERROR_ACCESS_DENIED = 5


class ParentWatch:
    """Tells when a process above this one has ended.

    Args:
        pid: of the process; 0 for the direct parent.
    """

    def __init__(self, pid: int = 0) -> None:
        self.parent = os.getppid()
        self.pid = pid or self.parent
        self._windows = WindowsProcess(self.pid) if sys.platform == "win32" else None
        self._asked, self._runs = -math.inf, True

    def has_ended(self) -> bool:
        """Say whether it has ended; costs next to nothing, however often it is asked."""
        if self._windows is None and os.getppid() != self.parent:
            # whoever stood between is gone, and this process was handed to another
            return True
        now = time.monotonic()
        if self._runs and now - self._asked >= INTERVAL_S:
            self._asked = now
            self._runs = is_above(self.pid) if self._windows is None else self._windows.runs()
        return not self._runs


def is_above(pid: int) -> bool:
    """Tell, on POSIX, whether a process runs that is the parent of this one or further up.

    Where the system does not say who is above (there is no /proc), any process of that number counts.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        # it is another user's
        pass
    itself = state_and_parent(pid)
    if itself is not None and itself[0] in "ZX":
        # one that was killed keeps its number until its own parent has looked at it
        return False
    above = os.getppid()
    while above > 0:
        if above == pid:
            return True
        found = state_and_parent(above)
        if found is None:
            return True
        above = found[1]
    return False


def state_and_parent(pid: int) -> tuple[str, int] | None:
    """Return the one-letter state of a process and its parent's id, or None where the system does not say."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # 'pid (name) state parent ...', and a name may hold anything
            fields = file.read().rpartition(b")")[2].split()
        return fields[0].decode(), int(fields[1])
    except (OSError, ValueError, IndexError):
        return None


class WindowsProcess:
    """A process on Windows, held by a handle: while it is held no other process gets its number.

    ``os.kill(pid, 0)`` would end the process there.
    """

    def __init__(self, pid: int, kernel32: Any = None) -> None:
        import ctypes

        if sys.platform == "win32" and kernel32 is None:
            kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)
        self._kernel32 = kernel32
        kernel32.OpenProcess.argtypes = (ctypes.c_uint32, ctypes.c_int, ctypes.c_uint32)
        kernel32.OpenProcess.restype = ctypes.c_void_p
        kernel32.WaitForSingleObject.argtypes = (ctypes.c_void_p, ctypes.c_uint32)
        kernel32.WaitForSingleObject.restype = ctypes.c_uint32
        self._handle = kernel32.OpenProcess(SYNCHRONIZE, 0, pid)
        # a process that may not be watched is there all the same
        self._is_there = bool(self._handle) or _last_error() == ERROR_ACCESS_DENIED

    def runs(self) -> bool:
        """Say whether it has not ended."""
        if not self._handle:
            return self._is_there
        return self._kernel32.WaitForSingleObject(self._handle, 0) == WAIT_TIMEOUT


def _last_error() -> int:
    """Return why the last call to Windows failed."""
    if sys.platform == "win32":
        import ctypes

        return ctypes.get_last_error()
    return 0
