"""The figure of a reconstruction: input, masked input, reconstruction and error in three planes.

matplotlib is imported inside the functions, and drawn with its Agg canvas: no window system is
needed and the import costs nothing to those who draw nothing.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from MAESILLib.ct.volume import unit_to_hu
from MAESILLib.runtime.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROWS = ("Input", "Masked input", "Reconstruction", "Error")
ERROR_ROW = len(ROWS) - 1
HIDDEN_COLOUR = "#4d6a80"
TISSUE_HU = -500
ERROR_LIMITS_HU = (-300, 300)
DOTS_PER_INCH = 150
GRID_WIDTH, GRID_HEIGHT = 8.5, 11.6
"""Inches that the pictures take at most."""
NARROWEST, LOWEST = 1.9, 1.15
"""Inches that a column and a row take at least: their titles need room."""
SMALLEST_LETTERED = 0.35
"""Inches; letters would hide a smaller picture."""
TITLE_SIZE, LABEL_SIZE, SMALL_SIZE = 11.0, 9.0, 7.5
"""Points."""


@dataclass(frozen=True)
class Plane:
    """One anatomical plane as radiologists look at it.

    Attributes:
        name: of the plane.
        normal, vertical, horizontal: the array axes across the plane, down and to the right.
        flipped: the vertical axis is drawn upwards.
        letters: the directions at the left, right, top and bottom of the picture.
    """

    name: str
    normal: int
    vertical: int
    horizontal: int
    flipped: bool
    letters: tuple[str, str, str, str]


PLANES = (
    Plane("Axial", 0, 1, 2, False, ("R", "L", "A", "P")),
    Plane("Coronal", 1, 0, 2, True, ("R", "L", "S", "I")),
    Plane("Sagittal", 2, 0, 1, True, ("A", "P", "S", "I")),
)


def reconstruction_figure(
    path: Path,
    *,
    reference: np.ndarray,
    reconstruction: np.ndarray,
    hidden: np.ndarray,
    spacing_dhw: tuple[float, float, float],
    window_hu: tuple[float, float],
    title: str = "",
    subtitle: str = "",
) -> None:
    """Write a figure of four rows (input, masked, reconstruction, error) in three planes.

    The planes pass through the middle of the patient, and all pictures have the same scale in millimetres.
    Radiological convention: the patient's right is on the left of axial and coronal pictures, anterior on the left of
    sagittal ones.

    Args:
        path: PNG to write.
        reference, reconstruction: (D, H, W) intensities, ``window_hu`` mapped to [0, 1], in canonical orientation:
            D towards superior, H towards posterior, W towards the patient's left.
        hidden: (D, H, W) bool; these voxels get a flat colour in the masked row.
        spacing_dhw: voxel spacing in mm, in the order (D, H, W).
        window_hu: grey window of the first three rows, low and high HU.
    """
    from matplotlib import colormaps

    centre = body_centre(reference, window_hu)
    grey = colormaps["gray"].with_extremes(bad=HIDDEN_COLOUR)
    sides = [size * spacing for size, spacing in zip(reference.shape, spacing_dhw, strict=True)]
    extents = [(sides[plane.horizontal], sides[plane.vertical]) for plane in PLANES]
    figure, axes, inches_per_mm = _page(extents, title, subtitle)
    for cells, plane, (width, height) in zip(axes.T, PLANES, extents, strict=True):
        known, made = (unit_to_hu(plane_slice(x, plane, centre), window_hu) for x in (reference, reconstruction))
        pictures = (known, np.ma.masked_where(plane_slice(hidden, plane, centre), known), made, made - known)
        for row, (cell, picture) in enumerate(zip(cells, pictures, strict=True)):
            limits, colours = (ERROR_LIMITS_HU, "RdBu_r") if row == ERROR_ROW else (window_hu, grey)
            cell.imshow(
                picture, colours, vmin=limits[0], vmax=limits[1], extent=(0, width, height, 0), interpolation="nearest"
            )
    for cell, name in zip(axes[:, 0], ROWS, strict=True):
        cell.set_ylabel(name, size=LABEL_SIZE)
    for cell, plane, extent in zip(axes[0], PLANES, extents, strict=True):
        number, count = centre[plane.normal] + 1, reference.shape[plane.normal]
        cell.set_title(f"{plane.name}  {number}/{count}", size=LABEL_SIZE)
        if min(extent) * inches_per_mm >= SMALLEST_LETTERED:
            _draw_letters(cell, plane, *extent)
    _draw_scale_bar(axes[ERROR_ROW - 1, 0], *extents[0])
    _draw_colour_bar(figure, axes[:ERROR_ROW], window_hu, with_hidden=bool(hidden.any()))
    _draw_colour_bar(figure, axes[ERROR_ROW:], ERROR_LIMITS_HU)
    with atomic_path(path) as temporary:
        figure.savefig(temporary)


def plane_slice(volume: np.ndarray, plane: Plane, centre_dhw: Sequence[int]) -> np.ndarray:
    """Return the slice of ``volume`` through ``centre_dhw``, its rows from top to bottom of the picture."""
    picture = np.take(volume, centre_dhw[plane.normal], axis=plane.normal)
    return picture[::-1] if plane.flipped else picture


def body_centre(unit: np.ndarray, window_hu: tuple[float, float]) -> tuple[int, int, int]:
    """Return the index (D, H, W) of the median tissue voxel along each axis (of the volume, if all is air)."""
    # Every third voxel gives the same picture in a twentieth of the time.
    step = 3
    tissue = unit_to_hu(unit[::step, ::step, ::step], window_hu) > TISSUE_HU
    if not tissue.any():
        return (unit.shape[0] // 2, unit.shape[1] // 2, unit.shape[2] // 2)
    depth, height, width = (step * int(np.median(index)) for index in np.nonzero(tissue))
    return depth, height, width


def _page(extents: Sequence[tuple[float, float]], title: str, subtitle: str) -> tuple[Figure, np.ndarray, float]:
    """Return a page for pictures as large as it allows, its axes (rows, columns), and the scale in inches per mm.

    Each picture is at the top of its cell, in the middle. Limits are those of the cells, and cells are as wide and high
    as the layout's ratios say, so all pictures have one scale whatever room the layout finds.

    Args:
        extents: (width, height) of the pictures of each column, mm.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    widths, heights = zip(*extents, strict=True)
    scale = min(GRID_WIDTH / sum(widths), GRID_HEIGHT / len(ROWS) / max(heights))
    columns, row = [max(width, NARROWEST / scale) for width in widths], max(*heights, LOWEST / scale)
    size = (scale * sum(columns) + 1.3, scale * row * len(ROWS) + 1.2)
    page = Figure(size, DOTS_PER_INCH, facecolor="white", layout="constrained")
    page.suptitle(_wrapped(title, size[0], TITLE_SIZE), size=TITLE_SIZE, weight="bold", parse_math=False)
    page.supxlabel(_wrapped(subtitle, size[0], LABEL_SIZE), size=LABEL_SIZE, parse_math=False)
    axes = page.subplots(len(ROWS), len(PLANES), width_ratios=columns)
    for (width, height), column, cells in zip(extents, columns, axes.T, strict=True):
        margin = (column - width) / 2
        for cell in cells:
            cell.set(xlim=(-margin, width + margin), ylim=(row, 0), aspect="equal", xticks=[], yticks=[])
            cell.spines[:].set_visible(False)
            cell.add_patch(Rectangle((0, 0), width, height, fill=False, edgecolor="0.6", linewidth=0.5))
    return page, axes, scale


