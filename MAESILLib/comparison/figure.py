"""The figure of the comparison, as the paper's Figure 3: input and reconstructions in three views, with error maps.

Columns are the input and the methods; each view has a row of pictures and a row of errors below it, all at one scale.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from MAESILLib.config import Window
from MAESILLib.errors import InputError
from MAESILLib.figure import PLANES, Plane, body_centre, plane_slice
from MAESILLib.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 7.2
"""Inches: a page of two columns."""
LEFT, RIGHT, TOP, BOTTOM, GAP, VIEW_GAP = 0.32, 0.62, 0.42, 0.08, 0.04, 0.12
BAR_WIDTH, BAR_OFFSET = 0.08, 0.08
TALLEST_PANEL = 1.4
SIZE, SMALL_SIZE = 8.0, 6.5
DOTS_PER_INCH = 300
ENDS: tuple[Literal["bottom", "center", "top"], ...] = ("bottom", "center", "top")


def comparison_figure(
    paths: list[Path],
    *,
    reference_hu: np.ndarray,
    reconstructions_hu: dict[str, np.ndarray],
    captions: dict[str, str],
    spacing_dhw: tuple[float, float, float],
    window_hu: Window,
    title: str,
    error_range_hu: float = 200,
) -> None:
    """Write a figure to every path, ``.png`` or ``.pdf``.

    Args:
        reference_hu: (D, H, W) HU in canonical orientation.
        reconstructions_hu: of each method, by its title; columns stand in this order.
        captions: a line below each title, such as figures of merit.
        spacing_dhw: voxel spacing in mm, in the order (D, H, W).
        error_range_hu: the error's colours run from minus this to plus this.

    Raises:
        InputError: the shapes do not fit, or a path has another suffix.
    """
    from matplotlib.figure import Figure

    wrong = [name for name, hu in reconstructions_hu.items() if hu.shape != reference_hu.shape]
    if wrong:
        raise InputError(f"the reconstruction of {wrong[0]} has another shape than the input", "use one grid")
    if any(path.suffix.lower() not in (".png", ".pdf") for path in paths):
        raise InputError(f"cannot write a figure to {paths[0]}", "use names that end in .png or .pdf")
    columns = len(reconstructions_hu) + 1
    cell = (WIDTH - LEFT - RIGHT - GAP * (columns - 1)) / columns
    extent = [n * mm for n, mm in zip(reference_hu.shape, spacing_dhw, strict=True)]
    scale = min(
        cell / max(extent[plane.horizontal] for plane in PLANES),
        TALLEST_PANEL / max(extent[plane.vertical] for plane in PLANES),
    )
    heights = [scale * extent[plane.vertical] for plane in PLANES]
    height = TOP + sum(2 * h + GAP for h in heights) + VIEW_GAP * (len(PLANES) - 1) + BOTTOM
    page = Figure(figsize=(WIDTH, height), facecolor="white")
    _write(page, LEFT, 0.13, title, size=SIZE, weight="bold")
    for number, name in enumerate(("Input", *reconstructions_hu)):
        middle = LEFT + number * (cell + GAP) + cell / 2
        _write(page, middle, TOP - 0.14, name, size=SIZE, ha="center")
        _write(page, middle, TOP - 0.03, captions.get(name, ""), size=SMALL_SIZE, ha="center", color="0.3")
    top = TOP
    centre = body_centre(reference_hu)
    for plane, panel in zip(PLANES, heights, strict=True):
        _draw_view(
            page,
            plane,
            top,
            panel,
            cell,
            reference_hu,
            reconstructions_hu,
            centre,
            spacing_dhw,
            window_hu,
            error_range_hu,
        )
        top += 2 * panel + GAP + VIEW_GAP
    for path in paths:
        with atomic_path(path) as temporary:
            page.savefig(temporary, dpi=DOTS_PER_INCH)


def _draw_view(
    page: Figure,
    plane: Plane,
    top: float,
    height: float,
    cell: float,
    reference: np.ndarray,
    reconstructions: dict[str, np.ndarray],
    centre: tuple[int, int, int],
    spacing_dhw: tuple[float, float, float],
    window_hu: Window,
    error_range_hu: float,
) -> None:
    """Draw the pictures of one view, and the errors below those of the methods."""
    extent = (
        reference.shape[plane.horizontal] * spacing_dhw[plane.horizontal],
        reference.shape[plane.vertical] * spacing_dhw[plane.vertical],
    )
    below = top + height + GAP
    _write(page, LEFT - 0.08, top + height / 2, plane.name, size=SIZE, rotation=90, ha="right", va="center")
    _write(page, LEFT - 0.08, below + height / 2, "error", size=SIZE, rotation=90, ha="right", va="center")
    shown = plane_slice(reference, plane, centre)
    axes = _axes(page, 0, top, height, cell)
    _picture(axes, shown, window_hu, "gray", extent)
    for number, volume in enumerate(reconstructions.values(), start=1):
        made = plane_slice(volume, plane, centre)
        _picture(_axes(page, number, top, height, cell), made, window_hu, "gray", extent)
        limits = (-error_range_hu, error_range_hu)
        _picture(_axes(page, number, below, height, cell), made - shown, limits, "RdBu_r", extent)
    _bar(page, top, height, "gray", window_hu)
    _bar(page, below, height, "RdBu_r", (-error_range_hu, error_range_hu))


def _axes(page: Figure, column: int, top: float, height: float, cell: float) -> Axes:
    return _place(page, LEFT + column * (cell + GAP), top, cell, height)


def _place(page: Figure, left: float, top: float, width: float, height: float) -> Axes:
    page_width, page_height = page.get_size_inches()
    return page.add_axes(
        (left / page_width, 1 - (top + height) / page_height, width / page_width, height / page_height)
    )


def _picture(axes: Axes, picture: np.ndarray, limits: Window, colours: str, extent: tuple[float, float]) -> None:
    axes.imshow(
        picture,
        cmap=colours,
        vmin=limits[0],
        vmax=limits[1],
        extent=(0, extent[0], extent[1], 0),
        aspect="equal",
        interpolation="nearest",
    )
    axes.set_axis_off()


def _bar(page: Figure, top: float, height: float, colours: str, limits: Window) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    axes = _place(page, WIDTH - RIGHT + BAR_OFFSET, top, BAR_WIDTH, height)
    bar = page.colorbar(ScalarMappable(Normalize(*limits), colours), cax=axes)
    bar.outline.set(linewidth=0.4, edgecolor="0.6")
    ticks = [limits[0], (limits[0] + limits[1]) / 2, limits[1]]
    bar.set_ticks(ticks, labels=[f"{tick:g}".replace("-", "\N{MINUS SIGN}") for tick in ticks])
    bar.ax.tick_params(labelsize=SMALL_SIZE - 1, length=1.5, width=0.4, pad=1.5)
    # those at the ends stay beside the bar, for another bar is close
    for label, place in zip(bar.ax.get_yticklabels(), ENDS, strict=True):
        label.set_verticalalignment(place)
    bar.set_label("HU", size=SMALL_SIZE - 1, labelpad=1)


def _write(page: Figure, left: float, base: float, text: str, **style: Any) -> None:
    width, height = page.get_size_inches()
    page.text(left / width, 1 - base / height, text, parse_math=False, **{"va": "baseline", **style})
