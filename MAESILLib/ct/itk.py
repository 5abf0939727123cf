"""Keep ITK's own chatter off the terminal: what matters is raised as one of our errors."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import SimpleITK as sitk

_STDERR_LOCK = threading.Lock()


@contextmanager
def quiet_itk() -> Iterator[None]:
    """Switch ITK's warnings off within the block."""
    before = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(before)


@contextmanager
def silent_stderr() -> Iterator[None]:
    """Send the process's standard error to nowhere within the block.

    niftilib prints straight to it when a header is wrong, beside the exception ITK raises. Only for calls that last
    milliseconds: what other threads write to standard error meanwhile is lost.
    """
    with _STDERR_LOCK:
        try:
            saved = os.dup(2)
        except OSError:  # started without a standard error: nothing to silence
            yield
            return
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, 2)
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            os.close(nowhere)


def one_line_reason(error: RuntimeError) -> str:
    """Return the last line of ITK's message, without its source file and object address."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[-1] if lines else "unknown error"
    for marker in ("sitk::ERROR:", "ITK ERROR:", "[nrrd]"):
        reason = reason.split(marker)[-1].strip()
    return reason.split("): ", 1)[-1] if "(0x" in reason else reason
