"""Dense features of a volume, on a grid of cells of ``stride`` voxels of the model's grid, and their file.

Needs no torch: whoever looks at features need not be able to make them (:mod:`MAESILLib.explore.encoding`).
"""

import hashlib
import json
import math
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from MAESILLib.ct.geometry import Geometry
from MAESILLib.ct.volume import CTVolume, ModelGrid, model_grid
from MAESILLib.runtime.errors import InputError
from MAESILLib.runtime.files import write_bytes

FORMAT = "maesil-features/1"


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
        return blocks.mean((1, 3, 5)) >= 0.5

    @cached_property
    def cells(self) -> ModelGrid:
        """The way from the cells, which begin at the corner of the model's grid, to the volume's own grid."""
        geometry, stride = self.grid.geometry, self.origin.stride
        d, h, w = (stride * spacing for spacing in geometry.spacing_dhw)
        origin = tuple(geometry.physical_point(((stride - 1) / 2,) * 3).tolist())
        whole = Geometry(self.values.shape[1:], (d, h, w), origin, geometry.direction)
        return replace(self.grid, geometry=whole, is_resampled=True)

    @property
    def in_body(self) -> NDArray[np.float32]:
        """Features (N, C) of the cells in the patient."""
        return self.values[:, self.body].T.astype(np.float32)


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
    write_bytes(path, save(tensors, {"maesil": json.dumps(described)}))


def open_features(path: Path, geometry: Geometry) -> tuple[Features, str]:
    """Read what :func:`write_features` has written for a volume with this geometry.

    Returns:
        the features, and a hash of the volume.

    Raises:
        InputError: no such file, another kind of file, or features of a volume of another size.
    """
    try:
        with safe_open(path, "numpy") as file:
            described = json.loads((file.metadata() or {})["maesil"])
            values, bits = file.get_tensor("features"), file.get_tensor("voxels")
        origin = Origin(*(described[key] for key in ("encoder", "block", "stride")))
        grid = model_grid(geometry, described["model_spacing_mm"])
        size = grid.geometry.size_dhw
        voxels = np.unpackbits(bits, count=math.prod(size)).reshape(size).astype(bool)
        if values.shape[1:] == tuple(described["size_dhw"]) == tuple(-(-n // origin.stride) for n in size):
            return Features(values, voxels, grid, origin), described["volume"]
    except FileNotFoundError:
        raise InputError(f"no such file: {path}", "run maesil features first") from None
    except (SafetensorError, KeyError, TypeError, ValueError, OSError):
        pass
    raise InputError(f"{path} holds no features, or features of another CT", "run maesil features again")


def read_features(path: Path, volume: CTVolume, origin: Origin) -> Features:
    """Read what :func:`write_features` has written for the volume.

    Raises:
        InputError: as :func:`open_features`, or features of another volume or origin.
    """
    features, identity = open_features(path, volume.geometry)
    if (features.origin, identity) != (origin, _identity(volume)):
        raise InputError(
            f"{path} holds features of another CT, checkpoint, block or stride",
            "run maesil features with the same ones",
        )
    return features


def _identity(volume: CTVolume) -> str:
    """Return a hash of the voxels and their places."""
    return hashlib.sha256(repr(volume.geometry).encode() + np.ascontiguousarray(volume.hu).tobytes()).hexdigest()
