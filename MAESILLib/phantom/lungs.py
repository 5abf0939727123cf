"""Lung tissue, fissures, pulmonary vessels and bronchi of the sample CT."""

from __future__ import annotations

import numpy as np

from MAESILLib.phantom.shapes import Box, Canvas, Field, Tube, lattice_noise
from MAESILLib.phantom.tree import Segments, Tree, grow_tree, join_segments, smooth_segments, tree_share
from MAESILLib.phantom.trunk import Trunk

VESSEL_TARGETS = 2600  # nodes of each arterial tree; the venous ones have two thirds of it
HILA = {
    -1.0: np.array([(-38, 8, 148), (-46, 12, 143), (-50, 18, 130), (-53, 26, 114), (-58, 34, 99)], float),
    1.0: np.array([(46, 18, 152), (50, 23, 144), (54, 27, 130), (58, 34, 113), (63, 40, 97)], float),
}
VEINS = {
    -1.0: np.array([(-40, 2, 139), (-42, 12, 130), (-42, 24, 118)], float),
    1.0: np.array([(45, 2, 141), (44, 14, 130), (45, 28, 118)], float),
}


def paint_lungs(canvas: Canvas, trunk: Trunk, lungs: Field) -> None:
    """Aerated tissue, denser towards the back where blood pools, with fissures, vessels, bronchi, a nodule."""
    patient = trunk.patient
    rng = patient.rng(40)
    y = canvas.grid.open[1]

    def tissue(box: Box) -> Field:
        speckle = canvas.speckle[box]
        return -862 + 0.42 * (y[:, box[1]] + 10) + 9 * canvas.grain[box] + speckle * (13 + 8 * np.abs(speckle))

    canvas.paint(lungs, tissue)
    oblique, horizontal = _fissures(trunk)
    _paint_fissures(canvas, trunk, lungs, oblique, horizontal)
    lobes = _lobes(trunk, oblique, horizontal)
    arteries = {side: _vessels(trunk, lungs, lobes, side, HILA[side], VESSEL_TARGETS, rng) for side in (-1.0, 1.0)}
    veins = [_vessels(trunk, lungs, lobes, side, VEINS[side], VESSEL_TARGETS * 2 // 3, rng) for side in (-1.0, 1.0)]
    segments = join_segments([smooth_segments(tree) for tree in (*arteries.values(), *veins)])
    _paint_segments(canvas, lungs, segments, 0.55 * patient.contrast_hu + 10)
    _paint_bronchi(canvas, arteries, lungs)
    if patient.nodule:
        _paint_nodule(canvas, trunk, lungs, rng)


def _fissures(trunk: Trunk) -> tuple[Field, Field]:
    """Distances to the oblique fissures (positive above, in front) and to the horizontal one of the right lung."""
    z, y, x = trunk.frame.open
    bend = 3.0 * lattice_noise(trunk.patient.rng(41), trunk.frame, 45.0)
    lean = 0.82 - 0.10 * np.sign(x)
    height = 121 + 4 * np.sign(x) + lean * (y - 6) + 0.0022 * (np.abs(x) - 70) ** 2
    oblique = (z - height + bend) / np.sqrt(1 + lean**2)
    horizontal = z - 134 - 0.15 * (y + 30) + 0.0018 * (x + 75) ** 2 + bend
    return oblique.astype(np.float32), horizontal.astype(np.float32)


def _lobes(trunk: Trunk, oblique: Field, horizontal: Field) -> Field:
    right = trunk.frame.open[2] < 0
    upper = np.where(right & (horizontal < 0), 2, 1)
    return np.where(oblique < 0, 0, upper).astype(np.int8)


def _paint_fissures(canvas: Canvas, trunk: Trunk, lungs: Field, oblique: Field, horizontal: Field) -> None:
    for field, limit in ((oblique, lungs), (horizontal, np.maximum(np.maximum(lungs, -oblique), trunk.frame.open[2]))):
        box = canvas.box_of(np.maximum(limit, np.abs(field) - 3))
        share = canvas.sheet_share(canvas.fine(field, box), 0.9) * canvas.share(canvas.fine(limit, box))
        canvas.blend(box, share, np.float32(-420))


def _vessels(
    trunk: Trunk, lungs: Field, lobes: Field, side: float, root: np.ndarray, count: int, rng: np.random.Generator
) -> Tree:
    """A tree from the hilum to evenly spread points of one lung, none of them next to the pleura."""
    frame = trunk.frame
    candidates = np.argwhere((lungs < -4.0) & (frame.open[2] * side > 0))
    chosen = candidates[rng.permutation(len(candidates))[: 3 * count]]
    points = np.stack([frame.x[chosen[:, 2]], frame.y[chosen[:, 1]], frame.z[chosen[:, 0]]], 1)
    points += rng.uniform(-1.5, 1.5, points.shape)
    keep = _spread(points, 0.62 * (len(candidates) * 27.0 / count) ** (1 / 3))[:count]
    regions = lobes[tuple(chosen[keep].T)]
    return grow_tree(root, points[keep], 0.46, balance=0.5, regions=regions, exponent=2.55)


def _spread(points: np.ndarray, distance: float) -> np.ndarray:
    """Indices of points of which no two lie in one cell of about ``distance``, in their given order."""
    cells = np.floor(points / distance).astype(np.int64)
    _, first = np.unique(cells, axis=0, return_index=True)
    return np.sort(first)


def _paint_segments(canvas: Canvas, lungs: Field, segments: Segments, value: float) -> None:
    box, share = tree_share(canvas, segments)
    share *= canvas.share(canvas.fine(lungs, box) - np.float32(2.0))
    canvas.blend(box, share, np.float32(value))


def _paint_bronchi(canvas: Canvas, arteries: dict[float, Tree], lungs: Field) -> None:
    """Bronchi run beside the arteries of their size; walls first, then the air in them."""
    walls, lumina = [], []
    for tree in arteries.values():
        keep = tree.radii > 1.4
        airway = Tree(_beside(tree), tree.parents, 0.68 * tree.radii)
        starts, ends, radii = smooth_segments(airway)
        shown = np.tile(keep[airway.edges()], 3)
        starts, ends, radii = starts[shown], ends[shown], np.minimum(radii[shown], 4.2)
        lumina.append((starts, ends, radii))
        walls.append((starts, ends, radii * 1.12 + 0.55))
    _paint_segments(canvas, lungs, join_segments(walls), 0.0)
    _paint_segments(canvas, lungs, join_segments(lumina), -985.0)


def _beside(tree: Tree) -> np.ndarray:
    """The nodes moved sideways by artery plus bronchus, upwards and back (as bronchi lie to arteries)."""
    parent = np.maximum(tree.parents, 0)
    along = tree.points - tree.points[parent]
    along /= np.linalg.norm(along, axis=1, keepdims=True) + 1e-6
    preferred = np.array([0.0, 0.75, 0.65])
    sideways = preferred - (along @ preferred)[:, None] * along
    sideways /= np.linalg.norm(sideways, axis=1, keepdims=True) + 0.05
    return tree.points + sideways * (2.0 * tree.radii + 0.8)[:, None]


def _paint_nodule(canvas: Canvas, trunk: Trunk, lungs: Field, rng: np.random.Generator) -> None:
    """A lobulated solid nodule, 4 to 7 mm in radius, somewhere in the lung away from the hilum."""
    frame = trunk.frame
    candidates = np.argwhere((lungs < -9) & (lungs > -25) & (np.abs(frame.open[2]) > 60))
    k, j, i = candidates[rng.integers(len(candidates))]
    centre = np.array([frame.x[i], frame.y[j], frame.z[k]], float)
    radius = rng.uniform(4.0, 7.0)
    lobules = [centre + rng.normal(0, 0.35 * radius, 3) for _ in range(5)]
    canvas.paint_tubes([Tube(np.stack([centre, p]), np.array([radius, 0.7 * radius])) for p in lobules], 38.0)
