"""What a reader of a format returns: voxels as stored, how they become HU, and the grid that the file states."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from MAESILLib.runtime.errors import InputError

MAX_VOXELS = 1 << 32
NAMED = 3
"""How many files or gaps a message names before it counts the rest."""
MOST_MORE = 1 << 20
"""Bytes behind the voxels that are passed over; gzip makes gigabytes of a few."""
AGAIN = "copy or download it again"
GZIP_MAGIC = b"\x1f\x8b"
CHECK_FORMAT = "check that the file is whole and has this format"
NOT_CT = "give a CT in Hounsfield units; MR, PET and rescaled images are not supported"


@dataclass(frozen=True, eq=False)
class Scan:
    """Voxels and grid of a file or series.

    Attributes:
        voxels: (D, H, W), as stored.
        affine: (4, 4), from (i, j, k, 1) to LPS in mm; its axes need not be perpendicular.
        where: what messages call it.
        slope, intercept: HU are slope * stored + intercept.
        warnings: what a user should know about it, one line each.
        name: DICOM series description; empty for the file's name.
    """

    voxels: NDArray[Any]
    affine: NDArray[np.float64]
    where: str
    slope: float = 1.0
    intercept: float = 0.0
    warnings: tuple[str, ...] = ()
    name: str = ""


@dataclass(frozen=True)
class Given:
    """What a user states of an input that does not state it itself.

    Attributes:
        spacing_ijk: mm along i, j and k, of a file that states none.
        hu_offset: added to every voxel.
        fill_gaps: interpolate DICOM slices that are missing.
    """

    spacing_ijk: tuple[float, float, float] | None = None
    hu_offset: float = 0.0
    fill_gaps: bool = False

    def spacing_of(self, where: str) -> tuple[float, float, float]:
        """Return the spacing of a file that states none.

        Raises:
            InputError: it is not given either.
        """
        if self.spacing_ijk is None:
            raise InputError(
                f"{where} states no spacing", "give it in mm: --spacing I J K (maesil prepare: --input-spacing I J K)"
            )
        return self.spacing_ijk


NOTHING = Given()


def file_grid(size: Sequence[int], channels: int, is_complex: bool, where: str) -> tuple[int, int, int]:
    """Return voxels along i, j and k of a file, before memory is taken; further axes may have one frame.

    Args:
        size: of the file, along i, j, k and further axes.
        channels: values of a voxel.

    Raises:
        InputError: it has fewer axes, several frames, no voxels or too many; or voxels are not one real number.
    """
    times = "x".join(str(n) for n in size)
    if not size or min(size) < 1 or math.prod(size) > MAX_VOXELS:
        raise InputError(f"{where} states a size of {times} voxels", CHECK_FORMAT)
    if is_complex:
        raise InputError(f"{where} has complex voxels", NOT_CT)
    if channels != 1:
        raise InputError(
            f"{where} has {channels} values a voxel (a colour picture or a vector field)",
            "give a scalar CT volume in Hounsfield units",
        )
    if len(size) < 3 or math.prod(size[3:]) != 1:
        raise InputError(
            f"{where} is {len(size)}D ({times}), not one 3D volume", "extract one volume (one phase or time)"
        )
    return size[0], size[1], size[2]


def check_surplus(count: int, path: Path) -> tuple[str, ...]:
    """Return a warning where a file has more bytes of voxels than its header states.

    Raises:
        InputError: many more.
    """
    if count > MOST_MORE:
        raise InputError(f"{path} holds more voxels than its header states", AGAIN)
    return (f"{path} has {count} bytes more than its header states",) if count else ()


def require_file(file: Path, path: Path) -> None:
    """Refuse a file whose other file is not there.

    Raises:
        InputError: it is missing.
    """
    if not file.is_file():
        raise InputError(f"{path} names its data file {file.name}, which is missing", "put it beside the header")


def named(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are."""
    return ", ".join(names[:NAMED]) + and_more(len(names) - NAMED)


def and_more(count: int) -> str:
    """Return what a message says of those that it does not name."""
    return f" and {count} more" if count > 0 else ""
