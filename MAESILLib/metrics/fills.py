"""Trivial fills: predictions of hidden voxels from visible ones that need no network.

They stand next to every metric of the model, because part of any reconstruction score is owed to the protocol alone.
The strongest of them is :func:`MAESILLib.mae.harmonic.harmonic_fill`.
"""

import numpy as np
from scipy import ndimage


def fill_mean(image: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """Predict every hidden voxel as the mean of the visible voxels.

    Args:
        image: (D, H, W) intensities; hidden voxels are not read.
        hidden: (D, H, W) bool, True where the image is to be predicted; a mask leaves something visible.

    Returns:
        (D, H, W) float32 copy of ``image`` with the hidden voxels filled.
    """
    filled = image.astype(np.float32)
    filled[hidden] = image[~hidden].mean(dtype=np.float64)
    return filled


def fill_nearest(image: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """Predict every hidden voxel as the nearest visible one, by Euclidean distance in voxels.

    Arguments as in :func:`fill_mean`. Which of several equally near voxels is taken is
    arbitrary, but always the same.

    Returns:
        (D, H, W) float32 copy of ``image`` with the hidden voxels filled.
    """
    filled = image.astype(np.float32)
    if hidden.any():
        nearest = ndimage.distance_transform_edt(hidden, return_distances=False, return_indices=True)
        filled[hidden] = image[tuple(index[hidden] for index in nearest)]
    return filled
