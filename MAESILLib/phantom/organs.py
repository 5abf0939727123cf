"""Heart, great vessels, gullet and the organs of the upper abdomen of the sample CT."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from MAESILLib.phantom.shapes import (
    Box,
    Canvas,
    Field,
    Point,
    Tissue,
    Tube,
    curve,
    draw_tube,
    ellipsoid,
    flat_tube,
    lattice_noise,
    round_tube,
    smooth_max,
    smooth_min,
)
from MAESILLib.phantom.tree import grow_tree, smooth_segments, tree_share
from MAESILLib.phantom.trunk import Trunk, smooth_step

WALL_HU = 48.0
FLUID_LEVEL_Y = -6.0  # the gas of the stomach lies in front of this plane: the patient is supine


@dataclass(frozen=True)
class Chest:
    """Heart and tubes of the mediastinum, shaped before the lungs because they give the lungs their inner faces."""

    chambers: dict[str, Field]
    pericardium: Field
    arteries: dict[str, Tube]
    veins: dict[str, Tube]
    gullet: Tube
    windpipe: Tube
    bronchi: tuple[Tube, Tube]

    def solids(self) -> list[Field]:
        return [self.pericardium]

    def tubes(self) -> list[Tube]:
        skip = {"left subclavian", "right subclavian", "left subclavian vein", "right subclavian vein"}
        vessels = {**self.arteries, **self.veins}
        return [*(t for name, t in vessels.items() if name not in skip), self.gullet, self.windpipe, *self.bronchi]


def shape_chest(trunk: Trunk) -> Chest:
    """Lay out the heart (apex to the left, front and below) and the vessels that leave it."""
    frame, patient = trunk.frame, trunk.patient
    h = patient.heart
    bumps = 1.6 * lattice_noise(patient.rng(20), frame, 16.0)
    drop = patient.dome_left_mm - 84

    def blob(centre: Point, radii: Point, turn: tuple[float, float] = (0.0, 0.0)) -> Field:
        at = (centre[0] * h, centre[1], centre[2] + drop)
        return ellipsoid(frame, at, (radii[0] * h, radii[1] * h, radii[2] * h), turn) + bumps

    chambers = {
        "left ventricle": blob((43, -27, 107), (50, 36, 34), (-0.62, 0.25)),
        "left cavity": blob((38, -23, 109), (37, 23, 22), (-0.62, 0.25)),
        "right ventricle": smooth_min(
            blob((8, -50, 100), (44, 27, 28), (-0.25, 0.0)), blob((14, -46, 122), (19, 19, 22)), 8.0
        ),
        "right atrium": blob((-29, -17, 109), (23, 31, 33)),
        "left atrium": blob((4, 12, 128), (34, 19, 22)),
    }
    chambers["right ventricle"] = smooth_max(chambers["right ventricle"], 2.5 - chambers["left ventricle"], 3.0)
    chambers = {name: smooth_max(field, 4.0 - trunk.diaphragm, 8.0) for name, field in chambers.items()}
    heart = chambers["left ventricle"]
    for name in ("right ventricle", "right atrium", "left atrium"):
        heart = smooth_min(heart, chambers[name], 10.0)
    return Chest(chambers, heart - 3.0, _arteries(trunk), _veins(trunk), *_passages(trunk))


def _arteries(trunk: Trunk) -> dict[str, Tube]:
    def spine_side(z: float, x: float, y: float, radius: float) -> tuple[float, ...]:
        sx, sy = trunk.patient.spine(z)
        return (float(sx) + x, float(sy) + y, z, radius)

    down = [
        spine_side(z, x, -9 - forward, r)
        for z, x, forward, r in (
            (150, 25, 0, 12.5),
            (110, 23, 2, 12),
            (70, 15, 10, 11.5),
            (40, 6, 15, 11),
            (10, 2, 15, 10.5),
            (-14, 2, 15, 10.5),
        )
    ]
    up = [(0, -18, 122, 14), (-10, -24, 143, 15.5), (-11, -21, 162, 15), (-1, -9, 177, 14.5), (14, 8, 181, 13.5)]
    aorta = [*up, (24, 26, 171, 13), *down]
    return {
        "aorta": round_tube(aorta, 5),
        "pulmonary trunk": round_tube(
            [(16, -44, 132, 14), (19, -36, 146, 14), (20, -18, 156, 13), (17, -6, 158, 11)], 5
        ),
        "right pulmonary": round_tube([(17, -8, 157, 11), (0, -1, 153, 10.5), (-22, 3, 151, 10), (-42, 8, 147, 8)], 5),
        "left pulmonary": round_tube([(19, -10, 158, 11), (32, 4, 160, 10.5), (44, 16, 154, 9), (48, 22, 144, 7.5)], 5),
        "brachiocephalic": round_tube(
            [(-3, -12, 184, 7), (-12, -12, 202, 7), (-20, -6, 222, 5.5), (-24, -2, 252, 4)], 6
        ),
        "left carotid": round_tube([(7, -2, 186, 4.5), (12, -4, 208, 4), (22, 0, 252, 4)], 6),
        "left subclavian": round_tube(
            [(16, 9, 188, 5.5), (26, 10, 212, 5), (48, 4, 226, 5), (80, -12, 222, 4.5), (112, -14, 206, 4)], 6
        ),
        "right subclavian": round_tube(
            [(-20, -6, 222, 5), (-45, 0, 227, 5), (-80, -14, 221, 4.5), (-112, -16, 206, 4)], 6
        ),
    }


def _veins(trunk: Trunk) -> dict[str, Tube]:
    climb = [(*_beside_spine(trunk, z, -6, -17), 3.5) for z in (4, 60, 110, 150)]
    azygos = [*climb, (-14, 22, 166, 4.5), (-24, 4, 171, 4.5), (-26, -10, 168, 4)]
    return {
        "superior cava": round_tube(
            [(-27, -16, 206, 8.5), (-28, -17, 180, 9.5), (-26, -15, 150, 10), (-26, -14, 128, 10)], 6
        ),
        "inferior cava": round_tube([(-16, 16, -14, 11), (-18, 10, 40, 11.5), (-23, 2, 78, 13), (-24, -6, 104, 12)], 6),
        "left brachiocephalic vein": round_tube(
            [(-26, -16, 203, 7), (0, -27, 201, 7), (24, -18, 210, 7), (36, -14, 220, 7)], 6
        ),
        "right brachiocephalic vein": round_tube([(-27, -16, 203, 7), (-31, -16, 222, 6.5), (-34, -12, 252, 6)], 6),
        "left subclavian vein": round_tube([(36, -14, 220, 7), (70, -26, 216, 5.5), (114, -24, 202, 5)], 6),
        "right subclavian vein": round_tube([(-32, -16, 219, 6.5), (-70, -26, 216, 5.5), (-114, -26, 202, 5)], 6),
        "left jugular": round_tube([(36, -14, 220, 6), (34, -12, 252, 6)], 6),
        "azygos": round_tube(azygos, 8),
        "right upper lung vein": round_tube([(-24, 8, 134, 7), (-42, 0, 140, 6)], 5),
        "left upper lung vein": round_tube([(30, 8, 136, 7), (46, 2, 142, 6)], 5),
        "right lower lung vein": round_tube([(-20, 16, 126, 7), (-42, 24, 118, 6)], 5),
        "left lower lung vein": round_tube([(26, 18, 126, 7), (44, 28, 118, 6)], 5),
    }


def _beside_spine(trunk: Trunk, z: float, x: float, y: float) -> Point:
    sx, sy = trunk.patient.spine(z)
    return float(sx) + x, float(sy) + y, z


def _passages(trunk: Trunk) -> tuple[Tube, Tube, tuple[Tube, Tube]]:
    gullet = [
        (*_beside_spine(trunk, z, x, -21 - forward), 6.5)
        for z, x, forward in (
            (252, 4, 1),
            (215, 5, 1),
            (180, 3, 1),
            (150, 1, 1),
            (115, 4, 3),
            (90, 12, 8),
            (74, 18, 12),
        )
    ]
    gullet.append((28, 18, 64, 6.5))
    windpipe = [(*_beside_spine(trunk, z, 0, -36), 8.2) for z in (252, 225, 200)]
    windpipe += [(3, 5, 182, 8.2), (3, 9, 165, 8.4), (3, 10, 160, 6.0)]
    right = [(2, 9, 164, 7.6), (-12, 12, 155, 7.2), (-26, 15, 148, 6.6), (-34, 17, 140, 5.6)]
    left = [(4, 9, 164, 6.8), (18, 13, 154, 6.4), (32, 18, 147, 6.0), (40, 22, 140, 5.2)]
    rows = curve(gullet, 7)
    flat = Tube(rows[:, :3], np.stack([rows[:, 3] * 1.25, rows[:, 3] * 0.8], 1), np.array([0.0, 1, 0]))
    return flat, round_tube(windpipe, 5), (round_tube(right, 4), round_tube(left, 4))


def paint_chest(canvas: Canvas, trunk: Trunk, chest: Chest) -> None:
    """Heart with its fat, blood pools and muscle; then vessels, gullet and windpipe."""
    blood = trunk.patient.contrast_hu
    muscle = Tissue(92, 6)
    canvas.paint(chest.pericardium - 1.4, Tissue(20, 5))
    canvas.paint(chest.pericardium, Tissue(-92, 8))
    for name in ("right ventricle", "right atrium", "left atrium"):
        canvas.paint(chest.chambers[name] - 1.5, muscle)
    canvas.paint(chest.chambers["left ventricle"], muscle)
    for name, shift in (("right ventricle", -8), ("right atrium", -12), ("left atrium", 4), ("left cavity", 0)):
        canvas.paint(chest.chambers[name], Tissue(blood + shift), shell_mm=1.2)
    canvas.paint_tubes([chest.gullet], Tissue(45, 5))
    canvas.paint_tubes([chest.gullet], Tissue(-40, 60), shell_mm=4.0)
    for name, tube in chest.veins.items():
        canvas.paint_tubes([tube], Tissue(blood - (30 if "inferior" in name or "azygos" in name else 5)))
    for tube in chest.arteries.values():
        canvas.paint_tubes([tube], WALL_HU + 10)
        canvas.paint_tubes([tube], Tissue(blood), shell_mm=1.0)
    airways = [chest.windpipe, *chest.bronchi]
    canvas.paint_tubes([Tube(t.points, t.radii + 1.6, margin_mm=t.margin_mm) for t in airways], 40.0)
    canvas.paint_tubes(airways, -995.0)


def paint_abdomen(canvas: Canvas, trunk: Trunk) -> None:
    """Diaphragm and its crura, liver with vessels, spleen, stomach, kidneys, adrenals, pancreas and bowel."""
    patient, frame = trunk.patient, trunk.frame
    bumps = lattice_noise(patient.rng(30), frame, 20.0)
    fine_bumps = lattice_noise(patient.rng(31), frame, 9.0)
    inside = smooth_max(trunk.cavity + 2.5, trunk.diaphragm + 2.5, 4.0)
    muscle = Tissue(55)
    contrast = patient.contrast_hu
    canvas.paint(smooth_max(np.abs(trunk.diaphragm + 1.0) - 1.5, trunk.cavity, 2.0), muscle)
    canvas.paint_tubes(_crura(trunk), muscle)
    stomach = _stomach(trunk) + 1.2 * bumps
    spleen = smooth_max(ellipsoid(frame, (97, 42, 44), (27, 43, 32), (0.75, 0.35)), inside + 0.6, 5.0) + bumps
    spleen = smooth_max(spleen, 5.0 - stomach, 3.0)
    kidneys = [_kidney(trunk, side) + 0.8 * fine_bumps for side in (-1.0, 1.0)]
    liver = _liver(trunk, inside, np.minimum(stomach, kidneys[0])) + 1.4 * bumps
    canvas.paint(spleen, Tissue(0.35 * contrast + 62, 5))
    canvas.paint_tubes(_pancreas(), Tissue(78, 9))
    for kidney in kidneys:
        canvas.paint(kidney, Tissue(0.55 * contrast + 85, 5))
        canvas.paint(kidney + 2.0 * fine_bumps, Tissue(0.50 * contrast + 70, 5), shell_mm=7.0)
        canvas.paint(kidney + 3.0 * fine_bumps, -60.0, shell_mm=17.0)
    canvas.paint_tubes(_adrenals(trunk), 45.0)
    _paint_bowel(canvas, trunk, inside, fine_bumps)
    canvas.paint(stomach, Tissue(72, 6))

    def content(box: Box) -> Field:
        return np.where(canvas.grid.part(box).open[1] < FLUID_LEVEL_Y, -985, 14 + 6 * canvas.grain[box])

    canvas.paint(stomach, content, shell_mm=3.4)
    canvas.paint(liver, Tissue(0.32 * contrast + 55, 5))
    _paint_liver_vessels(canvas, trunk, liver)
    gallbladder = ellipsoid(frame, (-42, -52, 8), (13, 22, 16), (0.4, 0.3))
    canvas.paint(gallbladder, 60.0)
    canvas.paint(gallbladder, Tissue(8, 4), shell_mm=1.8)


def _liver(trunk: Trunk, inside: Field, neighbours: Field) -> Field:
    z, y, x = trunk.frame.open
    left_edge = -14 + (66 - 0.25 * (90 - z)) * smooth_step(y, 12, -32) + 8 * smooth_step(z, 40, 85)
    edge = (x - left_edge) * 0.8
    hilum = 16 - np.sqrt((x + 8) ** 2 + (y - 4) ** 2 + (0.6 * (z - 14)) ** 2)
    under = (y + 58 + 0.5 * (x + 40) - 0.9 * z) * -0.6 - 26  # the left lobe thins towards below
    liver = smooth_max(smooth_max(inside, edge, 14.0), hilum, 10.0)
    liver = smooth_max(liver, smooth_min(under, x + 50, 10.0), 8.0)
    return smooth_max(liver, 4.0 - neighbours, 5.0).astype(np.float32)


def _stomach(trunk: Trunk) -> Field:
    rows = [
        (54, 34, 72, 22),
        (62, 16, 58, 29),
        (66, -14, 40, 25),
        (58, -40, 20, 22),
        (34, -54, 4, 18),
        (8, -52, -8, 15),
    ]
    field = np.full(trunk.frame.shape, 20.0, np.float32)
    draw_tube(field, trunk.frame, round_tube(rows, 5, 14))
    return smooth_max(field, trunk.diaphragm + 4.5, 5.0)


def _kidney(trunk: Trunk, side: float) -> Field:
    x, y = trunk.patient.spine(5.0)
    centre = (float(x) + side * 52, float(y) + 14, -4.0 + 4 * side)
    bean = ellipsoid(trunk.frame, centre, (25, 27, 44), (0.6 * side, 0.2))
    notch = ellipsoid(trunk.frame, (centre[0] - side * 24, centre[1] - 12, centre[2]), (13, 13, 14))
    return smooth_max(bean, -notch, 8.0)


def _crura(trunk: Trunk) -> list[Tube]:
    tubes = []
    for side in (-1.0, 1.0):
        rows = [
            (*_beside_spine(trunk, z, side * x, -y), r)
            for z, x, y, r in ((-14, 13, 13, 5), (20, 14, 17, 5), (45, 14, 24, 4.5), (66, 12, 32, 4))
        ]
        tubes.append(round_tube(rows, 6))
    return tubes


def _pancreas() -> list[Tube]:
    rows = [(-24, -16, -4, 11), (-8, -24, 6, 9), (12, -22, 12, 8), (34, -8, 18, 8.5), (58, 14, 26, 8), (72, 26, 32, 6)]
    return [flat_tube([(*row, 0.8 * row[3]) for row in rows], (0, -0.5, 1), 5)]


def _adrenals(trunk: Trunk) -> list[Tube]:
    tubes = []
    for side, z in ((-1.0, 32), (1.0, 30)):
        x, y, _ = _beside_spine(trunk, z, side * 24, -8)
        for dx, dy in ((side * 13, 12), (side * 4, 15)):
            tubes.append(flat_tube([(x, y, z, 5, 2.6), (x + dx, y + dy, z - 4, 5, 2.0)], (0.8, -0.5 * side, 0), 4))
    return tubes


def _paint_bowel(canvas: Canvas, trunk: Trunk, inside: Field, bumps: Field) -> None:
    """The splenic flexure with gas and stool, the transverse colon and loops of small bowel."""
    loops = [
        ([(96, 6, -10, 17), (100, -10, 14, 18), (92, -40, 26, 17), (66, -68, 8, 16), (30, -78, -8, 15)], True),
        ([(-14, -72, -8, 15), (16, -78, -4, 14)], True),
        ([(30, 0, -8, 13), (48, -10, -2, 13), (40, -24, -10, 12), (70, 2, 0, 13)], False),
    ]

    def stool(box: Box) -> Field:
        grid = canvas.grid.part(box)
        bubbles = lattice_noise(trunk.patient.rng(33), grid, 7.0) + 0.5 * canvas.grain[box]
        return 25 + 14 * canvas.grain[box] - 960 * smooth_step(bubbles - 0.006 * grid.open[1], 0.3, 0.6)

    for rows, colon in loops:
        field = np.full(trunk.frame.shape, 20.0, np.float32)
        draw_tube(field, trunk.frame, round_tube(rows, 5, 10))
        field = smooth_max(field + (2.6 if colon else 1.2) * bumps, inside + 1.0, 4.0)
        canvas.paint(field, Tissue(62, 6))
        canvas.paint(field, stool if colon else Tissue(25, 14), shell_mm=2.6)


def _paint_liver_vessels(canvas: Canvas, trunk: Trunk, liver: Field) -> None:
    rng = trunk.patient.rng(32)
    frame = trunk.frame
    inner = np.argwhere((liver < -7) & (frame.open[2] < 60))
    if len(inner) == 0:
        return
    for root, count, leaf, bright in (
        (np.array([[-22, 4, 70], [-24, 2, 68]]), 110, 1.05, 1.05),
        (np.array([[-14, -6, 10], [-26, -8, 22], [-34, -10, 32]]), 150, 0.9, 1.0),
    ):
        chosen = inner[rng.choice(len(inner), count, replace=False)]
        points = np.stack([frame.x[chosen[:, 2]], frame.y[chosen[:, 1]], frame.z[chosen[:, 0]]], 1)
        tree = grow_tree(root.astype(float), points + rng.normal(0, 1, points.shape), leaf, balance=0.5)
        box, share = tree_share(canvas, smooth_segments(tree))
        share *= canvas.share(canvas.fine(liver, box) + np.float32(2.0))
        canvas.blend(box, share, np.float32(0.66 * trunk.patient.contrast_hu * bright + 56))
