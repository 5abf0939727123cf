"""Main memory that a reconstruction needs, estimated before it starts; needs no torch."""

import math

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