def _wrapped(text: str, width: float, size: float) -> str:
    """Break lines to a width in inches; a letter of the bold font is about 0.68 of its size wide."""
    return textwrap.fill(text, max(10, int(width * 72 / (0.68 * size))))


def _draw_letters(axes: Axes, plane: Plane, width: float, height: float) -> None:
    """Name the directions at the edges of a picture of ``width`` and ``height`` mm."""
    from matplotlib.patheffects import withStroke

    style: dict[str, Any] = {"color": "white", "size": SMALL_SIZE, "textcoords": "offset points"}
    # a dark rim: legible on air and on bone
    style["path_effects"] = [withStroke(linewidth=1.6, foreground="0.1")]
    places = (
        ((0, height / 2), (3, 0), "left", "center"),
        ((width, height / 2), (-3, 0), "right", "center"),
        ((width / 2, 0), (0, -3), "center", "top"),
        ((width / 2, height), (0, 3), "center", "bottom"),
    )
    for letter, (point, offset, horizontal, vertical) in zip(plane.letters, places, strict=True):
        axes.annotate(letter, point, offset, ha=horizontal, va=vertical, **style)


def _draw_scale_bar(axes: Axes, width: float, height: float) -> None:
    """Draw a bar of a round length in a picture of ``width`` and ``height`` mm."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.transforms import Bbox
    from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar

    length = next(mm for mm in (50, 20, 10, 5, 1) if mm <= 0.45 * width or mm == 1)
    bar = AnchoredSizeBar(
        axes.transData, length, f"{length} mm", "lower left", pad=0.2, borderpad=0.3, sep=2, color="white",
        size_vertical=height / 100, fontproperties=FontProperties(size=SMALL_SIZE),
        bbox_to_anchor=Bbox.from_extents(0, 0, width, height), bbox_transform=axes.transData,
    )  # fmt: skip
    bar.patch.set(facecolor="0.1", edgecolor="none", alpha=0.6)
    axes.add_artist(bar)


def _draw_colour_bar(
    figure: Figure, axes: np.ndarray, limits: tuple[float, float], *, with_hidden: bool = False
) -> None:
    """Draw the colour bar of rows of axes; below it, if asked for, what the colour of hidden voxels is."""
    from matplotlib.patches import Patch

    bar = figure.colorbar(
        axes[0, 0].images[0], ax=axes, pad=0.01, aspect=15 * len(axes), ticks=np.linspace(*limits, 5),
        shrink=0.94 if with_hidden else 1, anchor=(0, 1),
    )  # fmt: skip
    bar.outline.set(linewidth=0.5, edgecolor="0.6")
    bar.ax.tick_params(labelsize=SMALL_SIZE, length=2, width=0.5, pad=2)
    bar.set_label("HU", size=SMALL_SIZE)
    if with_hidden:
        bar.ax.legend(
            handles=[Patch(facecolor=HIDDEN_COLOUR, label="hidden")], loc="upper left", bbox_to_anchor=(0, -0.01),
            frameon=False, fontsize=SMALL_SIZE, borderpad=0, borderaxespad=0, handlelength=1, handletextpad=0.4,
        )  # fmt: skip
