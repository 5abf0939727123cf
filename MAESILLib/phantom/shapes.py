"""Grids, distance fields and the canvas the sample CT is drawn on.

Every shape is a field of approximate signed distances in mm (negative inside). A voxel's share of a shape
follows from its distance, so edges carry the partial-volume effect of a scanner and are never jagged.
Points are (x, y, z) in mm of the phantom's own frame: x to the patient's left, y to posterior, z to superior.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.interpolate import CubicSpline

Field = np.ndarray
Box = tuple[slice, slice, slice]
Point = tuple[float, float, float]
Rows = Sequence[Sequence[float]] | np.ndarray

FAR_MM = 30.0  # stands for "outside" wherever a field was not computed


@dataclass(frozen=True)
class Grid:
    """A regular grid in the phantom's frame: the coordinates in mm of its planes, rows and columns."""

    z: np.ndarray
    y: np.ndarray
    x: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        return len(self.z), len(self.y), len(self.x)

    @property
    def steps(self) -> tuple[float, float, float]:
        return tuple(float(axis[1] - axis[0]) for axis in (self.z, self.y, self.x))  # type: ignore[return-value]

    @property
    def voxel_mm(self) -> float:
        return float(np.prod(self.steps)) ** (1 / 3)

    @cached_property
    def open(self) -> tuple[Field, Field, Field]:
        """z, y, x as arrays that broadcast to the grid's shape."""
        return self.z[:, None, None], self.y[None, :, None], self.x[None, None, :]

    def box(self, low: Sequence[float] | np.ndarray, high: Sequence[float] | np.ndarray) -> Box:
        """Smallest index box that holds the points between two corners (x, y, z)."""
        bounds = []
        for axis, lower, upper in zip((self.z, self.y, self.x), low[::-1], high[::-1], strict=True):
            step = axis[1] - axis[0]
            first = int(np.floor((lower - axis[0]) / step))
            last = int(np.ceil((upper - axis[0]) / step)) + 1
            bounds.append(slice(min(max(first, 0), len(axis)), min(max(last, 0), len(axis))))
        return bounds[0], bounds[1], bounds[2]

    def part(self, box: Box) -> Grid:
        return Grid(self.z[box[0]], self.y[box[1]], self.x[box[2]])


def interpolate(field: Field, indices: Sequence[np.ndarray]) -> Field:
    """Sample ``field`` linearly on the product of one vector of fractional indices per axis."""
    for axis in reversed(range(field.ndim)):  # rows first, while the array is small: they are the slow ones to gather
        index = np.clip(indices[axis], 0, field.shape[axis] - 1)
        lower = np.minimum(index.astype(np.int64), max(field.shape[axis] - 2, 0))
        shape = [1] * field.ndim
        shape[axis] = -1
        weight = (index - lower).astype(np.float32).reshape(shape)
        below = np.take(field, lower, axis)
        above = np.take(field, np.minimum(lower + 1, field.shape[axis] - 1), axis)
        above -= below
        above *= weight
        above += below
        field = above
    return field


def lattice_noise(rng: np.random.Generator, grid: Grid, pitch_mm: float | Sequence[float]) -> Field:
    """Smooth random field of zero mean and about unit deviation; ``pitch_mm`` is its grain (one, or z, y, x)."""
    pitches = (pitch_mm,) * 3 if isinstance(pitch_mm, int | float) else pitch_mm
    indices = [(axis - axis[0]) / pitch for axis, pitch in zip((grid.z, grid.y, grid.x), pitches, strict=True)]
    shape = [int(np.ceil(index[-1])) + 2 for index in indices]
    white = rng.standard_normal(shape, dtype=np.float32)
    # 0.54 is the deviation of unit noise between the points of a cubic lattice read linearly: (2/3)^(3/2).
    return interpolate(white, indices) / np.float32(0.54)


def smooth_max(first: Field, second: Field, width_mm: float) -> Field:
    """Maximum of two distances, rounded over ``width_mm`` where they meet (polynomial smooth maximum)."""
    overlap = np.maximum(width_mm - np.abs(first - second), 0)
    return np.maximum(first, second) + overlap * overlap * (0.25 / width_mm)


def smooth_min(first: Field, second: Field, width_mm: float) -> Field:
    return -smooth_max(-first, -second, width_mm)


def ellipsoid(grid: Grid, centre: Point, radii: Point, turn: tuple[float, float] = (0.0, 0.0)) -> Field:
    """Distance to an ellipsoid turned about z, then about x, by ``turn`` (radians)."""
    z, y, x = (axis - float(at) for axis, at in zip(grid.open, centre[::-1], strict=True))
    cos_z, sin_z, cos_x, sin_x = math.cos(turn[0]), math.sin(turn[0]), math.cos(turn[1]), math.sin(turn[1])
    along, across = x * cos_z + y * sin_z, y * cos_z - x * sin_z
    across, up = across * cos_x + z * sin_x, z * cos_x - across * sin_x
    return _scaled_distance((along, across, up), radii)


