"""Checks of what ``maesil reconstruct`` wrote, made from the files alone."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
from cli_factory import JSON, read_array, read_strict_json, reconstruct, write_image
from scipy import sparse
from scipy.sparse.linalg import spsolve
from volume_factory import geometry

KINDS = ("masked", "reconstruction", "composite", "error", "mask")
LOW, HIGH = -1000, 1000
FIGURES = (
    "psnr_masked_db",
    "mae_masked_hu",
    "psnr_composite_db",
    "ssim_composite",
    "border_index",
    "baseline_harmonic_psnr_masked_db",
)


def run(source: Path, output: Path, checkpoint: Path, *more: object) -> dict[str, Any]:
    """Reconstruct to ``output`` and return metrics.json."""
    reconstruct(source, output, checkpoint, *JSON, *more).checked()
    return read_strict_json(output / "metrics.json")


def run_on(hu: np.ndarray, folder: Path, checkpoint: Path, *more: object) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reconstruct HU of 1.5 mm; return metrics.json and the volumes."""
    write_image(folder / "scan.nrrd", hu, geometry(hu.shape))
    return run(folder / "scan.nrrd", folder / "out", checkpoint, *more), volumes(folder / "out")


def volumes(folder: Path, suffix: str = "nrrd") -> dict[str, np.ndarray]:
    """Read the five volumes."""
    arrays = {kind: read_array(folder / f"{kind}.{suffix}") for kind in KINDS}
    assert arrays["mask"].dtype == np.uint8
    assert set(np.unique(arrays["mask"])) <= {0, 1}
    assert all(arrays[kind].dtype == np.int16 for kind in KINDS[:-1])
    return arrays


def check_meaning(arrays: dict[str, np.ndarray], hu: np.ndarray) -> None:
    """The files against each other and against the input, voxel by voxel."""
    clipped = np.rint(np.clip(hu, LOW, HIGH)).astype(np.int16)
    hidden = arrays["mask"] == 1
    reconstruction = arrays["reconstruction"]
    assert reconstruction.min() >= LOW
    assert reconstruction.max() <= HIGH
    np.testing.assert_array_equal(arrays["masked"], np.where(hidden, LOW, clipped))
    np.testing.assert_array_equal(arrays["composite"], np.where(hidden, reconstruction, clipped))
    np.testing.assert_array_equal(arrays["error"], reconstruction.astype(int) - clipped)


def check_patches(mask: np.ndarray) -> None:
    """Hidden voxels come in whole patches of 8 x 8 x 8 on one grid that begins at voxel 0."""
    d, h, w = mask.shape
    corners = mask[::8, ::8, ::8]
    blown_up = corners.repeat(8, 0).repeat(8, 1).repeat(8, 2)[:d, :h, :w]
    np.testing.assert_array_equal(mask, blown_up)


def direct_fill(image: np.ndarray, hidden: np.ndarray, tension: float | None = None) -> np.ndarray:
    """Fill (D, H, W) by sparse elimination: harmonically, or as a plate under ``tension``."""
    axes = []
    for axis, n in enumerate(image.shape):
        steps = sparse.diags([-np.ones(n - 1), np.ones(n - 1)], [0, 1], (n - 1, n))
        factors = [sparse.eye(m) for m in image.shape]
        factors[axis] = steps.T @ steps
        axes.append(sparse.kron(sparse.kron(factors[0], factors[1]), factors[2]))
    matrix = sum(axes).tocsr()
    if tension is not None:
        matrix = (matrix @ matrix + tension * matrix).tocsr()
    is_hidden, values = hidden.ravel(), image.astype(float).ravel()
    right = -matrix[is_hidden][:, ~is_hidden] @ values[~is_hidden]
    values[is_hidden] = spsolve(matrix[is_hidden][:, is_hidden].tocsc(), right)
    return values.reshape(image.shape)


def psnr(reference_hu: np.ndarray, prediction_hu: np.ndarray) -> float:
    """The definition, in HU: 20 log10(range / root mean squared error)."""
    error = reference_hu.astype(np.float64) - prediction_hu
    return 20 * math.log10((HIGH - LOW) / math.sqrt((error**2).mean()))


def loop_border_ratio(volume: np.ndarray, sizes: tuple, where: np.ndarray) -> float:
    """The ratio of the border index, by visiting every pair of face neighbours."""
    across, inside = [], []
    for index in itertools.product(*map(range, volume.shape)):
        for axis in range(3):
            other = tuple(i + (a == axis) for a, i in enumerate(index))
            if other[axis] == volume.shape[axis] or not (where[index] and where[other]):
                continue
            patch, other_patch = (i[axis] // sizes[axis] for i in (index, other))
            (inside if patch == other_patch else across).append(abs(float(volume[index]) - float(volume[other])))
    return float(np.mean(across) / np.mean(inside))
