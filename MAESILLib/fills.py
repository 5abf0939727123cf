"""Trivial fills: predictions of hidden voxels from visible ones that need no network.

They stand beside every figure of the model, because part of any reconstruction score is owed to the
protocol alone. The harmonic fill is the strongest of them. It solves Laplace's equation in the hidden
voxels by conjugate gradients preconditioned with a multigrid V-cycle (U. Trottenberg, C. Oosterlee,
A. Schueller, Multigrid, 2001, chapters 2 and 7.8), whose cost hardly depends on the size of the holes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from MAESILLib.errors import InputError
from MAESILLib.stopping import NEVER, StopRequest

MAX_ITERATIONS = 60
# Two Jacobi steps damped by the Chebyshev roots for the rough half of the 7-point stencil's spectrum,
# [1/3, 2]: together they shrink every rough error below 0.35.
DAMPING = (0.5695, 1.7321)
MAX_SWEEPS = 4
COARSEST_SWEEPS = 16


def fill_mean(image: np.ndarray, hidden: np.ndarray, valid: np.ndarray | None = None) -> np.ndarray:
    """Predict every hidden voxel as the mean of the visible voxels.

    Args:
        image: (D, H, W) intensities; hidden voxels are not read.
        hidden: (D, H, W) bool, True where the image is to be predicted.
        valid: (D, H, W) bool; voxels outside it (padding) are not read either. None: all are valid.

    Returns:
        (D, H, W) float32 copy of ``image`` with the hidden voxels filled.

    Raises:
        InputError: the shapes or types do not fit, or nothing is visible.
    """
    visible = _visible(image, hidden, valid)
    filled = image.astype(np.float32)
    filled[hidden] = image[visible].mean(dtype=np.float64)
    return filled


def fill_nearest(image: np.ndarray, hidden: np.ndarray, valid: np.ndarray | None = None) -> np.ndarray:
    """Predict every hidden voxel as the nearest visible one, by Euclidean distance in voxels.

    Arguments and errors as in :func:`fill_mean`. Which of several equally near voxels is taken is
    arbitrary, but always the same.

    Returns:
        (D, H, W) float32 copy of ``image`` with the hidden voxels filled.
    """
    visible = _visible(image, hidden, valid)
    filled = image.astype(np.float32)
    if hidden.any():
        nearest = ndimage.distance_transform_edt(~visible, return_distances=False, return_indices=True)
        filled[hidden] = image[tuple(index[hidden] for index in nearest)]
    return filled


def fill_harmonic(
    image: np.ndarray,
    hidden: np.ndarray,
    tolerance: float = 1e-4,
    valid: np.ndarray | None = None,
    stop: StopRequest = NEVER,
) -> np.ndarray:
    """Solve Laplace's equation in the hidden voxels, with the visible voxels as boundary values.

    Each hidden voxel becomes the mean of its face neighbours. The border of the volume and of ``valid``
    lets nothing through (Neumann). Hidden voxels that ``valid`` cuts off from every visible one have no
    unique solution and stay near the mean of the visible voxels.

    Args:
        image: (D, H, W) intensities; hidden voxels are not read.
        hidden: (D, H, W) bool, True where the image is to be predicted.
        tolerance: the iteration ends after the step at which the root mean square over the hidden
            voxels of the preconditioned residual, an estimate of the error before that step, is at
            most this, in the intensity's unit.
        valid: (D, H, W) bool; voxels outside it (padding) neither count nor influence. None: all are valid.

    Returns:
        (D, H, W) float32 copy of ``image`` with the hidden voxels filled.

    Raises:
        InputError: the shapes or types do not fit, or nothing is visible.
        ArithmeticError: the tolerance was not reached, for one below about 1e-7 because of float32.
        CancelledError: a stop was asked for.
    """
    visible = _visible(image, hidden, valid)
    unknown = hidden if valid is None else hidden & valid
    mean = np.float32(image[visible].mean(dtype=np.float64))
    # Deviations from the mean: zero is then a fair first guess, and float32 rounds less.
    source = _neighbour_sum(np.where(visible, image.astype(np.float32, copy=False) - mean, np.float32(0)))
    source *= unknown
    solution = _solve(source, _hierarchy(visible, unknown), tolerance, stop)
    filled = image.astype(np.float32)
    filled[hidden] = solution[hidden] + mean
    return filled


def _visible(image: np.ndarray, hidden: np.ndarray, valid: np.ndarray | None) -> np.ndarray:
    """Return the voxels that a fill may read, after checking the arguments."""
    for name, mask in (("hidden", hidden), ("valid", valid)):
        if mask is not None and (mask.shape != image.shape or mask.dtype != bool):
            raise InputError(
                f"mask '{name}' is {mask.dtype} of shape {mask.shape}, but the image has shape {image.shape}",
                "pass a bool array of the image's shape",
            )
    visible = ~hidden if valid is None else ~hidden & valid
    if not visible.any():
        raise InputError("nothing is visible: every valid voxel is hidden", "use a smaller masking ratio")
    return visible


@dataclass(frozen=True)
class _Level:
    """One grid of the hierarchy.

    Attributes:
        weight: (D, H, W) float32, one over the sum of the links of an unknown voxel, 0 elsewhere.
        sweeps: relaxations (pairs of Jacobi steps) before and after the coarse correction.
    """

    weight: np.ndarray
    sweeps: int


def _hierarchy(visible: np.ndarray, unknown: np.ndarray) -> list[_Level]:
    """Build the grids, finest first, each with half the voxels an axis, until nothing is unknown.

    A coarse voxel is visible (fixed) if any of its children is. A fixed face neighbour stands for a
    visible fine voxel just beyond the face, (size + 1) / 2 fine voxels away, where the centre of a
    coarse neighbour is ``size`` away: its link is stronger by the ratio. Without that factor a cycle
    leaves 0.7 of the error, with it 0.2.
    """
    levels: list[_Level] = []
    while True:
        size = 2.0 ** len(levels)
        links = _neighbour_sum(visible.astype(np.float32))
        links *= np.float32(2 * size / (size + 1))
        links += _neighbour_sum(unknown.astype(np.float32))
        weight = np.divide(unknown, links, out=np.zeros_like(links), where=links > 0)
        levels.append(_Level(weight, min(2 ** len(levels), MAX_SWEEPS)))
        if not unknown.any() or max(unknown.shape) == 1:
            return levels
        visible, unknown = _restrict(visible, np.bitwise_or), _restrict(unknown, np.bitwise_or)
        unknown &= ~visible


def _solve(source: np.ndarray, levels: list[_Level], tolerance: float, stop: StopRequest) -> np.ndarray:
    """Return x with (sum of links) x - sum of neighbours = ``source``; both are 0 where nothing is unknown.

    Preconditioned conjugate gradients (Y. Saad, Iterative Methods for Sparse Linear Systems, 2003,
    algorithm 9.1). Consumes ``source``.
    """
    weight, residual = levels[0].weight, source
    limit = tolerance**2 * np.count_nonzero(weight)
    solution, direction = np.zeros_like(source), np.zeros_like(source)
    previous = np.float32(np.inf)
    for _ in range(MAX_ITERATIONS):
        stop.check()
        error = _cycle(residual, levels)
        squared_error = np.vdot(error, error)
        if squared_error == 0:
            return solution
        product = np.vdot(error, residual)
        direction *= product / previous
        direction += error
        del error
        image = _residual(direction, None, weight)
        step = -product / np.vdot(direction, image)
        residual += np.multiply(image, step, out=image)
        solution += np.multiply(direction, step, out=image)
        del image
        if squared_error <= limit:
            return solution
        previous = product
    raise ArithmeticError(f"harmonic fill: tolerance {tolerance:g} not reached in {MAX_ITERATIONS} iterations")


def _cycle(source: np.ndarray, levels: list[_Level]) -> np.ndarray:
    """Return an approximate solution for ``source`` by one multigrid V-cycle from zero."""
    level, coarser = levels[0], levels[1:]
    damping = DAMPING * (level.sweeps if coarser else COARSEST_SWEEPS)
    solution = source * level.weight
    solution *= damping[0]
    _relax(solution, source, level.weight, damping[1:])
    if coarser:
        # The stencil leaves out 1 / spacing^2, a quarter on the coarse grid: 4 * mean of 8 = sum / 2.
        coarse_source = _restrict(_residual(solution, source, level.weight), np.add)
        coarse_source *= 0.5
        _add_interpolated(solution, _cycle(coarse_source, coarser))
        solution *= level.weight > 0
        _relax(solution, source, level.weight, damping[::-1])
    return solution


def _relax(solution: np.ndarray, source: np.ndarray, weight: np.ndarray, damping: tuple[float, ...]) -> None:
    """Take one Jacobi step for each damping factor, in place."""
    for factor in damping:
        update = _jacobi_update(solution, source, weight)
        update *= factor
        solution += update
        del update  # the next one would be made while this one is still held


def _residual(solution: np.ndarray, source: np.ndarray | None, weight: np.ndarray) -> np.ndarray:
    """Return ``source`` (None: zero) + sum of neighbours - (sum of links) ``solution`` at unknown voxels, else 0."""
    update = _jacobi_update(solution, source, weight)
    return np.divide(update, weight, out=update, where=weight > 0)


def _jacobi_update(solution: np.ndarray, source: np.ndarray | None, weight: np.ndarray) -> np.ndarray:
    """Return the residual over the sum of links, which is what an undamped Jacobi step adds."""
    update = _neighbour_sum(solution)
    if source is not None:
        update += source
    update *= weight
    update -= solution
    return update


def _neighbour_sum(volume: np.ndarray) -> np.ndarray:
    """Return the sum over the face neighbours of each voxel; nothing lies outside the volume."""
    total = np.zeros_like(volume)
    for axis in range(3):
        target, source = np.moveaxis(total, axis, 0), np.moveaxis(volume, axis, 0)
        target[1:] += source[:-1]
        target[:-1] += source[1:]
    return total


def _restrict(volume: np.ndarray, combine: np.ufunc) -> np.ndarray:
    """Combine blocks of 2x2x2 voxels (fewer at an odd end) into one."""
    for axis in range(3):
        source = np.moveaxis(volume, axis, 0)
        half = source[0::2].copy()
        pairs = len(source) // 2
        combine(half[:pairs], source[1::2], out=half[:pairs])
        volume = np.moveaxis(half, 0, axis)
    return np.ascontiguousarray(volume)


def _add_interpolated(target: np.ndarray, coarse: np.ndarray) -> None:
    """Add ``coarse``, of voxels twice the size, to ``target`` by trilinear interpolation."""
    for axis in (2, 1):
        fine_shape = [*coarse.shape[:axis], target.shape[axis], *coarse.shape[axis + 1 :]]
        fine = np.zeros(fine_shape, coarse.dtype)
        _add_interpolated_along(np.moveaxis(fine, axis, 0), np.moveaxis(coarse, axis, 0))
        coarse = fine
    _add_interpolated_along(target, coarse)


def _add_interpolated_along(target: np.ndarray, coarse: np.ndarray) -> None:
    """The same along the first axis: a fine centre lies a quarter of a coarse voxel off a coarse centre."""
    part = 0.75 * coarse
    even, odd = target[0::2], target[1::2]
    even += part
    odd += part[: len(odd)]
    part /= 3
    even[0] += part[0]
    even[1:] += part[:-1]
    odd[: len(part) - 1] += part[1:]
    if len(odd) == len(part):
        odd[-1] += part[-1]
