"""Branching vessels and airways of the sample CT: how a tree fills an organ, and how it is drawn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from MAESILLib.phantom.shapes import Box, Canvas, Field, Grid, Tube, draw_tube

Segments = tuple[np.ndarray, np.ndarray, np.ndarray]  # starts (S, 3), ends (S, 3), radii (S, 2)


@dataclass(frozen=True)
class Tree:
    """Nodes in the order they were joined: every parent stands before its children. Radii in mm."""

    points: np.ndarray  # (N, 3) x, y, z
    parents: np.ndarray  # (N,), -1 at the root
    radii: np.ndarray  # (N,)

    def edges(self) -> np.ndarray:
        """Indices of the nodes that have a parent."""
        return np.flatnonzero(self.parents >= 0)


def grow_tree(
    trunk: np.ndarray,
    targets: np.ndarray,
    leaf_mm: float,
    *,
    balance: float = 0.6,
    regions: np.ndarray | None = None,
    exponent: float = 2.6,
) -> Tree:
    """Join ``targets`` (N, 3) to the line of points ``trunk`` (M, 3) by a tree that is short and direct.

    Greedy minimum spanning tree whose price of an edge is its length plus ``balance`` times the way from the
    root (Cuntz et al., PLoS Comput Biol 2010, "One rule to grow them all"). Radii follow Murray's law with
    ``exponent``, from ``leaf_mm`` at the tips. An edge between two ``regions`` (lobes) costs 60 mm extra.
    """
    points = np.vstack([trunk, targets])
    first, count = len(trunk), len(points)
    lobes = np.full(count, -1) if regions is None else np.concatenate([np.full(first, -1), regions])
    parents = np.full(count, -1)
    parents[1:first] = np.arange(first - 1)
    toll = {lobe: np.where(lobes == lobe, 0, 60.0) if lobe >= 0 else np.zeros(count) for lobe in np.unique(lobes)}
    price = np.full(count, np.inf)  # of joining an open node; -inf once joined, so that no offer beats it
    price[:first] = -np.inf
    queue = np.full(count, np.inf)  # the same with +inf once joined
    way = np.zeros(count)
    order = []
    x, y, z = (np.ascontiguousarray(column) for column in points.T)
    for step in range(count):
        node = step if step < first else int(np.argmin(queue))
        price[node], queue[node] = -np.inf, np.inf
        order.append(node)
        length = np.sqrt((x - x[node]) ** 2 + (y - y[node]) ** 2 + (z - z[node]) ** 2)
        if step >= first:
            way[node] = way[parents[node]] + length[parents[node]]
        offer = length * (1 + balance) + (toll[lobes[node]] + balance * way[node])
        better = np.flatnonzero(offer < price)
        price[better] = queue[better] = offer[better]
        parents[better] = node
    rank = np.empty(count, int)
    rank[order] = np.arange(count)
    parents = np.where(parents[order] >= 0, rank[parents[order]], -1)
    radii = _murray(parents, leaf_mm, exponent)
    return Tree(_straighten(points[order], parents, radii), parents, radii)


def _straighten(points: np.ndarray, parents: np.ndarray, radii: np.ndarray, rounds: int = 3) -> np.ndarray:
    """Pull every fork towards the line between its parent and its children, the thickest child counting most."""
    child = np.flatnonzero(parents >= 0)
    weight = np.bincount(parents[child], radii[child] ** 3, minlength=len(points))[:, None]
    inner = (weight[:, 0] > 0) & (parents >= 0)
    for _ in range(rounds):
        pull = (radii[child] ** 3)[:, None] * points[child]
        ahead = np.stack([np.bincount(parents[child], pull[:, n], minlength=len(points)) for n in range(3)], 1)
        middle = 0.5 * (points[parents] + ahead / np.maximum(weight, 1e-9))
        points = np.where(inner[:, None], 0.4 * points + 0.6 * middle, points)
    return points


def _murray(parents: np.ndarray, leaf_mm: float, exponent: float) -> np.ndarray:
    flow = np.zeros(len(parents))
    for node in range(len(parents) - 1, 0, -1):
        flow[node] = flow[node] or 1.0
        flow[parents[node]] += flow[node]
    return leaf_mm * np.maximum(flow, 1.0) ** (1 / exponent)


def smooth_segments(tree: Tree, pieces: int = 3) -> Segments:
    """Starts (S, 3), ends (S, 3) and radii (S, 2) of the edges drawn as cubic Hermite curves."""
    child = tree.edges()
    parent = tree.parents[child]
    grand = np.where(tree.parents[parent] >= 0, tree.parents[parent], parent)
    p, c = tree.points[parent], tree.points[child]
    length = np.linalg.norm(c - p, axis=1, keepdims=True)
    leaving = p - tree.points[grand]
    leaving = leaving / (np.linalg.norm(leaving, axis=1, keepdims=True) + 1e-6) * length
    tangent = 0.4 * leaving + 0.6 * (c - p)
    t = np.linspace(0, 1, pieces + 1)[:, None, None]
    path = (
        (2 * t**3 - 3 * t**2 + 1) * p
        + (t**3 - 2 * t**2 + t) * tangent
        + (3 * t**2 - 2 * t**3) * c
        + (t**3 - t**2) * (c - p)
    )
    start_radius = np.minimum(tree.radii[parent], 1.3 * tree.radii[child])
    radii = start_radius + (tree.radii[child] - start_radius) * t[..., 0]
    return path[:-1].reshape(-1, 3), path[1:].reshape(-1, 3), np.stack([radii[:-1].ravel(), radii[1:].ravel()], 1)


def join_segments(parts: list[Segments]) -> Segments:
    starts, ends, radii = (np.concatenate(items) for items in zip(*parts, strict=True))
    return starts, ends, radii


def tree_share(canvas: Canvas, segments: Segments) -> tuple[Box, Field]:
    """Box around the segments, and the share of each of its voxels that they fill.

    Segments thinner than about a voxel are deposited by volume (the share is their volume in the voxel, as a
    scanner averages it); thicker ones are drawn from their distance.
    """
    starts, ends, radii = segments
    reach = float(radii.max()) + 2 * max(canvas.grid.steps)
    both = np.concatenate([starts, ends])
    box = canvas.grid.box(both.min(0) - reach, both.max(0) + reach)
    grid = canvas.grid.part(box)
    field = np.full([axis.stop - axis.start for axis in box], 10.0, np.float32)
    if min(field.shape) < 2:
        return box, np.zeros(field.shape, np.float32)
    thick = radii.mean(1) > 0.8 * canvas.voxel_mm
    share = _deposit(grid, starts[~thick], ends[~thick], radii[~thick].mean(1))
    for start, end, radius in zip(starts[thick], ends[thick], radii[thick], strict=True):
        margin = 0.6 * float(canvas.voxel_mm)
        draw_tube(field, grid, Tube(np.stack([start, end]), radius, margin_mm=margin))
    return box, np.maximum(share, canvas.share(field))


def _deposit(grid: Grid, starts: np.ndarray, ends: np.ndarray, radii: np.ndarray) -> Field:
    steps = np.array(grid.steps[::-1])
    length = np.linalg.norm(ends - starts, axis=1)
    count = np.maximum(1, np.ceil(length / (0.45 * steps.min()))).astype(int)
    owner = np.repeat(np.arange(len(starts)), count)
    within = np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)
    share = ((within + 0.5) / count[owner])[:, None]
    points = starts[owner] + share * (ends - starts)[owner]
    volume = np.pi * radii[owner] ** 2 * (length / count)[owner] / np.prod(steps)
    index = (points - np.array([grid.x[0], grid.y[0], grid.z[0]])) / steps
    base = np.floor(index).astype(np.int64)
    part = index - base
    shape = np.array(grid.shape[::-1])
    keep = ((base >= 0) & (base < shape - 1)).all(1)
    base, part, volume = base[keep], part[keep], volume[keep]
    places, weights = [], []
    for corner in np.ndindex(2, 2, 2):
        weights.append(np.where(corner, part, 1 - part).prod(1) * volume)
        i, j, k = (base + corner).T
        places.append((k * shape[1] + j) * shape[0] + i)
    total = np.bincount(np.concatenate(places), np.concatenate(weights), minlength=int(np.prod(shape)))
    return np.minimum(total, 1).reshape(grid.shape).astype(np.float32)
