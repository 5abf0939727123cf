"""Skin, fat and muscles of the sample CT."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter, gaussian_filter1d
from scipy.spatial import cKDTree

from MAESILLib.phantom.shapes import FAR_MM, Box, Canvas, Field, Tube, flat_tube, lattice_noise, round_tube, smooth_max
from MAESILLib.phantom.trunk import ANGLES, PolarSurface, Trunk, smooth_step


def paint_body(canvas: Canvas, trunk: Trunk) -> None:
    """Skin, fat and the muscles of the trunk; then the chest wall and the fat that fills the cavity."""
    rng = trunk.patient.rng(3)
    septa = np.maximum(lattice_noise(rng, canvas.grid, (9, 5, 5)) - 0.9, 0)
    streaks = np.maximum(lattice_noise(rng, canvas.grid, (14, 3.5, 3.5)) - 1.1, 0)

    def fat(box: Box) -> Field:
        return -105 + 5 * canvas.grain[box] + 22 * septa[box]

    def muscle(box: Box) -> Field:
        return 54 + 5 * canvas.grain[box] - 40 * streaks[box]

    canvas.paint(trunk.body, fat, shell_mm=1.8, shell=15.0)
    inside = trunk.body + 5.0
    for layer in _muscle_layers(trunk):
        canvas.paint(smooth_max(layer, inside, 2.0), muscle)
    canvas.paint(_shoulder_muscles(trunk), muscle)
    for tubes in _muscle_tubes(trunk):
        canvas.paint_tubes(tubes, muscle)
    ribs_between = trunk.distance(trunk.wall)
    canvas.paint(ribs_between, lambda box: muscle(box) - 14)
    canvas.paint(trunk.cavity - 1.2, fat)


def _muscle_layers(trunk: Trunk) -> list[Field]:
    """Sheets of muscle: angle window, height window, distance from the rib cage, thickness (mm)."""
    sheets: list[tuple[tuple[float, float], tuple[float, float], float, float]] = [
        ((0.42, 1.15), (140, 200), 1.2, 7),  # pectoralis minor
        ((0.10, 1.35), (112, 214), 7.5, 13),  # pectoralis major
        ((1.05, 2.25), (40, 195), 1.0, 6),  # serratus anterior
        ((1.55, 2.85), (-40, 178), 7.4, 10),  # latissimus dorsi
        ((0.03, 0.60), (-60, 84), 1.0, 9),  # rectus abdominis
        ((0.50, 2.50), (-60, 70), 1.0, 7),  # external oblique
    ]
    muscle = trunk.patient.muscle
    fields = [
        layer
        for (low, high), span, start, thickness in sheets
        for layer in _sheet(trunk, trunk.wall, (low, high), span, start, thickness * muscle)
    ]
    shoulder = scapula_surface(trunk)
    fields += _sheet(trunk, shoulder, (1.45, 2.66), (118, 232), -10.5, 9.0 * muscle)  # subscapularis
    fields += _sheet(trunk, shoulder, (1.50, 2.68), (116, 226), 2.2, 15.0 * muscle)  # infraspinatus, teres
    fields += _sheet(trunk, trunk.skin, (2.2, 3.3), (85, 300), -16.0, 8.0 * muscle)  # trapezius
    return fields


def _sheet(
    trunk: Trunk,
    base: PolarSurface,
    angles: tuple[float, float],
    span: tuple[float, float],
    start: float,
    thickness: float,
) -> list[Field]:
    """A lens-shaped sheet of muscle between two offsets of ``base``, one on each side of the body."""
    z, angle = base.heights[:, None], np.abs(ANGLES)[None]
    across = np.clip((angle - angles[0]) / (angles[1] - angles[0]), 0, 1)
    along = np.clip((z - span[0]) / (span[1] - span[0]), 0, 1)
    lens = np.sqrt(np.maximum(np.sin(np.pi * across), 0)) * np.sqrt(np.maximum(np.sin(np.pi * along), 0))
    if angles[1] > np.pi:  # a sheet that crosses the midline behind
        lens = np.sqrt(np.clip((angle - angles[0]) / 0.5, 0, 1)) * np.sqrt(smooth_step(z, span[0], span[0] + 40))
    lens = gaussian_filter1d(lens, 1.5, axis=1)
    inner = trunk.offset_distance(base.grown(start - 1.5 * (1 - lens)))
    outer = trunk.offset_distance(base.grown(start + thickness * lens - 2.5 * (lens < 0.12)))
    return [np.maximum(-inner, outer)]


def scapula_surface(trunk: Trunk) -> PolarSurface:
    """The curved sheet the shoulder blade lies in: close to the ribs behind, away from them at the shoulder."""
    z, angle = trunk.wall.heights[:, None], np.abs(ANGLES)[None]
    lift = 30 * smooth_step(angle, 2.45, 1.7) * smooth_step(z, 150, 212)
    offset = np.minimum(13 + lift, np.maximum(trunk.skin.radii - trunk.wall.radii - 14, 8))
    return trunk.wall.grown(gaussian_filter(offset, 2, mode=("nearest", "wrap")))


def _shoulder_muscles(trunk: Trunk) -> Field:
    """Muscle bellies that fill the shoulders: Voronoi cells drawn out along z, with fat between and in some."""
    frame = trunk.frame
    z, _, x = frame.open
    bulk = smooth_max(trunk.body + 8, 8 - trunk.distance(trunk.wall), 4.0)
    bulk = smooth_max(bulk, np.maximum(180 - z - 0.12 * np.abs(x), 52 - np.abs(x)), 10.0)
    places = np.argwhere(bulk < 4)
    points = np.stack([np.abs(frame.x[places[:, 2]] + 2), frame.y[places[:, 1]], 0.4 * frame.z[places[:, 0]]], 1)
    rng = trunk.patient.rng(4)
    points[:, :2] += 6 * np.sin(points[:, 1::-1] / 12)  # bellies with curved borders
    low, high = points.min(0), points.max(0)
    pitch = 32.0
    knots = np.stack(np.meshgrid(*(np.arange(a, b + pitch, pitch) for a, b in zip(low, high, strict=True))), -1)
    knots = knots.reshape(-1, 3) + rng.uniform(-0.42, 0.42, (knots.size // 3, 3)) * pitch
    near, which = cKDTree(knots).query(points, k=2)
    belly = 1.1 - 0.5 * (near[:, 1] - near[:, 0])
    belly[(rng.random(len(knots)) < 0.2)[which[:, 0]]] = 5.0
    field = np.full(frame.shape, FAR_MM, np.float32)
    place = tuple(places.T)
    field[place] = np.maximum(bulk[place], belly)
    return field


def _muscle_tubes(trunk: Trunk) -> list[list[Tube]]:
    patient = trunk.patient
    heights = np.linspace(-8, 248, 14)
    x, y = patient.spine(heights)
    m = patient.muscle
    groups: list[list[Tube]] = []
    for side in (-1.0, 1.0):
        rows = np.stack([x + side * 25, y + 43, heights, np.full(14, 21 * m), np.full(14, 13.5 * m)], 1)
        erector = flat_tube(rows, (side * 0.25, 1, 0), 12)
        multifidus = np.stack([x + side * 10, y + 38, heights, np.full(14, 9.0), np.full(14, 13.0)], 1)
        groups += [[erector], [flat_tube(multifidus, (0, 1, 0), 12)]]
        neck = [(side * 38, 12, 252, 12.0), (side * 44, 14, 232, 9.0), (side * 52, 12, 214, 3.0)]
        longus = [(side * 9, 6, 252, 7.0), (side * 11, 17, 220, 5.0), (side * 10, 25, 195, 2.0)]
        mastoid = [(side * 30, -26, 252, 9.0), (side * 20, -38, 226, 7.0), (side * 12, -42, 208, 4.0)]
        lifter = [(side * 36, 60, 252, 12.0), (side * 48, 68, 228, 10.0), (side * 66, 76, 205, 5.0)]
        groups += [[round_tube(rows)] for rows in (neck, longus, mastoid, lifter)]
    return groups
