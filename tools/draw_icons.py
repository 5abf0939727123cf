"""Draws the extension's icons into Resources/Icons: ``python tools/draw_icons.py [FOLDER]``.

Every icon is a few flat shapes on a transparent ground, in colours that show on a light and on a dark theme. Shapes
are sampled on a grid SUPERSAMPLING times finer than the picture and averaged, so that the result is the same on every
machine.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

ICONS = Path(__file__).resolve().parents[1] / "Resources" / "Icons"
SUPERSAMPLING = 8

Colour = tuple[int, int, int]
Point = tuple[float, float]
Mask = np.ndarray

BODY: Colour = (30, 158, 160)
LUNG: Colour = (15, 100, 126)
SPINE: Colour = (246, 166, 35)
GREY: Colour = (132, 145, 156)
GO: Colour = (46, 168, 98)
STOP: Colour = (218, 72, 66)


class Canvas:
    """A square picture with the unit square as its coordinates: x to the right, y down, both in [0, 1]."""

    def __init__(self, size: int) -> None:
        self.size = size
        fine = size * SUPERSAMPLING
        centres = (np.arange(fine) + 0.5) / fine
        self.x, self.y = np.meshgrid(centres, centres)
        self.colour = np.zeros((fine, fine, 3))
        self.alpha = np.zeros((fine, fine))

    def paint(self, mask: Mask, colour: Colour, alpha: float = 1.0) -> None:
        """Replace what is under the mask."""
        self.colour[mask] = colour
        self.alpha[mask] = alpha

    def clear(self, mask: Mask) -> None:
        """Make what is under the mask transparent."""
        self.alpha[mask] = 0

    def box(self, x: float, y: float, width: float, height: float, radius: float) -> Mask:
        """A rectangle from its upper left corner, with rounded corners."""
        dx = np.abs(self.x - x - width / 2) - width / 2 + radius
        dy = np.abs(self.y - y - height / 2) - height / 2 + radius
        distance = np.hypot(np.maximum(dx, 0), np.maximum(dy, 0)) + np.minimum(np.maximum(dx, dy), 0)
        return distance <= radius

    def oval(self, x: float, y: float, a: float, b: float, power: float = 2.0, turn: float = 0.0) -> Mask:
        """A superellipse around its centre, turned clockwise by degrees."""
        angle = np.deg2rad(turn)
        u = (self.x - x) * np.cos(angle) + (self.y - y) * np.sin(angle)
        v = (self.y - y) * np.cos(angle) - (self.x - x) * np.sin(angle)
        return np.abs(u / a) ** power + np.abs(v / b) ** power <= 1

    def triangle(self, corners: tuple[Point, Point, Point], radius: float) -> Mask:
        """A triangle, corners clockwise as seen, grown by a radius that rounds its corners."""
        inside = np.ones_like(self.alpha, bool)
        nearest = np.full_like(self.alpha, np.inf)
        for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
            ex, ey, px, py = x1 - x0, y1 - y0, self.x - x0, self.y - y0
            inside &= ex * py - ey * px >= 0
            along = np.clip((px * ex + py * ey) / (ex * ex + ey * ey), 0, 1)
            nearest = np.minimum(nearest, np.hypot(px - along * ex, py - along * ey))
        return inside | (nearest <= radius)

    def pixels(self) -> np.ndarray:
        """The picture, (size, size, 4) uint8 RGBA."""
        shape = (self.size, SUPERSAMPLING, self.size, SUPERSAMPLING)
        alpha = self.alpha.reshape(shape).mean(axis=(1, 3))
        weighted = (self.colour * self.alpha[..., None]).reshape(*shape, 3).mean(axis=(1, 3))
        colour = weighted / np.maximum(alpha, 1e-9)[..., None]
        return np.rint(np.concatenate([colour, 255 * alpha[..., None]], axis=2)).astype(np.uint8)


def extension() -> Canvas:
    """A chest in cross-section: half of it patches, some hidden; the other half reconstructed whole."""
    c = Canvas(128)
    body = c.oval(0.5, 0.5, 0.485, 0.455, 2.5)
    c.paint(body, BODY)
    for side in (-1, 1):
        c.paint(c.oval(0.5 + side * 0.225, 0.46, 0.14, 0.25, 2.3, side * -8), LUNG)
    c.paint(c.oval(0.5, 0.765, 0.1, 0.1), SPINE)
    tile, gap = 0.235, 0.036
    visible = c.x > 0.5 + gap / 2
    hidden = np.zeros_like(body)
    for column in range(2):
        for row in range(4):
            x, y = 0.5 - (2 - column) * tile, 0.5 - (2 - row) * tile
            patch = c.box(x + gap / 2, y + gap / 2, tile - gap, tile - gap, 0.022)
            if (column, row) in {(0, 1), (0, 3), (1, 0), (1, 2)}:
                hidden |= patch & body
            else:
                visible |= patch
    c.clear(~visible)
    c.paint(hidden, GREY, 0.55)
    return c


def run() -> Canvas:
    """Start: a triangle to the right."""
    c = Canvas(64)
    c.paint(c.triangle(((0.25, 0.16), (0.84, 0.5), (0.25, 0.84)), 0.09), GO)
    return c


def stop() -> Canvas:
    """Stop: a square."""
    c = Canvas(64)
    c.paint(c.box(0.16, 0.16, 0.68, 0.68, 0.1), STOP)
    return c


def layout() -> Canvas:
    """Three rows of three views: masked, reconstruction, error."""
    c = Canvas(64)
    for row, colour in enumerate((GREY, BODY, SPINE)):
        for column in range(3):
            c.paint(c.box(0.06 + column * 0.305, 0.06 + row * 0.305, 0.27, 0.27, 0.05), colour)
    return c


def layout_back() -> Canvas:
    """The former layout: four views and an arrow back to them."""
    c = Canvas(64)
    for row in range(2):
        for column in range(2):
            c.paint(c.box(0.06 + column * 0.455, 0.06 + row * 0.455, 0.425, 0.425, 0.06), GREY, 0.7)
    for grown, paint in ((0.07, c.clear), (0.0, lambda mask: c.paint(mask, BODY))):
        paint(c.triangle(((0.24, 0.5), (0.46, 0.31), (0.46, 0.69)), 0.04 + grown))
        paint(c.box(0.42 - grown, 0.43 - grown, 0.36 + 2 * grown, 0.14 + 2 * grown, 0.04 + grown))
    return c


def outlines() -> Canvas:
    """Outlines of hidden patches on a body."""
    c = Canvas(64)
    c.paint(c.oval(0.5, 0.5, 0.46, 0.42, 2.5), BODY)
    for corner in (0.185, 0.465):
        c.paint(c.box(corner, corner, 0.35, 0.35, 0.03), SPINE)
    for corner in (0.255, 0.535):
        c.paint(c.box(corner, corner, 0.21, 0.21, 0.01), LUNG)
    return c


def main(folder: Path = ICONS) -> None:
    """Draw every icon."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in DRAWINGS.items():
        Image.fromarray(draw().pixels()).save(folder / f"{name}.png", optimize=True)


DRAWINGS: dict[str, Callable[[], Canvas]] = {
    "MAESIL": extension,
    "Run": run,
    "Stop": stop,
    "Layout3x3": layout,
    "LayoutBack": layout_back,
    "Outlines": outlines,
}

if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