def _scaled_distance(offsets: tuple[Field, ...], radii: Sequence[float | Field]) -> Field:
    # First-order distance to an ellipsoid: k0 (k0 - 1) / k1 with k0 = |p / r| and k1 = |p / r^2|.
    squares = [offset * offset for offset in offsets]
    inverse = [1 / (radius * radius) for radius in radii]
    smallest = min(float(np.min(radius)) for radius in radii)
    k0 = np.sqrt(sum(s * i for s, i in zip(squares, inverse, strict=True)) + 1e-6)
    k1 = np.sqrt(sum(s * (i * i) for s, i in zip(squares, inverse, strict=True)) + 1e-6 / smallest**2)
    return (k0 * (k0 - 1) / k1).astype(np.float32)


def curve(points: Rows, step_mm: float = 6.0) -> np.ndarray:
    """Natural cubic spline through rows of (x, y, z, further values such as radii), about ``step_mm`` apart."""
    knots = np.asarray(points, np.float64)
    length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(knots[:, :3], axis=0), axis=1))])
    count = max(2, int(np.ceil(length[-1] / step_mm)) + 1)
    if len(knots) == 2:
        return knots[0] + np.linspace(0, 1, count)[:, None] * (knots[1] - knots[0])
    return np.asarray(CubicSpline(length, knots, bc_type="natural")(np.linspace(0, length[-1], count)))


@dataclass(frozen=True)
class Tube:
    """A curved rod along the rows (x, y, z) of ``points``.

    ``radii`` holds one radius per point, or two: across ``normal`` (a direction kept along the whole rod, or one
    per point) and along it. ``margin_mm`` is how far outside the rod distances are still computed.
    """

    points: np.ndarray
    radii: np.ndarray
    normal: np.ndarray | None = None
    margin_mm: float = 4.0

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        reach = float(np.max(self.radii)) + self.margin_mm
        return self.points.min(0) - reach, self.points.max(0) + reach


def round_tube(rows: Rows, step_mm: float = 6.0, margin_mm: float = 4.0) -> Tube:
    """Round rod through rows of (x, y, z, radius)."""
    samples = curve(rows, step_mm)
    return Tube(samples[:, :3], np.maximum(samples[:, 3], 0.3), margin_mm=margin_mm)


def flat_tube(rows: Rows, normal: Point, step_mm: float = 6.0, margin_mm: float = 4.0) -> Tube:
    """Flattened rod through rows of (x, y, z, radius across ``normal``, radius along ``normal``)."""
    samples = curve(rows, step_mm)
    return Tube(samples[:, :3], np.maximum(samples[:, 3:5], 0.5), np.asarray(normal, np.float64), margin_mm)


def draw_tube(field: Field, grid: Grid, tube: Tube) -> None:
    """Lower ``field`` (a distance field on ``grid``) to the distance to ``tube``."""
    normals = tube.normal
    for n in range(len(tube.points) - 1):
        start, end = tube.points[n], tube.points[n + 1]
        reach = float(np.max(tube.radii[n : n + 2])) + tube.margin_mm
        box = grid.box(np.minimum(start, end) - reach, np.maximum(start, end) + reach)
        part = field[box]
        if part.size == 0:
            continue
        normal = None if normals is None else (normals[n] if normals.ndim == 2 else normals)
        np.minimum(part, _segment(grid.part(box), start, end, tube.radii[n : n + 2], normal), out=part)


def _segment(grid: Grid, start: np.ndarray, end: np.ndarray, radii: np.ndarray, normal: np.ndarray | None) -> Field:
    axis = (end - start).astype(np.float32)
    squared = float(axis @ axis) or 1e-6
    z, y, x = (a - np.float32(at) for a, at in zip(grid.open, start[::-1], strict=True))
    share = np.clip((x * axis[0] + y * axis[1] + z * axis[2]) / np.float32(squared), 0, 1)
    x, y, z = x - share * axis[0], y - share * axis[1], z - share * axis[2]
    if normal is None:
        return np.sqrt(x * x + y * y + z * z) - (np.float32(radii[0]) + share * np.float32(radii[1] - radii[0]))
    along = axis / np.float32(np.sqrt(squared))
    across = np.cross(along, normal)
    across /= np.linalg.norm(across) + 1e-9
    thick = np.cross(across, along)
    (a0, b0), (a1, b1) = radii
    wide = np.float32(a0) + share * np.float32(a1 - a0)
    deep = np.float32(b0) + share * np.float32(b1 - b0)
    offsets = tuple(x * np.float32(v[0]) + y * np.float32(v[1]) + z * np.float32(v[2]) for v in (across, thick, along))
    return _scaled_distance(offsets, (wide, deep, np.minimum(wide, deep)))


