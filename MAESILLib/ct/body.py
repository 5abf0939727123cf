"""Which voxels of a CT belong to the patient."""

import numpy as np
from scipy import ndimage

from MAESILLib.runtime.errors import InputError

TISSUE_HU = -500
# Most of a lung lies above this, most of the air outside the patient below.
LUNG_HU = -950
# A second limb counts as body; an infusion line or a piece of the table does not.
SMALLEST_SHARE = 0.2
SMALLEST_LUNG_PIXELS = 50
# Radii in voxels. Opening cuts off table shells and clothes, which are thinner than a thin chest wall.
OPENING_RADIUS = 1
CLOSING_RADIUS = 2
SEALING_RADIUS = 4


def body_mask(hu: np.ndarray) -> np.ndarray:
    """Return the voxels of the patient: tissue, lungs and bowel gas, without table and air outside.

    Tissue above -500 HU, opened to cut off the table; its large components; what these enclose in an
    axial slice; and lungs that a border of the volume, or a chest wall too thin to see, leaves open.

    Args:
        hu: (D, H, W) CT in Hounsfield units, D along the body axis, voxels of about 1 to 3 mm.

    Returns:
        (D, H, W) bool; all False where there is no tissue.

    Raises:
        InputError: ``hu`` is not 3D.
    """
    if hu.ndim != 3:
        raise InputError(f"a CT volume has three axes, this array has shape {hu.shape}", "pass a (D, H, W) array")
    # What a lateral border cuts goes on beyond it: a rest of chest wall there must survive the opening.
    margin = SEALING_RADIUS
    tissue = np.pad(hu > TISSUE_HU, ((0, 0), (margin, margin), (margin, margin)), mode="edge")
    core = _large_components(_erode(tissue, OPENING_RADIUS))
    body = _dilate(core, OPENING_RADIUS + 1) & tissue
    body |= _close(body, CLOSING_RADIUS)
    sealed = _close(body, SEALING_RADIUS)
    body, sealed = (mask[:, margin:-margin, margin:-margin] for mask in (body, sealed))
    return body | _pockets(body) | _open_lungs(hu, sealed)


def _large_components(mask: np.ndarray) -> np.ndarray:
    """Keep the largest 6-connected component and those at least ``SMALLEST_SHARE`` of its size."""
    labels, count = ndimage.label(mask)
    if count == 0:
        return mask
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return (sizes >= SMALLEST_SHARE * sizes.max())[labels]


def _pockets(body: np.ndarray) -> np.ndarray:
    """Return what ``body`` encloses in its axial slices."""
    labels, faces_touched = _label_slices(~body)
    enclosed = faces_touched == 0
    enclosed[0] = False
    return enclosed[labels]


def _open_lungs(hu: np.ndarray, sealed: np.ndarray) -> np.ndarray:
    """Return the lungs that the body enclosed only once its gaps were ``sealed``, or that a border cuts.

    A border that cuts a lung cuts it on one side; the air outside the patient lies round a corner.
    """
    labels, faces_touched = _label_slices(~sealed)
    sizes = np.bincount(labels.ravel(), minlength=len(faces_touched))
    aerated = np.bincount(labels[hu > LUNG_HU], minlength=len(faces_touched))
    is_lung = (faces_touched <= 1) & (2 * aerated > sizes) & (sizes >= SMALLEST_LUNG_PIXELS)
    is_lung[0] = False
    lungs = is_lung[labels]
    if lungs.any():
        lungs |= _dilate(lungs, SEALING_RADIUS) & sealed & (hu > LUNG_HU)
    return lungs


def _label_slices(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Label the 4-connected components of each axial slice; count the lateral faces each one touches."""
    in_plane = ndimage.generate_binary_structure(3, 1)
    in_plane[0] = in_plane[2] = False
    labels, count = ndimage.label(mask, in_plane)
    faces_touched = np.zeros(count + 1, np.int8)
    for face in (labels[:, 0], labels[:, -1], labels[:, :, 0], labels[:, :, -1]):
        faces_touched[np.unique(face)] += 1
    return labels, faces_touched


def _close(mask: np.ndarray, radius: int) -> np.ndarray:
    return _erode(_dilate(mask, radius), radius)


def _dilate(mask: np.ndarray, radius: int) -> np.ndarray:
    """Dilate by a ball of the city-block distance; shifted copies are faster than scipy's morphology."""
    for _ in range(radius):
        grown = mask.copy()
        for axis in range(3):
            target, source = np.moveaxis(grown, axis, 0), np.moveaxis(mask, axis, 0)
            target[1:] |= source[:-1]
            target[:-1] |= source[1:]
        mask = grown
    return mask


def _erode(mask: np.ndarray, radius: int) -> np.ndarray:
    """Erode likewise; what lies outside the volume does not erode, because volumes end within the patient."""
    return ~_dilate(~mask, radius)
