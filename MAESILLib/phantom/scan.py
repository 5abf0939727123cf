"""The scanner of the sample CT: couch, point spread and noise."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter, gaussian_filter1d

from MAESILLib.phantom.shapes import Canvas, Field
from MAESILLib.phantom.trunk import Trunk, smooth_step

PSF_VOXELS = 0.48  # with the one-voxel edges of the painting about 0.6 in all


def paint_couch(canvas: Canvas, trunk: Trunk) -> None:
    """A shallow trough under the patient: a carbon shell around light foam, as wide as the field of view."""
    _, y, x = canvas.grid.open
    heights = np.linspace(40, 200, 17)
    rest = float(np.max(trunk.skin.point(np.pi - 0.2, heights)[:, 1]))  # where the back touches
    surface = rest + 3 - 0.0011 * x * x
    slope = np.sqrt(1 + (0.0022 * x) ** 2)
    top, bottom = (surface - y) / slope, (y - surface - 17 - 0.0003 * x * x) / slope
    rim = np.abs(x) - 300
    couch = np.maximum(np.maximum(top, bottom), rim)
    box = canvas.grid.box((-304, rest - 110, canvas.grid.z[0]), (304, rest + 24, canvas.grid.z[-1]))
    couch = couch[:, box[1], box[2]].astype(np.float32)
    canvas.blend(box, canvas.share(couch), -940.0)
    canvas.blend(box, canvas.sheet_share(couch + np.float32(1.2), 2.4), 320.0)


def scan(canvas: Canvas, trunk: Trunk) -> np.ndarray:
    """The painted anatomy as a scanner shows it: blurred, noisy, clipped, in whole HU (int16)."""
    rng = trunk.patient.rng(50)
    image = gaussian_filter(canvas.hu, PSF_VOXELS, truncate=3.0)
    noise = gaussian_filter(rng.standard_normal(image.shape, dtype=np.float32), 0.62, truncate=3.0)
    noise *= canvas.fine(_noise_level(trunk)) / np.float32(noise[:: max(1, len(noise) // 8)].std())
    image += noise
    _add_streaks(image, canvas, trunk, rng)
    return np.rint(np.clip(image, -1024, 3071)).astype(np.int16)


def _noise_level(trunk: Trunk) -> Field:
    """Deviation of the noise in HU: rays through much tissue carry fewer photons."""
    depth = np.maximum(-trunk.body, 0)
    depth = gaussian_filter(depth, 2.0)
    level = 0.45 + 0.55 * smooth_step(depth, 0, 90)
    shoulders = 1 + 0.35 * smooth_step(trunk.frame.open[0], 185, 225) * (depth > 0)
    return (trunk.patient.noise_hu * 1.15 * level * shoulders).astype(np.float32)


def _add_streaks(image: np.ndarray, canvas: Canvas, trunk: Trunk, rng: np.random.Generator) -> None:
    """Horizontal streaks where the rays cross both shoulders."""
    top = canvas.grid.z > 188
    if not top.any():
        return
    box = (top, slice(None), slice(None))
    streaks = rng.standard_normal(image[box].shape, dtype=np.float32)
    streaks = gaussian_filter1d(streaks, 14.0 / canvas.grid.steps[2], axis=2, truncate=2.5)
    streaks /= streaks.std()
    first = int(np.flatnonzero(top)[0])
    region = (slice(first, len(top)), slice(0, image.shape[1]), slice(0, image.shape[2]))
    strength = 8 * smooth_step(canvas.grid.open[0][top], 190, 232)
    image[box] += strength * streaks * canvas.share(canvas.fine(trunk.body, region))
