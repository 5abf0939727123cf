"""Spine, ribs, costal cartilage, breastbone, collarbones and shoulder blades of the sample CT."""

from __future__ import annotations

import numpy as np

from MAESILLib.phantom.muscles import scapula_surface
from MAESILLib.phantom.shapes import (
    Canvas,
    Tissue,
    Tube,
    curve,
    flat_tube,
    round_tube,
    smooth_max,
    tubes_field,
)
from MAESILLib.phantom.trunk import ANGLES, AXIS_Y, PolarSurface, Trunk, smooth_step

CORTEX_HU = 1180.0
CARTILAGE_HU = 105.0
DISC_HU = 88.0

# Rib 1 to 12: descent from the spine to the end of the bone, angle of that end (0 = front),
# height of the attachment of its cartilage at the breastbone (0: none).
RIBS = [
    (33, 0.72, 196),
    (54, 0.52, 161),
    (66, 0.47, 146),
    (73, 0.47, 131),
    (77, 0.52, 117),
    (79, 0.62, 105),
    (78, 0.78, 96),
    (72, 0.98, 0),
    (64, 1.18, 0),
    (54, 1.38, 0),
    (36, 1.85, 0),
    (20, 2.30, 0),
]


def vertebra_height(level: float) -> float:
    """Height z of the centre of thoracic vertebra ``level`` (0 is C7, 13 is L1)."""
    return 228 - 17.2 * (level - 1) - 0.21 * (level - 1) * abs(level - 1)


def paint_skeleton(canvas: Canvas, trunk: Trunk) -> None:
    """All bones; the spinal canal last, because it lies inside the arches."""
    marrow = Tissue(trunk.patient.marrow_hu, 22, 30)
    ribs, cartilage = _ribs(trunk)
    canvas.paint_tubes(cartilage, Tissue(CARTILAGE_HU, 10))
    _paint_bone(canvas, ribs, 1.25, marrow)
    _paint_bone(canvas, _sternum(trunk), 1.1, Tissue(marrow.hu - 40, 22, 30))
    _paint_bone(canvas, _clavicles(trunk), 1.7, marrow)
    _paint_scapulae(canvas, trunk, marrow)
    _paint_spine(canvas, trunk, marrow)


def _paint_bone(canvas: Canvas, tubes: list[Tube], cortex_mm: float, marrow: Tissue) -> None:
    box, distance = tubes_field(canvas.grid, tubes)
    canvas.blend(box, canvas.share(distance), np.float32(CORTEX_HU))
    canvas.blend(box, canvas.share(distance + np.float32(cortex_mm)), canvas.value(marrow, box))


def _ribs(trunk: Trunk) -> tuple[list[Tube], list[Tube]]:
    bones, cartilages = [], []
    previous_end = previous_joint = np.zeros(3)
    rng = trunk.patient.rng(10)
    for side in (-1.0, 1.0):
        for n, (descent, end_angle, attach) in enumerate(RIBS, start=1):
            shift = rng.normal(0, 0.8, 2)
            path = _rib_path(trunk, side, n, descent + shift[0], end_angle)
            bones.append(_rib_tube(path, n))
            if n > 10:
                continue
            end = path[-1]
            if attach:
                joint = trunk.chest.point(side * (0.20 if attach > 100 else 0.12), attach + shift[1], 7.0)
            else:
                joint = previous_end * 0.55 + previous_joint * 0.45
            middle = trunk.chest.point(
                np.arctan2((end[0] + joint[0]) / 2, AXIS_Y - (end[1] + joint[1]) / 2),
                min(end[2], joint[2]) + 0.30 * abs(end[2] - joint[2]),
                5.0,
            )
            size = 6.0 if n < 8 else 4.5
            rows = [(*end, size, 4.6), (*middle, size, 4.8), (*joint, size, 5.0)]
            cartilages.append(flat_tube(rows, (0.3 * side, -1, 0.2), 8))
            previous_end, previous_joint = end, joint
    return bones, cartilages


def _rib_path(trunk: Trunk, side: float, n: int, descent: float, end_angle: float) -> np.ndarray:
    """Centre line: head at the vertebral body, tubercle at the transverse process, then along the chest wall."""
    z = vertebra_height(n) + 3
    x, y = trunk.patient.spine(z)
    head = np.array([x + side * (15 + 0.4 * n), y + 9, z])
    tubercle = np.array([x + side * (30 + 0.2 * n), y + 24, z + 1])
    share = np.linspace(0, 1, 16)
    angles = side * (2.58 + (end_angle - 2.58) * share)
    heights = z - 3 - (descent - 3) * (0.82 * share + 0.18 * share**2.2)
    shaft = trunk.chest.point(angles, heights, 4.7)
    return curve(np.vstack([head, tubercle, shaft]), 4.5 if n > 1 else 3.5)


