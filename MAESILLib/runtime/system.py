"""What this machine has: Python, packages, devices and their memory. Asked by a panel that must not import torch."""

import contextlib
import importlib
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from MAESILLib import __version__

PACKAGES = ("torch", "numpy", "scipy", "SimpleITK", "safetensors", "matplotlib")
"""What the commands import."""


def describe_system() -> dict[str, Any]:
    """Return versions and devices as plain JSON values.

    Keys: ``maesil``, ``python``, ``executable``, ``platform``; ``packages``, the version of each or None where it
    cannot be imported, and ``problems``, why; ``devices``, each with ``kind`` (as ``--device`` takes it), ``name``,
    ``memory_total_gib`` and ``memory_free_gib`` (None where a card does not say), the CPU also with ``cores``;
    ``auto``, the kind that ``--device auto`` takes.
    """
    problems: dict[str, str] = {}
    packages = {name: _version(name, problems) for name in PACKAGES}
    devices = [] if packages["torch"] is None else _accelerators(problems)
    devices.append({**_device("cpu", _cpu_name(), *machine_memory()), "cores": available_cores()})
    return {
        "maesil": __version__,
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "packages": packages,
        "problems": problems,
        "devices": devices,
        "auto": devices[0]["kind"],
    }


def _version(name: str, problems: dict[str, str]) -> str | None:
    try:
        return str(importlib.import_module(name).__version__)
    except Exception as error:  # a package that is half installed fails in any way, and that is the answer
        problems[name] = _one_line(error)
        return None


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _accelerators(problems: dict[str, str]) -> list[dict[str, Any]]:
    """Return what torch can use besides the CPU, in the order of ``--device auto``."""
    import torch

    found = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        kind, free = f"cuda:{index}", None
        try:
            free = torch.cuda.mem_get_info(index)[0]
        except RuntimeError as error:
            # another process may have the card to itself
            problems[kind] = _one_line(error)
        total = torch.cuda.get_device_properties(index).total_memory
        found.append(_device(kind, torch.cuda.get_device_name(index), total, free))
    if torch.backends.mps.is_available():
        # it shares the machine's memory
        found.append(_device("mps", platform.machine(), *machine_memory()))
    return found


def available_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _device(kind: str, name: str, total: int, free: int | None) -> dict[str, Any]:
    unused = None if free is None else round(free / 2**30, 2)
    return {"kind": kind, "name": name, "memory_total_gib": round(total / 2**30, 2), "memory_free_gib": unused}


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                key, _, value = line.partition(":")
                if key.strip() == "model name":
                    return value.strip()
    except OSError:
        # not Linux
        pass
    return platform.processor() or platform.machine()


def machine_memory() -> tuple[int, int]:
    """Return the memory in bytes that this process may have, and what of it is free."""
    import psutil

    memory = psutil.virtual_memory()
    limit = min([memory.total, *_control_group_limits()])
    return limit, min(memory.available, limit)


def _control_group_limits() -> Iterator[int]:
    """Yield the limits of the process's control groups (version 2), which schedulers and containers set on Linux."""
    if sys.platform != "linux":
        return
    root = Path("/sys/fs/cgroup")
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
        own = root / next((line[3:] for line in lines if line.startswith("0::")), "/").lstrip("/")
    except OSError:
        return
    for group in (own, *own.parents):
        with contextlib.suppress(OSError, ValueError):
            yield int((group / "memory.max").read_text(encoding="utf-8"))
