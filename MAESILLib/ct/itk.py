"""NRRD, MetaImage and DICOM's neighbours through SimpleITK, with ITK's own chatter off the terminal."""

import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from MAESILLib.ct.scan import CHECK_FORMAT, Given, Scan, check_affine, check_channels, check_size, file_grid
from MAESILLib.runtime.errors import InputError
from MAESILLib.runtime.files import check_name

_STDERR_LOCK = threading.Lock()


@dataclass(frozen=True)
class Stated:
    """What the text of a header says of its grid, which ITK fills in where it is missing."""

    spacing: bool
    orientation: bool


def read_itk(
    path: Path,
    kind: str,
    check_file: Callable[[Path, int], Stated],
    given: Given,
    header_alone: bool,
) -> Scan:
    """Read a file whose header and length ``check_file`` has looked at.

    Args:
        kind: of the file: NRRD or MetaImage.
        check_file: is given the path and the bytes of its voxels (0: do not look whether they are all there).
        header_alone: leave the voxels unread; they are zeros.

    Raises:
        InputError: it is damaged, of another kind, or not one scalar volume.
    """
    check_name(path)
    reader = sitk.ImageFileReader()
    reader.SetImageIO({"NRRD": "NrrdImageIO", "MetaImage": "MetaImageIO"}[kind])
    reader.SetFileName(str(path))
    with quiet_itk():
        with silent_stderr():
            _run(reader.ReadImageInformation, path, kind)
        size = tuple(int(n) for n in reader.GetSize())
        check_size(size, str(path))
        pixel = sitk.GetPixelIDValueAsString(reader.GetPixelIDValue())
        check_channels(reader.GetNumberOfComponents(), "complex" in pixel, str(path))
        ijk = file_grid(size, str(path))
        bits = re.search(r"(\d+)-bit", pixel)
        stated = check_file(path, 0 if header_alone or bits is None else int(np.prod(ijk)) * int(bits[1]) // 8)
        affine = np.eye(4)
        spacing = np.array(reader.GetSpacing()[:3] if stated.spacing else given.spacing_of(str(path)))
        affine[:3, :3] = np.reshape(reader.GetDirection(), (len(size), len(size)))[:3, :3] * spacing
        affine[:3, 3] = reader.GetOrigin()[:3]
        check_affine(affine, str(path))
        if header_alone:
            voxels: NDArray[Any] = np.broadcast_to(np.int16(0), ijk[::-1])
        else:
            voxels = sitk.GetArrayFromImage(_run(reader.Execute, path, kind)).reshape(ijk[::-1])
    guess = "the header gives no orientation: left and right, and top and bottom, are a guess"
    return Scan(voxels, affine, str(path), warnings=() if stated.orientation else (guess,))


def _run(step: Callable[[], Any], path: Path, kind: str) -> Any:
    """Run a reader's step; turn its exception into one line."""
    try:
        return step()
    except RuntimeError as error:
        reason = one_line_reason(error)
    raise InputError(f"{path} cannot be read as {kind}: {reason}", CHECK_FORMAT)


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

    Native libraries print straight to it what they raise as well. Only for calls that last milliseconds: what other
    threads write to standard error meanwhile is lost.
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
