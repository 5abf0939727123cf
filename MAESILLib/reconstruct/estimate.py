"""Main memory that a reconstruction needs, estimated before it starts; needs no torch."""

import math

from MAESILLib.ct.geometry import Geometry
from MAESILLib.ct.volume import model_grid
from MAESILLib.runtime.errors import OutOfMemoryError
from MAESILLib.runtime.system import machine_memory

BASE_MIB, MIB_PER_SOURCE_MVOXEL, MIB_PER_MVOXEL, MIB_PER_MVOXEL_OF_COVER = 640, 6, 30, 10
"""Python with torch and the checkpoint; for each million voxels of the input, of the model's grid, and of the model's
grid once more with complete coverage. Peaks of the embedded checkpoint on the CPU."""


def reconstruction_memory_mib(
    source_voxels: int, model_shape: tuple[int, int, int], *, is_complete: bool = False
) -> float:
    """Return the peak memory of reconstructing one volume, in MiB.

    Args:
        source_voxels: number of voxels of the input.
        model_shape: (D, H, W) of the model's grid.
        is_complete: complete coverage.
    """
    per_mvoxel = MIB_PER_MVOXEL + (MIB_PER_MVOXEL_OF_COVER if is_complete else 0)
    return BASE_MIB + (MIB_PER_SOURCE_MVOXEL * source_voxels + per_mvoxel * math.prod(model_shape)) / 1e6


def check_memory(geometry: Geometry, spacing_mm: float, where: str, *, is_complete: bool) -> str:
    """Refuse a volume that this machine can never reconstruct, before its voxels are read.

    Args:
        geometry: of the input.
        spacing_mm: of the model's grid.

    Returns:
        a warning where it needs more than is free now; else "".

    Raises:
        OutOfMemoryError: it needs more memory than the process may have.
    """
    shape = model_grid(geometry, spacing_mm).geometry.size_dhw
    needed = reconstruction_memory_mib(math.prod(geometry.size_dhw), shape, is_complete=is_complete) / 1024
    total, free = (size / 2**30 for size in machine_memory())
    size = " x ".join(map(str, reversed(geometry.size_dhw)))
    text = f"{where}, {size} voxels, needs about {needed:.1f} GiB of memory"
    if needed > total:
        raise OutOfMemoryError(
            f"{text}, and this machine, or what the process may use of it, has {total:.1f} GiB",
            "crop it, resample it to a coarser grid, or use a machine with more memory",
        )
    return f"{text}, and {free:.1f} GiB are free" if needed > free else ""
