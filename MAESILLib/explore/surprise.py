"""Where a CT is not what its surroundings let the model expect.

Repeated complete covers predict every voxel unseen, each time from other visible patches: a mean and a spread. The
error of the smoothed mean, relative to the error that a twentieth of the volume's own tissue of that kind exceeds, is
compared with the errors of calibration volumes where tissue and spread are alike.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from MAESILLib.ct.volume import ModelGrid, hu_to_unit, unit_to_hu
from MAESILLib.ct.writing import PLANES, volume_writer
from MAESILLib.reconstruct.plan import Plan
from MAESILLib.reconstruct.reconstruction import reconstruct
from MAESILLib.reconstruct.results import Model
from MAESILLib.runtime.errors import InputError
from MAESILLib.runtime.files import read_json, write_json
from MAESILLib.runtime.stopping import NEVER, StopRequest

FORMAT = "maesil-surprise/1"
SMOOTH_MM = 3.0
"""Sigma of the Gaussian that smooths errors: noise of the scanner goes, what a lesion adds stays."""
TISSUE_HU = (-700, -200, -20, 100, 300)
"""Predicted HU between lung, its border, fat, soft tissue, dense tissue and bone."""
SPREADS = 4
"""Bins of equally many voxels of a tissue, by spread."""
TAILS = np.logspace(0, -4, 33)
"""Shares of voxels whose errors are larger than the stored ones."""
DRAWN = 20000
"""Voxels of a tissue that each calibration volume gives at most."""
UNIT = 0.95
"""Quantile of a volume's own errors that the others are relative to: scans differ in noise, and in how their errors
tail off, of which a median knows nothing."""
FEWEST = 500
"""Voxels of a tissue that a quantile needs; with fewer it is that of the patient."""


@dataclass(frozen=True, eq=False)
class Errors:
    """Errors of the prediction of N voxels.

    Attributes:
        tissue: (N,) index of the predicted kind.
        spread: (N,) HU, standard deviation over covers.
        error: (N,) relative to the quantile ``UNIT`` in the volume's tissue of that kind.
    """

    tissue: NDArray[np.int64]
    spread: NDArray[np.float32]
    error: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Calibration:
    """Errors to expect.

    Attributes:
        checkpoint: SHA-256 of its weights.
        covers: of each volume that was measured.
        volumes: how many were.
        spreads: (tissues, SPREADS - 1) HU, borders of the bins.
        errors: (tissues, SPREADS, TAILS), of which the shares ``TAILS`` of voxels have larger ones.
    """

    checkpoint: str
    covers: int
    volumes: int
    spreads: NDArray[np.float64]
    errors: NDArray[np.float64]


def predict(
    model: Model,
    hu: NDArray[np.float32],
    name: str,
    covers: int,
    seed: int = 0,
    stop: StopRequest = NEVER,
    progress: Callable[[float], None] | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return mean and spread (D, H, W) in HU of the decoder's predictions in complete covers of other seeds.

    Args:
        hu: (D, H, W) on the model's grid.
        covers: two or more.
        progress: called with the share that is done.
    """
    window = model.info.preprocessing.window_hu
    unit = hu_to_unit(hu, window)
    mean, squares = np.zeros_like(unit), np.zeros_like(unit)
    for number in range(covers):
        tell = None if progress is None else (lambda share, n=number: progress((n + share) / covers))
        plan = Plan(coverage="complete", seed=seed + number)
        found = reconstruct(
            model.network, unit, plan, name=name, device=model.device, completed=False, stop=stop, progress=tell
        ).prediction
        # Welford's update: no difference of large sums
        change = found - mean
        mean += change / (number + 1)
        squares += change * (found - mean)
    return unit_to_hu(mean, window), np.sqrt(squares / (covers - 1)) * np.float32(window[1] - window[0])


