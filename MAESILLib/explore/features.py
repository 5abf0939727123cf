"""Dense features of a volume: the frozen encoder's tokens on one grid, from windows that overlap.

Cells of the grid are ``stride`` voxels of the model's grid on a side. Where that is less than a patch, the volume is
encoded several times, shifted by a stride, so that the centre of each cell is the centre of a patch.
"""

import hashlib
import itertools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
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


@dataclass(frozen=True)
class Origin:
    """What features were made with.

    Attributes:
        encoder: SHA-256 of its checkpoint.
        block: whose output they are, from 1.
        stride: voxels of the model's grid from one cell to the next.
    """

    encoder: str
    block: int
    stride: int


@dataclass(frozen=True, eq=False)
class Features:
    """Features of a volume.

    Attributes:
        values: (C, D, H, W) float16, on a grid of cells in canonical orientation.
        voxels: (d, h, w) bool, voxels of the model's grid that lie in the patient.
        grid: the way from the model's grid to the volume's own grid.
        origin: what they were made with.
    """

    values: NDArray[np.float16]
    voxels: NDArray[np.bool_]
    grid: ModelGrid
    origin: Origin

    @cached_property
    def body(self) -> NDArray[np.bool_]:
        """Cells (D, H, W) of which at least half of the voxels lie in the patient."""
        stride, (d, h, w) = self.origin.stride, self.values.shape[1:]
        pads = [(0, n * stride - m) for n, m in zip((d, h, w), self.voxels.shape, strict=True)]
        blocks = np.pad(self.voxels, pads).reshape(d, stride, h, stride, w, stride)
        inside: NDArray[np.bool_] = blocks.mean((1, 3, 5)) >= 0.5
        return inside

    @cached_property
    def cells(self) -> ModelGrid:
        """The way from the cells, which begin at the corner of the model's grid, to the volume's own grid."""
        geometry, stride = self.grid.geometry, self.origin.stride
        d, h, w = (stride * spacing for spacing in geometry.spacing_dhw)
        x, y, z = geometry.physical_point(((stride - 1) / 2,) * 3)
        size = self.values.shape[1], self.values.shape[2], self.values.shape[3]
        whole = Geometry(size, (d, h, w), (float(x), float(y), float(z)), geometry.direction)
        return replace(self.grid, geometry=whole, is_resampled=True)

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
    origin = Origin(encoder.info.source["sha256"], block, stride)
    return Features(values[(slice(None), *map(slice, size))], body_mask(hu), grid, origin)


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


def write_features(path: Path, features: Features, volume: CTVolume) -> None:
    """Write ``features`` (C, D, H, W) float16, ``body`` (D, H, W) uint8, ``voxels`` and where they lie, as safetensors.

    ``voxels`` are the bits of the mask of the model's grid.
    """
    geometry = features.cells.geometry
    described = {
        "format": FORMAT,
        "name": volume.name,
        **vars(features.origin),
        "volume": _identity(volume),
        "model_spacing_mm": max(features.grid.geometry.spacing_dhw),
        "size_dhw": list(geometry.size_dhw),
        "spacing_mm": list(geometry.spacing_dhw[::-1]),
        "ijk_to_lps": geometry.ijk_to_lps().tolist(),
    }
    tensors = {
        "features": np.ascontiguousarray(features.values),
        "body": features.body.astype(np.uint8),
        "voxels": np.packbits(features.voxels),
    }
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(tensors, {"maesil": json.dumps(described)}))


def read_features(path: Path, volume: CTVolume, origin: Origin) -> Features:
    """Read what :func:`write_features` has written for the volume.

    Raises:
        InputError: no such file, another kind of file, or features of another volume or origin.
    """
    try:
        with safe_open(path, "numpy") as file:
            described = json.loads((file.metadata() or {})["maesil"])
            values, bits = file.get_tensor("features"), file.get_tensor("voxels")
        found = Origin(*(described[key] for key in ("encoder", "block", "stride")))
        grid = model_grid(volume.geometry, described["model_spacing_mm"])
        size, identity = grid.geometry.size_dhw, described["volume"]
        if (found, identity, values.ndim) == (origin, _identity(volume), 4):
            voxels = np.unpackbits(bits, count=math.prod(size)).reshape(size).astype(bool)
            return Features(values, voxels, grid, origin)
    except FileNotFoundError:
        raise InputError(f"no such file: {path}", "run maesil features first") from None
    except (SafetensorError, KeyError, TypeError, ValueError, OSError):
        raise InputError(f"{path} holds no features", "run maesil features again") from None
    raise InputError(
        f"{path} holds features of another CT, checkpoint, block or stride", "run maesil features with the same ones"
    )


def _identity(volume: CTVolume) -> str:
    """Return a hash of the voxels and their places."""
    return hashlib.sha256(repr(volume.geometry).encode() + np.ascontiguousarray(volume.hu).tobytes()).hexdigest()
