"""The patient of the sample CT: individual variation, body surfaces, muscles and the spaces inside the chest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.interpolate import PchipInterpolator
from scipy.ndimage import gaussian_filter

from MAESILLib.phantom.shapes import (
    Field,
    Grid,
    Tube,
    draw_tube,
    ellipsoid,
    flat_tube,
    lattice_noise,
    smooth_max,
)

FIELD_MM = (240.0, 288.0, 384.0)  # (z, y, x) field of view the anatomy is laid out for
AXIS_Y = 10.0  # the y of the vertical axis that polar radii are measured from
ANGLES = np.linspace(-np.pi, np.pi, 241)

# Half-width, anterior and posterior reach from the axis, in mm, by height z.
CAVITY_ROWS = np.array(
    [
        (-9, 125, 99, 63),
        (40, 132, 96, 69),
        (80, 133, 92, 72),
        (120, 128, 86, 72),
        (160, 114, 74, 68),
        (185, 98, 62, 61),
        (205, 78, 48, 51),
        (218, 58, 34, 43),
        (226, 40, 18, 33),
        (231, 16, 6, 12),
        (249, 3, 3, 3),
    ],
    float,
)
BODY_ROWS = np.array(
    [
        (-9, 156, 116, 100),
        (50, 161, 115, 103),
        (100, 163, 113, 104),
        (150, 166, 103, 104),
        (190, 166, 85, 101),
        (215, 157, 69, 94),
        (232, 138, 58, 86),
        (249, 112, 50, 78),
    ],
    float,
)
SPINE_ROWS = np.array([(-9, 37), (0, 38), (60, 46), (130, 50), (190, 42), (240, 26), (252, 21)], float)


@dataclass(frozen=True)
class Patient:
    """What differs between seeds: sizes in mm or as factors, HU, and the seed of every random texture."""

    width: float
    depth: float
    fat_mm: float
    muscle: float
    kyphosis: float
    scoliosis_mm: float
    dome_right_mm: float
    dome_left_mm: float
    heart: float
    contrast_hu: float
    marrow_hu: float
    noise_hu: float
    nodule: bool
    seed: int

    @classmethod
    def draw(cls, seed: int) -> Patient:
        rng = np.random.default_rng([seed, 0])
        return cls(
            width=rng.uniform(0.95, 1.03),
            depth=rng.uniform(0.95, 1.03),
            fat_mm=rng.uniform(-2, 7),
            muscle=rng.uniform(0.85, 1.15),
            kyphosis=rng.uniform(0.85, 1.1),
            scoliosis_mm=rng.uniform(-3, 3),
            dome_right_mm=rng.uniform(91, 99),
            dome_left_mm=rng.uniform(80, 87),
            heart=rng.uniform(0.95, 1.07),
            contrast_hu=rng.uniform(130, 180),
            marrow_hu=rng.uniform(150, 220),
            noise_hu=rng.uniform(9, 12),
            nodule=bool(rng.random() < 0.5),
            seed=seed,
        )

    def rng(self, purpose: int) -> np.random.Generator:
        """Random numbers for one purpose: a change in one texture leaves all others as they were."""
        return np.random.default_rng([self.seed, purpose])

    def spine(self, z: float | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """x and y of the centre of the vertebral bodies at height z."""
        y = PchipInterpolator(SPINE_ROWS[:, 0], SPINE_ROWS[:, 1])(z)
        return self.scoliosis_mm * np.sin(np.asarray(z) / 45), 40 + (y - 40) * self.kyphosis


def smooth_step(value: Field, low: float, high: float) -> Field:
    """0 below ``low``, 1 above ``high`` (or the reverse when low > high), smooth between."""
    share = np.clip((value - low) / (high - low), 0, 1)
    return share * share * (3 - 2 * share)


class PolarSurface:
    """A closed surface around the body axis: its radius in mm on a table of (height, angle).

    The angle is 0 in front, positive to the patient's left, and +-pi at the back.
    """

    def __init__(self, heights: np.ndarray, radii: np.ndarray) -> None:
        self.heights = heights
        self.radii = radii

    @classmethod
    def from_rows(cls, heights: np.ndarray, rows: np.ndarray, powers: tuple[float, float]) -> PolarSurface:
        """Superellipses given by rows of (z, half-width, anterior reach, posterior reach)."""
        width, front, back = (PchipInterpolator(rows[:, 0], rows[:, n])(heights)[:, None] for n in (1, 2, 3))
        sine, cosine = np.abs(np.sin(ANGLES))[None], np.cos(ANGLES)[None]
        reach = np.where(cosine > 0, front, back)
        power = np.where(cosine > 0, *powers)
        return cls(heights, ((sine / width) ** power + (np.abs(cosine) / reach) ** power) ** (-1 / power))

    def grown(self, offset: float | np.ndarray) -> PolarSurface:
        return PolarSurface(self.heights, self.radii + offset)

    def at(self, angle: np.ndarray | float, z: np.ndarray | float) -> np.ndarray:
        """Radius at the given angles and heights (broadcast)."""
        row = np.clip((np.asarray(z) - self.heights[0]) / (self.heights[1] - self.heights[0]), 0, len(self.heights) - 2)
        column = (np.mod(np.asarray(angle) + np.pi, 2 * np.pi)) / (ANGLES[1] - ANGLES[0])
        i, j = row.astype(int), np.minimum(column.astype(int), len(ANGLES) - 2)
        u, v = row - i, column - j
        low = self.radii[i, j] * (1 - v) + self.radii[i, j + 1] * v
        high = self.radii[i + 1, j] * (1 - v) + self.radii[i + 1, j + 1] * v
        return low * (1 - u) + high * u

    def point(self, angle: np.ndarray | float, z: np.ndarray | float, offset: float = 0.0) -> np.ndarray:
        """Points (x, y, z) on the surface moved outwards by ``offset``."""
        radius = self.at(angle, z) + offset
        z = np.broadcast_to(z, np.shape(radius))
        return np.stack([radius * np.sin(angle), AXIS_Y - radius * np.cos(angle), z], -1)


@dataclass(frozen=True)
class Trunk:
    """The body on the coarse frame: distance fields (D, H, W) in mm and the surfaces they come from."""

    patient: Patient
    frame: Grid
    radius: Field  # of every column of the frame, (1, H, W)
    column: Field  # fractional index of its angle in ANGLES, (H, W)
    chest: PolarSurface  # inner surface of the rib cage
    wall: PolarSurface  # outer surface of the rib cage
    skin: PolarSurface
    cavity: Field
    diaphragm: Field  # negative below the diaphragm
    body: Field

    def distance(self, surface: PolarSurface) -> Field:
        """Distance to a polar surface, first order: radial distance over the length of its gradient."""
        return _polar_distance(surface, self.radius, self.column)

    def offset_distance(self, surface: PolarSurface) -> Field:
        """Radial distance without the slope correction: for thin layers that follow one another."""
        return self.radius - _on_columns(surface.radii, self.column)


def _on_columns(table: np.ndarray, column: Field) -> Field:
    lower = np.minimum(column.astype(np.int64), table.shape[1] - 2)
    weight = (column - lower).astype(np.float32)
    table = table.astype(np.float32)
    below = table[:, lower]
    return below + weight * (table[:, lower + 1] - below)


def _polar_distance(surface: PolarSurface, radius: Field, column: Field) -> Field:
    by_z, by_angle = np.gradient(surface.radii, surface.heights[1] - surface.heights[0], ANGLES[1] - ANGLES[0])
    slope = np.sqrt(1 + (by_angle / surface.radii) ** 2 + by_z**2)
    return (radius - _on_columns(surface.radii, column)) / _on_columns(slope, column)


def coarse_frame(step_mm: float = 3.0) -> Grid:
    """The frame on which organs are shaped: the reference field of view and a margin."""
    axes = []
    for extent, low in zip(FIELD_MM, (0.0, -FIELD_MM[1] / 2, -FIELD_MM[2] / 2), strict=True):
        count = int(extent / step_mm) + 5
        axes.append((low - 2 * step_mm + step_mm * np.arange(count)).astype(np.float32))
    return Grid(*axes)


def build_trunk(patient: Patient) -> Trunk:
    """Lay out the body surface, the rib cage and the diaphragm of ``patient``."""
    frame = coarse_frame()
    heights = frame.z.astype(float)
    scale = np.array([1, patient.width, patient.depth, 1])
    chest = PolarSurface.from_rows(heights, CAVITY_ROWS * scale, (2.25, 2.8))
    wobble = _surface_noise(patient.rng(1), chest.radii.shape)
    chest = chest.grown(1.6 * wobble)
    wall = chest.grown(9.0)
    skin = _skin(patient, heights, scale, wall, wobble)
    _, y, x = frame.open
    radius = np.hypot(x, y - AXIS_Y).astype(np.float32)
    angle = np.arctan2(x, AXIS_Y - y)[0]
    column = ((angle + np.pi) / (ANGLES[1] - ANGLES[0])).astype(np.float32)
    cavity = _polar_distance(chest, radius, column)
    return Trunk(
        patient,
        frame,
        radius,
        column,
        chest,
        wall,
        skin,
        cavity,
        _diaphragm(patient, frame, radius, angle, chest),
        _polar_distance(skin, radius, column),
    )


def _surface_noise(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    white = gaussian_filter(rng.standard_normal(shape), (7, 10), mode=("nearest", "wrap"))
    white[:, -1] = white[:, 0]
    return white / white.std()


def _skin(
    patient: Patient, heights: np.ndarray, scale: np.ndarray, wall: PolarSurface, wobble: np.ndarray
) -> PolarSurface:
    skin = PolarSurface.from_rows(heights, BODY_ROWS * scale, (2.3, 2.6)).radii
    z, angle = heights[:, None], np.abs(ANGLES)[None]
    breast = 7 * np.exp(-(((angle - 0.62) / 0.32) ** 2) - ((z - 138) / 32) ** 2)
    sulcus = -4 * np.exp(-((angle / 0.12) ** 2)) * smooth_step(z, 80, 130)
    furrow = -5 * np.exp(-(((np.pi - angle) / 0.10) ** 2))
    skin = skin + breast + sulcus + furrow + patient.fat_mm * 0.8 + 1.0 * np.roll(wobble, 60, axis=1)
    skin = np.maximum(skin, wall.radii + 8)
    skin = gaussian_filter(skin, (2, 3), mode=("nearest", "wrap"))
    skin[:, -1] = skin[:, 0]
    return PolarSurface(heights, skin)


def _diaphragm(patient: Patient, frame: Grid, radius: Field, angle: Field, chest: PolarSurface) -> Field:
    """Two domes that rise steeply from the costal margin; a height map z(y, x), made a distance by its slope."""
    _, y, x = (axis[0] for axis in frame.open)
    depth = chest.at(angle, 62.0) - radius[0]
    margin = 42 + 27 * np.cos(angle)
    top = patient.dome_left_mm + (patient.dome_right_mm - patient.dome_left_mm) * smooth_step(x, 10, -35)
    top = top - 7 * np.exp(-(((x - 12) / 26) ** 2)) - 10 * np.exp(-((x / 25) ** 2) - ((y - 55) / 30) ** 2)
    rise = (1 - (1 - np.clip(depth / 84, 0, 1)) ** 2.2) ** 0.85
    height = margin + (top - margin) * rise
    height = height + 1.5 * lattice_noise(patient.rng(2), Grid(frame.z[:2], frame.y, frame.x), 28.0)[0]
    height = gaussian_filter(height, 1.0)
    by_y, by_x = np.gradient(height, 3.0)
    return ((frame.open[0] - height) / np.sqrt(1 + by_y**2 + by_x**2)).astype(np.float32)


def spine_tubes(trunk: Trunk) -> list[Tube]:
    """What the spine takes from the chest: the bodies in front and the arches behind, as two rods."""
    heights = np.linspace(-10, 250, 14)
    x, y = trunk.patient.spine(heights)
    ones = np.ones(14)
    bodies = np.stack([x, y + 2, heights, 20 * ones, 17 * ones], 1)
    arches = np.stack([x, y + 30, heights, 31 * ones, 19 * ones], 1)
    return [flat_tube(bodies, (0, 1, 0), 14, 14), flat_tube(arches, (0, 1, 0), 14, 14)]


def lung_field(trunk: Trunk, mediastinum: Field) -> Field:
    """Both lungs: inside the chest, above the diaphragm, outside the (distance of the) mediastinum."""
    field = smooth_max(trunk.cavity + 1.8, -trunk.diaphragm + 1.5, 5.0)
    return smooth_max(field, -mediastinum, 7.0)


def mediastinum_field(trunk: Trunk, solids: Sequence[Field], tubes: Sequence[Tube]) -> Field:
    """Union of heart, vessels, gullet, windpipe and spine, with creases filled and a layer of fat around it."""
    frame = trunk.frame
    field = np.full(frame.shape, 25.0, np.float32)
    for solid in solids:
        np.minimum(field, solid, out=field)
    for tube in [*tubes, *spine_tubes(trunk)]:
        draw_tube(field, frame, tube)
    z, y, x = frame.open
    half = 2.0 + 13 * smooth_step(z, 165, 205) + 7 * smooth_step(z, 112, 88)
    septum = smooth_max(np.abs(x - 3 - 0.03 * (z - 140)) - half, y + 14 - 0 * z, 6.0)
    np.minimum(field, septum.astype(np.float32), out=field)
    behind = smooth_max(np.abs(x - 8) - 9, np.maximum(z - 128, -8 - y), 8.0)  # the lungs do not meet behind the heart
    np.minimum(field, behind.astype(np.float32), out=field)
    pad = ellipsoid(frame, (52, -62, 84), (30, 22, 16))
    np.minimum(field, pad, out=field)
    return gaussian_filter(field, 1.1, mode="nearest") - 3.0