def _rib_tube(path: np.ndarray, n: int) -> Tube:
    share = np.linspace(0, 1, len(path))
    outward = np.stack([path[:, 0], path[:, 1] - AXIS_Y, np.zeros(len(path))], 1)
    outward /= np.linalg.norm(outward, axis=1, keepdims=True)
    outward[:, 2] = 0.25 if n > 1 else 1.6  # the first rib lies flat
    neck = smooth_step(share, 0.0, 0.12)
    tip = smooth_step(share, 1.0, 0.9) if n > 10 else 1.0
    height = (4.2 + 2.0 * neck + 1.2 * smooth_step(share, 0.75, 1.0)) * (0.55 + 0.45 * tip)
    thick = 3.5 + 0.5 * neck - 0.5 * smooth_step(share, 0.3, 0.7)
    return Tube(path, np.stack([height, np.broadcast_to(thick, height.shape)], 1), outward)


def _sternum(trunk: Trunk) -> list[Tube]:
    chest = trunk.chest
    manubrium = [(203, 25, 6.0), (196, 27, 6.5), (184, 24, 5.5), (172, 18, 5.0), (163, 15, 5.0)]
    body = [(159, 14, 5.0), (145, 15, 5.0), (130, 17, 5.0), (112, 19, 5.0), (98, 15, 4.8), (92, 10, 4.0)]
    xiphoid = [(90, 7, 2.8), (80, 6, 2.5), (70, 4, 2.2)]
    tubes = []
    for rows in (manubrium, body, xiphoid):
        points = [(*chest.point(0.0, z, 7.0), wide, deep) for z, wide, deep in rows]
        tubes.append(flat_tube(points, (0, -1, 0.35), 5))
    return tubes


def _clavicles(trunk: Trunk) -> list[Tube]:
    top = trunk.chest.point(0.0, 204.0, 9.0)
    tubes = []
    for side in (-1.0, 1.0):
        rows = [
            (side * 17, top[1] + 1, 206, 9.0),
            (side * 27, top[1] - 3, 208, 7.0),
            (side * 55, top[1] - 4, 212, 5.6),
            (side * 85, top[1] + 16, 219, 5.6),
            (side * 112, top[1] + 42, 225, 6.0),
            (side * 126, top[1] + 54, 227, 6.5),
        ]
        tubes.append(round_tube(rows, 5))
    return tubes


def _paint_scapulae(canvas: Canvas, trunk: Trunk, marrow: Tissue) -> None:
    """A thin curved triangle with thick borders, its spine, the glenoid and the coracoid process."""
    surface = scapula_surface(trunk)
    blade = trunk.offset_distance(surface)
    z = trunk.frame.open[0]
    angle = np.abs(ANGLES[0] + trunk.column * (ANGLES[1] - ANGLES[0]))[None]
    radius = np.maximum(trunk.radius, 60)
    top = smooth_step(z, 124, 205)
    medial = (angle - (2.42 + 0.12 * top)) * radius
    lateral = ((2.30 - 0.52 * top) - angle) * radius
    outline = smooth_max(smooth_max(medial, lateral, 8.0), np.maximum(z - 213, 122 - z), 12.0)
    box = canvas.box_of(np.maximum(outline, np.abs(blade) - 5))
    share = canvas.share(canvas.fine(outline.astype(np.float32), box))
    share *= canvas.sheet_share(canvas.fine(blade, box), 2.6)
    canvas.blend(box, share, np.float32(CORTEX_HU - 150))
    tubes = [tube for side in (-1.0, 1.0) for tube in _scapula_rods(surface, side)]
    _paint_bone(canvas, tubes, 1.5, marrow)


def _scapula_rods(surface: PolarSurface, side: float) -> list[Tube]:
    def on(angle: float, z: float, lift: float = 0.0) -> np.ndarray:
        return surface.point(side * angle, z, lift)

    medial = [(*on(2.42, 126), 3.0), (*on(2.50, 150), 2.5), (*on(2.54, 180), 2.5), (*on(2.54, 206), 3.0)]
    lateral = [(*on(2.34, 124), 4.0), (*on(2.18, 145), 4.5), (*on(1.98, 175), 5.0), (*on(1.80, 204), 7.0)]
    glenoid = [(*on(1.80, 198, 1), 9.0), (*on(1.78, 214, 1), 9.0)]
    spine = [(*on(2.52, 194, 1), 2.5), (*on(2.25, 203, 8), 3.5), (*on(2.00, 213, 14), 4.5), (*on(1.72, 224, 14), 6.0)]
    coracoid = [(*on(1.80, 214), 6.0), (*on(1.62, 219, -6), 5.0), (*on(1.42, 213, -10), 4.5)]
    return [round_tube(rows, 6) for rows in (medial, lateral, glenoid, spine, coracoid)]


