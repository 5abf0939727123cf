"""Write volumes plane by plane, with exactly the geometry given, whole or not at all.

Compression is zlib level 1: level 6 takes four times as long for files at most a few per cent (smooth or noisy voxels)
to a third (voxels rounded to multiples of 4) smaller.
"""

import gzip
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from MAESILLib.ct.geometry import LPS_OF_RAS, Geometry
from MAESILLib.runtime.errors import InputError
from MAESILLib.runtime.files import atomic_path

WRITABLE_SUFFIXES = (".nii.gz", ".nii", ".nrrd")
WRITABLE_TYPES = ("int16", "uint8", "float32")
COMPRESSION_LEVEL = 1
PLANES = 16
"""Planes that are worth making at once: more take memory, fewer take longer."""


@contextmanager
def volume_writer(
    path: Path | str,
    dtype: DTypeLike,
    geometry: Geometry,
    *,
    compress: bool = True,
    is_color: bool = False,
    fields: Mapping[str, str] | None = None,
) -> Iterator[Callable[[NDArray[Any]], None]]:
    """Yield a function that takes the next planes (n, H, W) of a volume, from the first to the last.

    NRRD keeps the geometry in double precision; NIfTI keeps it in single precision (1e-7, relative).

    Args:
        path: the file; its suffix decides the format. Missing folders are made.
        dtype: int16, uint8 or float32.
        geometry: the volume's grid.
        compress: compress .nrrd (.nii.gz is always compressed, .nii never).
        is_color: voxels are red, green and blue, so planes are (n, H, W, 3); NRRD only.
        fields: values beside the geometry, as those of a segmentation; NRRD only.

    Raises:
        InputError: the suffix is unknown, or the folder cannot be written to.
        DiskFullError: the disk is full, or a quota or size limit is reached.
        ValueError: the dtype or the planes do not fit.
    """
    path, dtype = Path(path), np.dtype(dtype)
    suffix = next((s for s in WRITABLE_SUFFIXES if path.name.lower().endswith(s)), "")
    if not suffix or (is_color and suffix != ".nrrd"):
        raise InputError(f"cannot write {path}: unknown suffix", f"use one of {', '.join(WRITABLE_SUFFIXES)}")
    if dtype.name not in WRITABLE_TYPES:
        raise ValueError(f"volumes are written as {', '.join(WRITABLE_TYPES)}, not {dtype}")
    is_packed = suffix == ".nii.gz" or (suffix == ".nrrd" and compress)
    depth, *plane = *geometry.size_dhw, *([3] if is_color else [])
    written = 0
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        if suffix == ".nrrd":
            file.write(_nrrd_header(dtype, geometry, is_packed, is_color, fields or {}))
        with gzip.GzipFile("", "wb", COMPRESSION_LEVEL, file, mtime=0) if is_packed else nullcontext(file) as data:
            if suffix != ".nrrd":
                _nifti_header(dtype, geometry).write_to(data)

            def write(planes: NDArray[Any]) -> None:
                nonlocal written
                if planes.shape[1:] != (*plane,):
                    raise ValueError(f"planes are {planes.shape[1:]}, those of the geometry {(*plane,)} (H, W)")
                written += len(planes)
                data.write(np.ascontiguousarray(planes, dtype.newbyteorder("<")).data)

            yield write
        if written != depth:
            raise ValueError(f"{written} planes were written of {depth}")


def _nrrd_header(
    dtype: np.dtype[Any], geometry: Geometry, is_packed: bool, is_color: bool, fields: Mapping[str, str]
) -> bytes:
    """Return a header of the format NRRD0004 (https://teem.sourceforge.net/nrrd/format.html)."""
    affine = geometry.ijk_to_lps()

    def vector(values: Any) -> str:
        return f"({','.join(repr(float(v)) for v in values)})"

    lines = [
        "NRRD0004",
        f"type: {'float' if dtype == np.float32 else dtype.name}",
        f"dimension: {3 + is_color}",
        "space: left-posterior-superior",
        f"sizes: {'3 ' * is_color}{' '.join(map(str, geometry.size_dhw[::-1]))}",
        f"space directions: {'none ' * is_color}{' '.join(vector(column) for column in affine[:3, :3].T)}",
        f"kinds: {'RGB-color ' * is_color}domain domain domain",
        "endian: little",
        f"encoding: {'gzip' if is_packed else 'raw'}",
        f"space origin: {vector(affine[:3, 3])}",
        *(f"{key}:={value}" for key, value in fields.items()),
    ]
    return ("\n".join(lines) + "\n\n").encode()


def _nifti_header(dtype: np.dtype[Any], geometry: Geometry) -> Any:
    import nibabel

    affine = LPS_OF_RAS @ geometry.ijk_to_lps()
    image = nibabel.Nifti1Image(np.broadcast_to(dtype.type(0), geometry.size_dhw[::-1]), affine)
    image.set_sform(affine, code="scanner")
    image.set_qform(affine, code="scanner")
    image.header.set_xyzt_units("mm")
    image.header["vox_offset"] = image.header.single_vox_offset
    return image.header
