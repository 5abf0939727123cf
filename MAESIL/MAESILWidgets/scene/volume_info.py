"""What the selected volume is, and whether it can be reconstructed: checked before the work."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import slicer
from slicer.i18n import tr as _

from MAESILWidgets.messages import explain
from MAESILWidgets.scene.export import ijk_to_lps


@dataclass(frozen=True)
class VolumeInfo:
    """A volume as the panel tells it.

    Attributes:
        line: size, spacing, HU range, superpatches.
        warnings: what the user should know.
        refusal: why it cannot be reconstructed; empty if it can.
        source_voxels: of the volume.
        model_shape: (D, H, W) of the model's grid; None if it is not known.
        grids: token grids (D, H, W) of the superpatches, for the share that a mask hides.
    """

    line: str
    warnings: tuple[str, ...] = ()
    refusal: str = ""
    source_voxels: int = 0
    model_shape: tuple[int, int, int] | None = None
    grids: tuple[tuple[int, int, int], ...] = ()


def describe(node: Any, checkpoint: Any, overlap: float = 0.0) -> VolumeInfo:
    """Describe a volume node.

    Args:
        checkpoint: the CheckpointInfo that is to reconstruct it, or None if that cannot be read.
        overlap: of the superpatches.
    """
    from MAESILLib.ct.check import check_grid
    from MAESILLib.ct.volume import model_grid
    from MAESILLib.mae.superpatch import partition, token_grid
    from MAESILLib.runtime.errors import InputError

    name = node.GetName()
    if node.GetImageData() is None or node.GetImageData().GetNumberOfPoints() == 0:
        return VolumeInfo("", refusal=_("{name} holds no voxels").format(name=name))
    array = slicer.util.arrayFromVolume(node)
    if array.ndim != 3:
        return VolumeInfo("", refusal=_("{name} is not a scalar 3D volume").format(name=name))
    geometry = geometry_of(node)
    low, high, warnings, refusal = _look(node.GetID(), node.GetImageData().GetMTime(), name)
    line = _("{size} voxels, {spacing} mm, {low:.0f} to {high:.0f} HU").format(
        size=" x ".join(str(n) for n in array.shape[::-1]),
        spacing=" x ".join(f"{s:.3g}" for s in geometry.spacing_dhw[::-1]),
        low=low,
        high=high,
    )
    try:
        check_grid(array.shape[::-1], geometry.spacing_dhw[::-1], geometry.direction, name)
    except InputError as error:
        refusal = explain(error)
    if refusal:
        return VolumeInfo(line, refusal=refusal)
    if checkpoint is None:
        return VolumeInfo(line, warnings)
    shape = model_grid(geometry, checkpoint.preprocessing.spacing_mm).geometry.size_dhw
    boxes = partition(shape, checkpoint.model.superpatch_size, checkpoint.model.patch_size, overlap)
    grids = tuple(token_grid(box.size, checkpoint.model.patch_size) for box in boxes)
    counted = _("1 superpatch") if len(boxes) == 1 else _("{n} superpatches").format(n=len(boxes))
    return VolumeInfo(f"{line}; {counted}", warnings, source_voxels=int(array.size), model_shape=shape, grids=grids)


def geometry_of(node: Any) -> Any:
    """Return the grid of a volume node, parent transforms left out, as MAESILLib has it."""
    from MAESILLib.ct.geometry import Geometry

    matrix = ijk_to_lps(node)
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    # a spacing of 0 is refused later
    with np.errstate(all="ignore"):
        direction = (matrix[:3, :3] / spacing).ravel()
    shape = slicer.util.arrayFromVolume(node).shape
    return Geometry(shape, tuple(spacing[::-1].tolist()), tuple(matrix[:3, 3].tolist()), tuple(direction.tolist()))


def mask_ratio(grids: tuple[tuple[int, int, int], ...], mask: str, plane: float, axis: float) -> float:
    """Return the share of patches that a mask hides in superpatches with these token grids."""
    from MAESILLib.mae.mask_spec import MaskSpec, visible_count

    spec = MaskSpec(mask, plane, axis)
    # while no volume is chosen: of a whole superpatch
    grids = grids or ((16, 16, 16),)
    return 1 - sum(visible_count(g, spec) for g in grids) / sum(int(np.prod(g)) for g in grids)


@lru_cache(maxsize=1)
def _look(node_id: str, _changed: int, name: str) -> tuple[float, float, tuple[str, ...], str]:
    """Return what needs a look at every voxel, which of a large CT takes a quarter of a second.

    Args:
        _changed: a time that is another one when the voxels have changed.

    Returns:
        least and greatest value, the warnings and the refusal of a check.
    """
    from MAESILLib.ct.check import check_values
    from MAESILLib.runtime.errors import InputError

    array = slicer.util.arrayFromVolume(slicer.mrmlScene.GetNodeByID(node_id))
    warnings, refusal = (), ""
    try:
        warnings = check_values(array, name)
    except InputError as error:
        refusal = explain(error)
    return float(array.min()), float(array.max()), warnings, refusal