def _paint_spine(canvas: Canvas, trunk: Trunk, marrow: Tissue) -> None:
    heights = np.linspace(-12, 252, 16)
    x, y = trunk.patient.spine(heights)
    wide, deep = _body_radii(heights)
    discs = flat_tube(np.stack([x, y, heights, wide * 0.97, deep * 0.97], 1), (0, 1, 0), 10)
    canvas.paint_tubes([discs], Tissue(DISC_HU))
    arches = [tube for level in range(14) for tube in _arch(trunk, level)]
    _paint_bone(canvas, arches, 1.5, marrow)
    for level in range(14):
        _paint_vertebral_body(canvas, trunk, level, marrow)
    back = y + deep
    canal = np.stack([x, back + 7.5, heights, np.full(16, 8.6)], 1)
    for radius, value in ((8.6, -25.0), (7.2, 16.0), (4.2, 44.0)):
        canal[:, 3] = radius
        canvas.paint_tubes([round_tube(canal, 9)], value)


def _body_radii(z: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
    low = 1 - np.clip(np.asarray(z) / 235, 0, 1)
    return 14.0 + 5.5 * low, 10.5 + 4.5 * low


def _paint_vertebral_body(canvas: Canvas, trunk: Trunk, level: int, marrow: Tissue) -> None:
    z0 = vertebra_height(level)
    half = (vertebra_height(level - 0.5) - vertebra_height(level + 0.5)) / 2 - 2.3
    x0, y0 = (float(v) for v in trunk.patient.spine(z0))
    above, below = (trunk.patient.spine(z0 + d)[1] for d in (8, -8))
    tilt = float(np.arctan2(above - below, 16))
    wide, deep = (float(v) for v in _body_radii(z0))
    reach = np.array([wide, deep, half]) + 6
    box = canvas.grid.box(np.array([x0, y0, z0]) - reach, np.array([x0, y0, z0]) + reach)
    z, y, x = canvas.grid.part(box).open
    if 0 in canvas.hu[box].shape:
        return
    up = (z - z0) * np.cos(tilt) + (y - y0) * np.sin(tilt)
    back = (y - y0) * np.cos(tilt) - (z - z0) * np.sin(tilt)
    side = x - x0
    waist = 0.90 + 0.10 * np.minimum(np.abs(up) / half, 1.2) ** 2
    radial = (np.abs(side / (wide * waist)) ** 2.4 + np.abs(back / (deep * waist)) ** 2.4 + 1e-6) ** (1 / 2.4)
    ring = (radial - 1) * np.hypot(side, back) / radial
    ring = smooth_max(ring, 8.6 - np.hypot(side, back - deep - 7.0), 3.0)
    concave = half - 1.2 * np.maximum(1 - (side / wide) ** 2 - (back / deep) ** 2, 0)
    distance = smooth_max(ring, np.abs(up) - concave, 2.5).astype(np.float32)
    canvas.blend(box, canvas.share(distance), np.float32(760.0))
    canvas.blend(box, canvas.share(distance + np.float32(1.1)), canvas.value(marrow, box))


def _arch(trunk: Trunk, level: int) -> list[Tube]:
    """Pedicles, laminae, articular, transverse and spinous processes."""
    z = vertebra_height(level)
    x, y = (float(v) for v in trunk.patient.spine(z))
    y += float(_body_radii(z)[1])
    droop = 17 * np.exp(-(((level - 6.5) / 3.5) ** 2)) + 3
    tip = min(y + 36, float(trunk.skin.point(np.pi, z - droop, -9.0)[1]))
    tubes = []
    for s in (-1.0, 1.0):
        pedicle = [(x + s * 9.5, y - 3, z + 4, 4.5, 3.0), (x + s * 11.5, y + 8, z + 4, 5.0, 3.2)]
        lamina = [(x + s * 12, y + 11, z + 2, 7.5, 2.8), (x + s * 2, y + 20, z - 3, 8.0, 3.0)]
        transverse = [
            (x + s * 12, y + 10, z + 3, 4.6),
            (x + s * 23, y + 16, z + 5, 4.0),
            (x + s * 32, y + 20, z + 5, 5.0),
        ]
        facet = [(x + s * 12.5, y + 10, z + 11, 3.4), (x + s * 12.5, y + 13, z - 10, 3.4)]
        tubes += [flat_tube(pedicle, (s, 0.1, 0)), flat_tube(lamina, (s * 0.6, 1, 0))]
        tubes += [round_tube(transverse), round_tube(facet)]
    spinous = [
        (x, y + 19, z - 4, 7.0, 2.6),
        (x, (y + 20 + tip) / 2, z - 4 - droop * 0.5, 6.0, 2.4),
        (x, tip, z - 4 - droop, 4.5, 3.2),
    ]
    return [*tubes, flat_tube(spinous, (1, 0, 0))]
