"""A worker's volume as vtkImageData, a piece at a time so that Slicer stays responsive.

The worker writes raw NRRD, so the voxels can be copied from the file straight into VTK's memory. SimpleITK would read
a large CT in one go, and its voxels would have to be copied once more.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import vtk
from vtk.util import numpy_support

PIECE_BYTES = 16 << 20
NUMPY_TYPES = {"short": "<i2", "int16": "<i2", "unsigned char": "u1", "uint8": "u1", "float": "<f4"}
"""The types of results, by the names that Teem and ITK write for them."""
LONGEST_HEADER = 1 << 16


class ImageFill:
    """Fills an image from a raw NRRD file.

    Args:
        path: the file.
        shape: (D, H, W) that it must have.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no raw NRRD file, or has another shape.
    """

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        dtype, sizes, offset = read_header(path)
        if sizes != shape:
            raise ValueError(f"{path.name} has {sizes} voxels (D, H, W), the input {shape}")
        self.source = np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=shape)
        self.image = vtk.vtkImageData()
        self.image.SetDimensions(*shape[::-1])
        self.image.AllocateScalars(numpy_support.get_vtk_array_type(dtype), 1)
        self.target = numpy_support.vtk_to_numpy(self.image.GetPointData().GetScalars()).reshape(shape)
        self.next_plane = 0

    def step(self) -> bool:
        """Copy a piece; say whether that was the last."""
        count = max(1, PIECE_BYTES // max(1, self.source[0].nbytes))
        planes = slice(self.next_plane, self.next_plane + count)
        self.target[planes] = self.source[planes]
        self.next_plane += count
        return self.next_plane >= len(self.source)

    def finish(self) -> Any:
        """Return the image and let go of the file."""
        image, self.image, self.source, self.target = self.image, None, None, None
        return image


def read_header(path: Path) -> tuple[np.dtype, tuple[int, ...], int]:
    """Return type, shape (D, H, W) and the place of the first voxel of an attached, raw, little-endian NRRD file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is something else.
    """
    with open(path, "rb") as file:
        start = file.read(LONGEST_HEADER)
    text, blank, _rest = start.partition(b"\n\n")
    fields = dict(
        line.split(": ", 1) for line in text.decode("latin-1").splitlines() if ": " in line and not line.startswith("#")
    )
    wanted = {"encoding": "raw", "dimension": "3"}
    if not (start.startswith(b"NRRD") and blank) or any(fields.get(key) != value for key, value in wanted.items()):
        raise ValueError(f"{path.name} is no raw three-dimensional NRRD file")
    dtype = np.dtype(NUMPY_TYPES.get(fields.get("type", ""), "V1"))
    if dtype.kind == "V" or (dtype.itemsize > 1 and fields.get("endian") != "little"):
        raise ValueError(f"{path.name} has voxels of type {fields.get('type')}, {fields.get('endian')} endian")
    width, height, depth = (int(n) for n in fields["sizes"].split())
    return dtype, (depth, height, width), len(text) + len(blank)
