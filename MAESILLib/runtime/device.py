"""Choosing and naming the device, and running on it in the right precision."""

import contextlib
import platform
import sys
from collections.abc import Iterator

import torch

from MAESILLib.runtime.errors import InputError, OutOfMemoryError

OUT_OF_MEMORY = ("not enough memory", "out of memory", "can't allocate memory", "Cannot allocate memory")
"""What torch and the systems under it say when memory ends."""


def choose_device(name: str) -> torch.device:
    """Return the torch device for ``auto``, ``cpu``, ``cuda``, ``cuda:n`` or ``mps``.

    Raises:
        InputError: the device is unknown or not there. ``auto`` takes the first of cuda, mps, cpu.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"unknown device '{name}'", "choose auto, cpu, cuda, cuda:n or mps") from None
    if device.type not in ("cpu", "cuda", "mps"):
        raise InputError(f"unknown device '{name}'", "choose auto, cpu, cuda, cuda:n or mps")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"device '{name}' is not there: torch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices",
            "choose another device, or install a CUDA build of torch",
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise InputError("device 'mps' is not there", "choose cpu")
    if device.type == "cpu":
        # tiny values cost a hundred times the time of others on the CPU
        torch.set_flush_denormal(True)
    return device


def device_name(device: torch.device) -> str:
    """Return what to call the device in results."""
    if device.type == "cuda":
        return f"{device}: {torch.cuda.get_device_name(device)}"
    return f"{device}: {platform.machine()}, {torch.get_num_threads()} threads"


def has_bf16(device: torch.device) -> bool:
    """Say whether it is a CUDA card that computes in bf16 without emulation."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def set_up_convolutions(device: torch.device, bf16: bool) -> None:
    """Let a card search for the fastest convolutions of a training, whose shapes stay the same; fp32 means fp32."""
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = bf16


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Calculate in fp32 as the CPU does: a card's convolutions would otherwise take TF32, ten bits."""
    kept = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = kept


def precision_context(device: torch.device, bf16: bool) -> torch.autocast:
    """Run matrix products in bf16, or everything in fp32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16)


@contextlib.contextmanager
def memory_guard(device: torch.device, hint: str) -> Iterator[None]:
    """Turn running out of memory into an error that says what to do.

    Raises:
        OutOfMemoryError: the device or the machine has no memory left.
    """
    try:
        yield
    except torch.cuda.OutOfMemoryError:
        raise OutOfMemoryError(f"{device_name(device)} has too little memory", hint) from None
    except MemoryError:
        raise OutOfMemoryError("this machine has too little memory", hint) from None
    except RuntimeError as error:
        if any(words in str(error) for words in OUT_OF_MEMORY):
            raise OutOfMemoryError(f"{device} has too little memory", hint) from None
        raise


def peak_memory_mib(device: torch.device) -> float | None:
    """Return the most memory this process has held: on the card for CUDA, else resident.

    None where the system does not say (Windows).
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