def tubes_field(grid: Grid, tubes: Sequence[Tube]) -> tuple[Box, Field]:
    """Distance field of the union of ``tubes`` in the smallest box that holds them."""
    bounds = [tube.bounds() for tube in tubes]
    box = grid.box(np.min([low for low, _ in bounds], axis=0), np.max([high for _, high in bounds], axis=0))
    part = grid.part(box)
    field = np.full([axis.stop - axis.start for axis in box], FAR_MM, np.float32)
    if field.size:
        for tube in tubes:
            draw_tube(field, part, tube)
    return box, field


@dataclass(frozen=True)
class Tissue:
    """A mean in HU, and how strongly the canvas's soft-tissue grain and finer speckle (unit noise) modulate it."""

    hu: float
    grain: float = 5.0
    speckle: float = 0.0


Value = float | Tissue | Callable[[Box], Field]


class Canvas:
    """The image in HU on its own (fine) grid, painted from fields on the fine grid or on the coarse frame.

    Large organs are shaped once on the coarse frame, the same for every output size, and read linearly here;
    on a 3 mm frame that misplaces a surface of 10 mm radius by 0.1 mm.
    """

    def __init__(self, grid: Grid, frame: Grid, background_hu: float, rng: np.random.Generator) -> None:
        self.grid = grid
        self.frame = frame
        self.voxel_mm = np.float32(grid.voxel_mm)
        self.hu = np.full(grid.shape, background_hu, np.float32)
        self.grain = lattice_noise(rng, grid, 4.5)
        self.speckle = lattice_noise(rng, grid, 2.4)

    def share(self, distance: Field) -> Field:
        """Share of each voxel that lies inside: a linear edge one voxel wide."""
        share = distance * (np.float32(-1) / self.voxel_mm)
        share += np.float32(0.5)
        return np.clip(share, 0, 1, out=share)

    def sheet_share(self, distance: Field, thickness_mm: float) -> Field:
        """Share of each voxel filled by a sheet around ``distance`` = 0, right for sheets thinner than a voxel."""
        half = np.float32(thickness_mm / 2)
        return self.share(distance - half) - self.share(distance + half)

    def fine(self, field: Field, box: Box | None = None) -> Field:
        """Read a field of the coarse frame on the fine grid (or on ``box`` of it)."""
        axes = (self.grid.z, self.grid.y, self.grid.x)
        if box is not None:
            axes = tuple(axis[part] for axis, part in zip(axes, box, strict=True))  # type: ignore[assignment]
        frame = (self.frame.z, self.frame.y, self.frame.x)
        indices = [(a - f[0]) / (f[1] - f[0]) for a, f in zip(axes, frame, strict=True)]
        return interpolate(field, indices)

    def box_of(self, field: Field, margin_mm: float = 1.0) -> Box:
        """Fine box around the part of a coarse field that lies inside (below ``margin_mm``)."""
        inside = field < margin_mm + float(self.voxel_mm)
        corners = []
        for axis, other in ((self.frame.x, (0, 1)), (self.frame.y, (0, 2)), (self.frame.z, (1, 2))):
            hit = np.flatnonzero(inside.any(other))
            step = axis[1] - axis[0]
            corners.append((axis[hit[0]] - step, axis[hit[-1]] + step) if len(hit) else (0.0, -1e4))
        return self.grid.box([c[0] for c in corners], [c[1] for c in corners])

    def blend(self, box: Box, share: Field, value: float | np.floating | Field) -> None:
        part = self.hu[box]
        change = value - part
        change *= share
        part += change

    def paint(self, field: Field, value: Value, shell_mm: float = 0.0, shell: float | None = None) -> None:
        """Paint the inside of a coarse field, eroded by ``shell_mm``; ``value`` is HU, a tissue or HU by box.

        ``shell`` is the HU of the eroded rim; without it the rim stays as it was.
        """
        box = self.box_of(field, 0.0 if shell is not None else -shell_mm)
        distance = self.fine(field, box)
        if not distance.size:
            return
        if shell is not None:
            self.blend(box, self.share(distance), np.float32(shell))
        distance += np.float32(shell_mm)
        self.blend(box, self.share(distance), self.value(value, box))

    def paint_tubes(self, tubes: Sequence[Tube], value: Value, shell_mm: float = 0.0) -> None:
        """Paint the union of ``tubes``, eroded by ``shell_mm``."""
        box, distance = tubes_field(self.grid, tubes)
        if distance.size:
            self.blend(box, self.share(distance + np.float32(shell_mm)), self.value(value, box))

    def value(self, value: Value, box: Box) -> float | np.floating | Field:
        if isinstance(value, Tissue):
            hu = self.grain[box] * np.float32(value.grain)
            hu += np.float32(value.hu)
            return hu + np.float32(value.speckle) * self.speckle[box] if value.speckle else hu
        return value(box) if callable(value) else np.float32(value)
