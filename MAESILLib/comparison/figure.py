"""The figure of the comparison, as the paper's Figure 3: input and reconstructions in three views, with error maps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from MAESILLib.config import Window
from MAESILLib.figure import PLANES, plane_slice
from MAESILLib.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 7.2
"""Inches: a page of two columns."""
TALLEST = 9.4
LARGE, SMALL = 8, 6.5
DOTS_PER_INCH = 150


def views_of(volume: np.ndarray, centre_dhw: Sequence[int]) -> list[np.ndarray]:
    """Return the axial, coronal and sagittal slice of a volume (D, H, W) through a voxel, as they are drawn."""
    return [plane_slice(volume, plane, centre_dhw) for plane in PLANES]


def comparison_figure(
    path: Path,
    columns: dict[str, list[np.ndarray]],
    *,
    window_hu: Window,
    title: str,
    error_range_hu: float = 200,
) -> None:
    """Write a figure: a row of pictures for each view, and below it a row of errors, all at one scale.

    Args:
        columns: HU of the three views (:func:`views_of`, isotropic voxels) by title; the first one is the input.
        error_range_hu: the error's colours run from minus this to plus this.
    """
    from matplotlib.figure import Figure

    reference = next(iter(columns.values()))
    heights = [view.shape[0] for view in reference for _ in range(2)]
    width = max(view.shape[1] for view in reference) * len(columns)
    page = Figure(figsize=(WIDTH, min(TALLEST, 0.8 + WIDTH * sum(heights) / width)), layout="constrained")
    page.suptitle(title, size=LARGE, weight="bold", parse_math=False)
    axes = page.subplots(len(heights), len(columns), squeeze=False, height_ratios=heights)
    for one in axes.flat:
        one.set_axis_off()
    limits = ((*window_hu, "gray"), (-error_range_hu, error_range_hu, "RdBu_r"))
    for column, (name, views) in enumerate(columns.items()):
        axes[0, column].set_title(name, size=SMALL, parse_math=False)
        for row, (view, shown) in enumerate(zip(views, reference, strict=True)):
            for below, picture in enumerate((view, view - shown) if column else (view,)):
                low, high, colours = limits[below]
                axes[2 * row + below, column].imshow(picture, colours, vmin=low, vmax=high, interpolation="nearest")
    for row, plane in enumerate(PLANES):
        axes[2 * row, 0].text(-0.05, 0.5, plane.name, size=LARGE, **_beside(axes[2 * row, 0]))
        for below in range(2) if len(columns) > 1 else (0,):
            bar = page.colorbar(
                axes[2 * row + below, -1].images[0], ax=axes[2 * row + below, :], pad=0.01, panchor=False
            )
            bar.set_label("HU", size=SMALL)
            bar.ax.tick_params(labelsize=SMALL - 1)
    with atomic_path(path) as temporary:
        page.savefig(temporary, dpi=DOTS_PER_INCH)


def _beside(axes: Axes) -> dict[str, Any]:
    return {"transform": axes.transAxes, "rotation": 90, "ha": "right", "va": "center"}
