"""Dense features of a volume: the frozen encoder's tokens on one grid, from windows that overlap.

Cells of the grid are ``stride`` voxels of the model's grid on a side. Where that is less than a patch, the volume is
encoded several times, shifted by a stride, so that the centre of each cell is the centre of a patch.
"""

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save

from MAESILLib.ct.body import body_mask
from MAESILLib.ct.geometry import Geometry
from MAESILLib.ct.volume import CTVolume, ModelGrid, model_grid
from MAESILLib.export.encoder import PretrainedEncoder
from MAESILLib.mae.superpatch import Shape, blending_weights
from MAESILLib.runtime.errors import InputError
from MAESILLib.runtime.files import atomic_path
from MAESILLib.runtime.stopping import NEVER, StopRequest

FORMAT = "maesil-features/1"
WINDOW, OVERLAP = 8, 3
"""Tokens on a side of a window, and of those that neighbours share."""


@dataclass(frozen=True, eq=False)
class Features:
    """Features of a volume.

    Attributes:
        values: (C, D, H, W) float16, on a grid of cells in canonical orientation.
        body: (D, H, W) bool, cells that lie in the patient.
        voxels: (d, h, w) bool, voxels of the volume's own grid that do.
        block: whose output the values are.
        cells: the way from the cells to the volume's own grid; ``cells.geometry`` is where they lie.
    """

    values: NDArray[np.float16]
    body: NDArray[np.bool_]
    voxels: NDArray[np.bool_]
    block: int
    cells: ModelGrid

    @property
    def in_body(self) -> NDArray[np.float32]:
        """Features (N, C) of the cells in the patient."""
        return self.values[:, self.body].T.astype(np.float32)


def dense_features(
    encoder: PretrainedEncoder,
    volume: CTVolume,
    *,
    block: int = 0,
    stride: int = 8,
    window: int = WINDOW,
    stop: StopRequest = NEVER,
    progress: Callable[[float], None] | None = None,
) -> Features:
    """Encode a whole volume.

    Args:
        block: whose output, from 1; 0: the last one's.
        stride: voxels of the model's grid from one cell to the next; a patch or half or a quarter of it.
        window: tokens on a side of what is encoded at once.
        progress: called with the share that is done.

    Raises:
        InputError: no such block or stride.
        CancelledError: a stop was asked for.
    """
    depth, (patch, *others) = len(encoder.encoder.blocks), encoder.patch_size
    if not 0 <= block <= depth:
        raise InputError(f"block {block} is not there", f"choose 1 to {depth}")
    if patch % stride or any(other != patch for other in others):
        raise InputError(f"stride {stride} does not divide the patch {encoder.patch_size}", "choose another stride")
    block = block or depth
    grid = model_grid(volume.geometry, encoder.spacing_mm)
    hu = grid.to_model(volume.hu)
    passes, before = patch // stride, (patch - stride) // 2
    size = tuple(-(-n // stride) for n in hu.shape)
    tokens = (-(-size[0] // passes), -(-size[1] // passes), -(-size[2] // passes))
    pads = [(before, t * patch + patch - stride - before - n) for t, n in zip(tokens, hu.shape, strict=True)]
    padded = np.pad(hu, pads, mode="edge")
    values = np.empty((encoder.width, *(passes * t for t in tokens)), np.float16)
    shifts = list(itertools.product(range(passes), repeat=3))
    for number, shift in enumerate(shifts):
        part = padded[tuple(slice(s * stride, s * stride + t * patch) for s, t in zip(shift, tokens, strict=True))]
        tell = partial(_tell, progress, number, len(shifts))
        encoded = _encode(encoder, part, tokens, block, window, stop, tell)
        values[(slice(None), *(slice(s, None, passes) for s in shift))] = encoded
    body = body_mask(hu)
    return Features(
        values[(slice(None), *map(slice, size))],
        _in_cells(body, stride, size),
        grid.to_source(body, nearest=True),
        block,
        _cells(grid, stride, size),
    )


def _tell(progress: Callable[[float], None] | None, done: int, total: int, share: float) -> None:
    if progress is not None:
        progress((done + share) / total)


@torch.inference_mode()
def _encode(
    encoder: PretrainedEncoder,
    hu: NDArray[np.float32],
    tokens: Shape,
    block: int,
    window: int,
    stop: StopRequest,
    tell: Callable[[float], None],
) -> NDArray[np.float32]:
    """Return the tokens (C, D, H, W) of HU, blended from windows that overlap."""
    device, patch = next(encoder.parameters()).device, encoder.patch_size[0]
    total, weight = np.zeros((encoder.width, *tokens), np.float32), np.zeros(tokens, np.float32)
    side = tuple(min(window, n) for n in tokens)
    weights = blending_weights((side[0], side[1], side[2]))
    starts = list(itertools.product(*(_starts(n, s) for n, s in zip(tokens, side, strict=True))))
    for number, start in enumerate(starts):
        stop.check()
        tell(number / len(starts))
        place = tuple(slice(a, a + s) for a, s in zip(start, side, strict=True))
        voxels = hu[tuple(slice(a * patch, (a + s) * patch) for a, s in zip(start, side, strict=True))]
        image = encoder.intensities(np.ascontiguousarray(voxels)).to(device)
        found = encoder.feature_maps(image[None])[block - 1][0].float().cpu().numpy()
        total[(slice(None), *place)] += found * weights
        weight[place] += weights
    return total / weight


def _starts(length: int, side: int) -> list[int]:
    """Return where windows begin that cover ``length`` and overlap by ``OVERLAP`` or more."""
    count = math.ceil((length - side) / max(1, side - OVERLAP)) + 1
    return [round(start) for start in np.linspace(0, length - side, count)]


def _cells(grid: ModelGrid, stride: int, size: tuple[int, ...]) -> ModelGrid:
    """Return the grid of cells of ``stride`` voxels of the model's grid, which begin at the same corner."""
    geometry = grid.geometry
    d, h, w = (stride * spacing for spacing in geometry.spacing_dhw)
    x, y, z = geometry.physical_point(((stride - 1) / 2,) * 3)
    whole = Geometry((size[0], size[1], size[2]), (d, h, w), (float(x), float(y), float(z)), geometry.direction)
    return replace(grid, geometry=whole, is_resampled=True)


def _in_cells(mask: NDArray[np.bool_], stride: int, size: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return the cells of which at least half of the voxels lie in ``mask``."""
    pads = [(0, n * stride - m) for n, m in zip(size, mask.shape, strict=True)]
    d, h, w = size
    shares: NDArray[np.float64] = np.pad(mask, pads).reshape(d, stride, h, stride, w, stride).mean((1, 3, 5))
    return shares >= 0.5


def write_features(path: Path, features: Features, description: dict[str, Any]) -> None:
    """Write ``features`` (C, D, H, W) float16, ``body`` (D, H, W) uint8, and where they lie, as safetensors."""
    geometry = features.cells.geometry
    values = {
        "format": FORMAT,
        **description,
        "size_dhw": list(geometry.size_dhw),
        "spacing_mm": list(geometry.spacing_dhw[::-1]),
        "ijk_to_lps": geometry.ijk_to_lps().tolist(),
    }
    tensors = {"features": np.ascontiguousarray(features.values), "body": features.body.astype(np.uint8)}
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(tensors, {"maesil": json.dumps(values)}))