def errors_of(
    hu: NDArray[np.float32],
    mean: NDArray[np.float32],
    spread: NDArray[np.float32],
    body: NDArray[np.bool_],
    grid: ModelGrid,
    window: tuple[float, float],
) -> Errors:
    """Return the errors of the N voxels of the patient, in row-major order; arrays (D, H, W) on the model's grid."""
    sigma = SMOOTH_MM / np.array(grid.geometry.spacing_dhw)
    error = abs(gaussian_filter(np.clip(hu, *window) - mean, sigma))[body]
    tissue = np.digitize(mean[body], TISSUE_HU)
    unit = np.full(len(TISSUE_HU) + 1, np.quantile(error, UNIT))
    for kind in np.flatnonzero(np.bincount(tissue, minlength=len(unit)) >= FEWEST):
        unit[kind] = np.quantile(error[tissue == kind], UNIT)
    return Errors(tissue, spread[body], error / np.maximum(unit, 1e-3)[tissue].astype(np.float32))


def calibrate(found: Sequence[Errors], checkpoint: str, covers: int) -> Calibration:
    """Return the errors to expect from those of volumes of usual patients, which count alike.

    Of a kind of tissue that none of them shows they are those of all kinds: all are relative to a quantile.
    """
    rng, kinds = np.random.default_rng(0), len(TISSUE_HU) + 1
    spreads, errors = np.empty((kinds, SPREADS - 1)), np.empty((kinds, SPREADS, len(TAILS)))
    for kind in range(kinds):
        is_shown = any((one.tissue == kind).any() for one in found)
        rows = [rng.permutation(np.flatnonzero((one.tissue == kind) | (not is_shown)))[:DRAWN] for one in found]
        spread, error = (
            np.concatenate([getattr(one, key)[chosen] for one, chosen in zip(found, rows, strict=True)])
            for key in ("spread", "error")
        )
        spreads[kind] = np.quantile(spread, np.arange(1, SPREADS) / SPREADS)
        for place in range(SPREADS):
            inside = np.digitize(spread, spreads[kind]) == place
            errors[kind, place] = np.quantile(error[inside] if inside.any() else error, 1 - TAILS)
    return Calibration(checkpoint, covers, len(found), spreads, errors)


def surprise(errors: Errors, calibration: Calibration) -> NDArray[np.float32]:
    """Return for each voxel -log10 of the share of such voxels whose errors are as large: 2 for 1 %.

    Beyond the largest error that was seen it grows by the logarithm of the error.
    """
    found = np.empty(len(errors.error), np.float32)
    for kind, (borders, expected) in enumerate(zip(calibration.spreads, calibration.errors, strict=True)):
        place = np.digitize(errors.spread, borders)
        for number, quantiles in enumerate(expected):
            rows = (errors.tissue == kind) & (place == number)
            error = errors.error[rows]
            beyond = np.log10(np.maximum(error / max(quantiles[-1], 1e-6), 1))
            found[rows] = np.interp(error, quantiles, -np.log10(TAILS)) + beyond
    return found


def write_calibration(path: Path, calibration: Calibration) -> None:
    arrays = {key: np.round(getattr(calibration, key), 3).tolist() for key in ("spreads", "errors")}
    write_json(path, {"format": FORMAT, **vars(calibration), **arrays})


def read_calibration(path: Path, checkpoint: str) -> Calibration:
    """Read what :func:`write_calibration` has written.

    Raises:
        InputError: no such file, another kind of file, or one for another checkpoint.
    """
    values = read_json(path)
    try:
        spreads, errors = (np.array(values[key], np.float64) for key in ("spreads", "errors"))
        found = Calibration(values["checkpoint"], values["covers"], values["volumes"], spreads, errors)
        kinds = len(TISSUE_HU) + 1
        is_whole = (spreads.shape, errors.shape) == ((kinds, SPREADS - 1), (kinds, SPREADS, len(TAILS)))
    except (KeyError, TypeError, ValueError):
        is_whole = False
    if not is_whole or values["format"] != FORMAT:
        raise InputError(f"{path} is no calibration", "make one by maesil surprise --calibrate")
    if found.checkpoint != checkpoint:
        raise InputError(f"{path} is for another checkpoint", "make one by maesil surprise --calibrate")
    return found


def write_map(path: Path, values: NDArray[np.float32], grid: ModelGrid) -> None:
    """Write a map (D, H, W) of the model's grid on the CT's own grid."""
    with volume_writer(path, np.float32, grid.source) as write:
        for planes in grid.planes_to_source(values, PLANES):
            write(planes)
