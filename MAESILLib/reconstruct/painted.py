"""Hide what was painted: tokens that hold a voxel of a label map, whatever grid that lies on."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from MAESILLib.ct.geometry import Geometry
from MAESILLib.ct.regrid import resampled
from MAESILLib.ct.volume import CTVolume, model_grid
from MAESILLib.data.labels import label_values
from MAESILLib.mae.checkpoint_info import CheckpointInfo
from MAESILLib.mae.model import patchify
from MAESILLib.mae.superpatch import extract, partition, token_grid
from MAESILLib.reconstruct.plan import Plan, superpatch_masks
from MAESILLib.runtime.errors import InputError


def hide_painted(plan: Plan, labels: CTVolume, volume: CTVolume, info: CheckpointInfo) -> Plan:
    """Return the plan with masks that also hide every token with a painted voxel.

    Args:
        labels: label map, read without checks; painted is what is not 0.
        info: of the model, whose tokens these are.

    Raises:
        InputError: complete coverage, no label map, nothing painted in the volume, or everything hidden.
    """
    if plan.coverage == "complete":
        raise InputError("what is painted is hidden in every pass: it has no complete coverage", "use single coverage")
    patch_size = info.model.patch_size
    grid = model_grid(volume.geometry, info.preprocessing.spacing_mm).geometry
    painted = painted_voxels(labels, grid)
    masks = []
    for box in partition(grid.size_dhw, info.model.superpatch_size, patch_size, plan.overlap):
        (visible,) = superpatch_masks(token_grid(box.size, patch_size), plan, volume.name, box.index)
        patches = patchify(torch.from_numpy(extract(painted, box))[None, None], patch_size)
        masks.append(visible[~patches[0].any(1)[visible]][None])
    if not any(mask.numel() for mask in masks):
        raise InputError(
            f"{labels.path} and the mask '{plan.mask.strategy}' hide all of {volume.path}",
            "paint less, lower the ratios, or use the mask 'none'",
        )
    return replace(plan, masks={volume.name: masks}, painted=Path(labels.path).name)


def painted_voxels(labels: CTVolume, grid: Geometry) -> NDArray[np.bool_]:
    """Return the voxels (D, H, W) of a grid that are painted.

    These are the voxels whose centre lies in a painted one, and those in which the centre of a painted one lies: on a
    finer grid than this one nothing is missed, on a coarser one no holes are left.

    Raises:
        InputError: it is no label map, or nothing is painted where the grid is.
    """
    painted = label_values(labels) != 0
    found = resampled(painted, labels.geometry.ijk_to_lps(), grid, 0, order=0) > 0
    # a plane at a time, because points take twelve times the memory of voxels
    for k, plane in enumerate(painted):
        places = grid.index(
            labels.geometry.physical_point(np.pad(np.argwhere(plane), ((0, 0), (1, 0)), constant_values=k))
        )
        # rounded, because a border is met by rounding alone
        index = np.floor(places.round(6) + 0.5).astype(np.int64)
        inside = ((index >= 0) & (index < grid.size_dhw)).all(1)
        found[tuple(index[inside].T)] = True
    if not found.any():
        reason = "no voxel of it lies in the volume" if painted.any() else "every voxel is 0"
        raise InputError(f"{labels.path} hides nothing: {reason}", "paint inside the volume, and give that label map")
    return found
