"""Masks in a file, so that versions of the program that draw them differently are measured on the same ones.

An .npz archive, written where there is none and read otherwise:

    superpatch_size, patch_size    voxels (D, H, W)
    SETTING/VOLUME/shape           of the volume, voxels (D, H, W) of the model's grid
    SETTING/VOLUME/N               of superpatch N: visible tokens (passes, n_visible), sorted

Superpatches are those of :func:`MAESILLib.mae.superpatch.partition`, tokens in row-major order.
"""

import math
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from MAESILLib.mae.superpatch import Shape, partition, token_grid
from MAESILLib.reconstruct.plan import Plan, superpatch_masks
from MAESILLib.runtime.errors import InputError
from MAESILLib.runtime.files import atomic_path

REMEDY = "give the file that was written for these volumes and sizes, or a new name"

UNREADABLE = (OSError, ValueError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""What numpy and zipfile raise for files that are damaged or of another kind."""


def with_masks(
    path: Path, plans: Mapping[str, Plan], shapes: Mapping[str, Shape], superpatch_size: Shape, patch_size: Shape
) -> dict[str, Plan]:
    """Return the plans with the masks of the file ``path``, which is written if it is not there.

    Args:
        plans: of each setting; those that hide nothing stay as they are.
        shapes: voxels (D, H, W) of each volume.

    Raises:
        InputError: the file cannot be read, or is of other settings, volumes or sizes.
    """
    if not path.exists():
        _write(path, plans, shapes, superpatch_size, patch_size)
    try:
        with open(path, "rb") as file:
            found = dict(np.load(file, allow_pickle=False))
    except UNREADABLE as error:
        raise InputError(f"{path} is not a file of masks ({error})", REMEDY) from None
    for name, size in (("superpatch_size", superpatch_size), ("patch_size", patch_size)):
        _check_size(path, f"a {name} of", found.get(name), size)
    masked = dict(plans)
    for setting, plan in plans.items():
        if plan.hides:
            masks = {}
            for volume, shape in shapes.items():
                _check_size(path, f"'{setting}' of {volume} of", found.get(f"{setting}/{volume}/shape"), shape)
                boxes = partition(shape, superpatch_size, patch_size)
                grids = [token_grid(box.size, patch_size) for box in boxes]
                own = [found.get(f"{setting}/{volume}/{number}") for number in range(len(boxes))]
                if not all(_fits(mask, grid, plan) for mask, grid in zip(own, grids, strict=True)):
                    raise InputError(
                        f"{path}: the masks of '{setting}' do not fit the superpatches of {volume}", REMEDY
                    )
                masks[volume] = [torch.from_numpy(mask.astype(np.int64)) for mask in own if mask is not None]
            masked[setting] = replace(plan, masks=masks)
    return masked


def _write(
    path: Path, plans: Mapping[str, Plan], shapes: Mapping[str, Shape], superpatch_size: Shape, patch_size: Shape
) -> None:
    arrays: dict[str, Any] = {"superpatch_size": superpatch_size, "patch_size": patch_size}
    for setting, plan in plans.items():
        for volume, shape in shapes.items() if plan.hides else ():
            arrays[f"{setting}/{volume}/shape"] = shape
            for box in partition(shape, superpatch_size, patch_size):
                grid = token_grid(box.size, patch_size)
                visible = superpatch_masks(grid, plan, volume, box.index).numpy()
                arrays[f"{setting}/{volume}/{box.index}"] = visible.astype(np.min_scalar_type(math.prod(grid) - 1))
    # np.savez would give a path without a suffix another name
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)


def _check_size(path: Path, what: str, found: np.ndarray | None, size: Shape) -> None:
    sides, others = ("x".join(map(str, one)) for one in (size, () if found is None else found))
    if found is None:
        raise InputError(f"{path} holds no masks for {what} {sides} voxels", REMEDY)
    if not np.array_equal(found, size):
        raise InputError(f"{path} holds masks for {what} {others}, not {sides} voxels", REMEDY)


def _fits(mask: np.ndarray | None, grid: Shape, plan: Plan) -> bool:
    """Say whether an array can be the masks of a superpatch under a plan."""
    if mask is None or mask.ndim != 2 or mask.dtype.kind not in "iu" or not mask.size:
        return False
    tokens = math.prod(grid)
    is_sorted = bool((np.diff(mask.astype(np.int64), axis=1) > 0).all())
    if not is_sorted or mask.min() < 0 or mask.max() >= tokens:
        return False
    if plan.coverage == "single":
        return len(mask) == 1
    return bool((np.bincount(mask.ravel().astype(np.int64), minlength=tokens) < len(mask)).all())
