"""Trivial fills: predictions of hidden voxels from visible ones that need no network.

They stand next to every metric of the model, because part of any reconstruction score is owed to the protocol alone.
The strongest of them is :func:`MAESILLib.mae.harmonic.harmonic_fill`.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from MAESILLib.runtime.errors import InputError


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
