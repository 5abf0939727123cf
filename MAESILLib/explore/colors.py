"""Features as colors: their first three principal components in the patient, as red, green and blue."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from MAESILLib.ct.writing import PLANES, volume_writer
from MAESILLib.explore.features import Features
from MAESILLib.runtime.errors import InputError
from MAESILLib.runtime.files import write_bytes

ENDS = (1, 99)
"""Percentiles of a component in the patient that become the darkest and the brightest value of its color."""


@dataclass(frozen=True, eq=False)
class Basis:
    """Principal axes of features of C channels; float32.

    Attributes:
        mean: (C,).
        axes: (3, C), of unit length.
        ends: (2, 3), the components that become 0 and 255.
    """

    mean: NDArray[np.float32]
    axes: NDArray[np.float32]
    ends: NDArray[np.float32]


def fit_basis(features: NDArray[np.float32]) -> Basis:
    """Fit principal axes to features (N, C); along each the longer tail is the positive one.

    Raises:
        InputError: there are fewer than four features.
    """
    if len(features) < 4:
        raise InputError("the volume shows hardly any of a patient", "give another CT, or the --basis of another one")
    mean = features.mean(0)
    centered = features - mean
    axes = np.linalg.eigh(np.cov(centered, rowvar=False))[1][:, :-4:-1].T.astype(np.float32)
    components = centered @ axes.T
    signs = np.where((components**3).sum(0) < 0, -1, 1).astype(np.float32)
    ends = np.percentile(components * signs, ENDS, axis=0).astype(np.float32)
    return Basis(mean, axes * signs[:, None], ends)


def read_basis(path: Path, channels: int) -> Basis:
    """Read a basis that :func:`write_basis` has written.

    Raises:
        InputError: no such file, another kind of file, or a basis for features of another checkpoint.
    """
    try:
        values = load_file(path)
        basis = Basis(values["mean"], values["axes"], values["ends"])
    except FileNotFoundError:
        raise InputError(f"no such file: {path}", "check the path") from None
    except (SafetensorError, KeyError, OSError):
        raise InputError(f"{path} is no basis", "give a basis.safetensors that maesil features has written") from None
    if (basis.mean.shape, basis.axes.shape, basis.ends.shape) != ((channels,), (3, channels), (2, 3)):
        raise InputError(f"{path} is not for features of {channels} channels", "give one of the same checkpoint")
    return basis


def write_basis(path: Path, basis: Basis) -> None:
    write_bytes(path, save({name: np.ascontiguousarray(x) for name, x in vars(basis).items()}))


def colors_of(features: Features, basis: Basis) -> NDArray[np.float32]:
    """Return red, green and blue of the cells, (3, D, H, W) in [0, 1]."""
    low, high = basis.ends
    components = np.einsum("ac,cdhw->adhw", basis.axes, features.values - basis.mean[:, None, None, None])
    shares = (components - low[:, None, None, None]) / np.maximum(high - low, 1e-6)[:, None, None, None]
    return np.clip(shares, 0, 1).astype(np.float32)


def write_colors(path: Path, features: Features, basis: Basis) -> None:
    """Write the colors as a vector volume on the grid of the features' source, black outside the patient."""
    colors = [features.cells.planes_to_source(color, PLANES) for color in colors_of(features, basis)]
    body = features.grid.to_source(features.voxels, nearest=True)
    with volume_writer(path, np.uint8, features.cells.source, is_color=True) as write:
        for first, planes in enumerate(zip(*colors, strict=True)):
            inside = body[PLANES * first : PLANES * (first + 1), ..., None]
            write(np.rint(255 * np.stack(planes, -1) * inside).astype(np.uint8))
