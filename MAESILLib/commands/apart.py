"""Reading a CT in a process of its own where native code unpacks it, so that a crash there is one line."""

import multiprocessing
import os
import re
import traceback
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from MAESILLib.ct.reading import read_volume
from MAESILLib.ct.volume import CTVolume
from MAESILLib.data.prepare import LIMIT_S
from MAESILLib.data.workers import run_in_workers
from MAESILLib.runtime.errors import InputError, OutOfMemoryError
from MAESILLib.runtime.stopping import StopRequest

HEADER_BYTES = 1 << 16
PACKED = re.compile(
    rb"^CompressedData\s*=\s*True|^ElementType\s*=.*_ARRAY|"
    rb"^(data ?file:|ElementDataFile\s*=).*(LIST|%)|1\.2\.840\.10008\.1\.2\.[45]",
    re.IGNORECASE | re.MULTILINE,
)
"""What MetaImage and DICOM headers state of voxels that native code unpacks or collects."""
RAW_NRRD = re.compile(rb"^encoding:\s*raw\s*$", re.IGNORECASE | re.MULTILINE)
PIECES = 16
"""Of a volume, sent one by one: so no more than both processes' own volumes is in memory."""
_read: list[CTVolume] = []


def read_apart(path: Path, stop: StopRequest, **options: Any) -> CTVolume:
    """Read a CT as :func:`MAESILLib.ct.reading.read_volume` does with ``options``.

    Raises:
        InputError: as there; or its reader crashed, took too long or filled the memory.
        CancelledError: a stop was asked for while another process reads it. While this one does, it ends at once, so
            nothing may be half done.
    """
    # a worker is such a process already, and may not have others
    if multiprocessing.current_process().daemon or not _is_packed(path):
        with stop.until_first_check():
            return read_volume(path, **options)
    pieces = run_in_workers(partial(_piece, path, options), range(PIECES), 1, stop, limit_s=LIMIT_S, failed=_failed)
    with closing(pieces):
        for number, found in enumerate(pieces):
            if isinstance(found, str):
                raise InputError(f"{path} cannot be read: {found}", "check the file")
            if isinstance(found, Exception):
                raise found
            volume, part = found
            if number == 0:
                hu = np.empty(volume.geometry.size_dhw, part.dtype)
            hu[_planes(number, hu)] = part
    return replace(volume, hu=hu)


def _piece(path: Path, options: dict[str, Any], number: int) -> tuple[CTVolume, NDArray[Any]] | Exception:
    """Read the volume for its first piece; return it without its voxels, and a piece of these."""
    if not number:
        # native libraries print what they raise as well
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        try:
            _read.append(read_volume(path, **options))
        except MemoryError:
            return OutOfMemoryError(f"there is too little memory to read {path}", "close other programs")
        except Exception as error:
            # of a bug, what a traceback of the other process would not show
            error.add_note(traceback.format_exc())
            return error
    hu = _read[0].hu
    return replace(_read[0], hu=hu[:0]), hu[_planes(number, hu)]


def _planes(number: int, hu: NDArray[Any]) -> slice:
    return slice(number * len(hu) // PIECES, (number + 1) * len(hu) // PIECES)


def _failed(number: int, reason: str) -> str:
    return reason.split(". ")[0]


def _is_packed(path: Path) -> bool:
    """Tell from the beginning of a file, of a folder its first, whether native code unpacks it."""
    files = (Path(root) / name for root, _, names in os.walk(path) for name in names)
    file = next(files, path) if path.is_dir() else path
    if not file.is_file() or file.suffix.lower() in (".nii", ".gz", ".hdr", ".img"):
        return False
    with open(file, "rb") as opened:
        start = opened.read(HEADER_BYTES)
    return bool(PACKED.search(start)) or (start.startswith(b"NRRD") and not RAW_NRRD.search(start))
