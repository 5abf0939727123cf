"""Reading a CT in a process of its own where native code unpacks it, so that a crash there is one line."""

import multiprocessing
import re
import traceback
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from MAESILLib.ct.dicom import Series
from MAESILLib.ct.reading import find_series, read_volume
from MAESILLib.ct.scan import NOTHING, Given
from MAESILLib.ct.volume import CTVolume
from MAESILLib.data.workers import READ_LIMIT_S, run_in_workers
from MAESILLib.runtime.errors import InputError, OutOfMemoryError
from MAESILLib.runtime.stopping import StopRequest

HEADER_BYTES = 1 << 16
PACKED = re.compile(
    rb"^CompressedData\s*=\s*True|^ElementType\s*=.*_ARRAY|"
    rb"^(data ?file:|ElementDataFile\s*=).*(LIST|%)",
    re.IGNORECASE | re.MULTILINE,
)
"""What NRRD and MetaImage headers state of voxels that native code unpacks or collects."""
RAW_NRRD = re.compile(rb"^encoding:\s*raw\s*$", re.IGNORECASE | re.MULTILINE)
PIECES = 16
"""Of a volume, sent one by one: so no more than both processes' own volumes is in memory."""
_read: list[CTVolume] = []


def read_apart(
    path: Path, stop: StopRequest, *, series: str | Series | None = None, given: Given = NOTHING, check: bool = True
) -> CTVolume:
    """Read a CT as :func:`MAESILLib.ct.reading.read_volume` does.

    Raises:
        InputError: as there; or its reader crashed, took too long or filled the memory.
        CancelledError: a stop was asked for while another process reads it. While this one does, it ends at once, so
            nothing may be half done.
    """
    with stop.until_first_check():
        found = find_series(path, series, given)
        # a worker is such a process already, and may not have others
        if multiprocessing.current_process().daemon or not _is_packed(path, found):
            return read_volume(path, series=found, given=given, check=check)
    pieces = run_in_workers(
        partial(_piece, path, found, given, check), range(PIECES), 1, stop, limit_s=READ_LIMIT_S, failed=_failed
    )
    with closing(pieces):
        for number, piece in enumerate(pieces):
            if isinstance(piece, str):
                raise InputError(f"{path} cannot be read: {piece}", "check the file")
            if isinstance(piece, Exception):
                raise piece
            volume, part = piece
            if number == 0:
                hu = np.empty(volume.geometry.size_dhw, part.dtype)
            hu[_planes(number, hu)] = part
    return replace(volume, hu=hu)


def _piece(
    path: Path, series: Series | None, given: Given, check: bool, number: int
) -> tuple[CTVolume, NDArray[Any]] | Exception:
    """Read the volume for its first piece; return it without its voxels, and a piece of these."""
    if not number:
        try:
            _read.append(read_volume(path, series=series, given=given, check=check))
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


def _is_packed(path: Path, series: Series | None) -> bool:
    """Tell from headers whether native code unpacks it."""
    if series is not None:
        return any(one.pixels_at is None for one in series.slices)
    if path.suffix.lower() in (".nii", ".gz", ".hdr", ".img"):
        return False
    with open(path, "rb") as file:
        start = file.read(HEADER_BYTES)
    return bool(PACKED.search(start)) or (start.startswith(b"NRRD") and not RAW_NRRD.search(start))
