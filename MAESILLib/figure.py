"""The figure of a reconstruction: input, masked input, reconstruction and error in three planes.

matplotlib is imported inside the functions, and drawn with its Agg or PDF canvas: no window system
is needed and the import costs nothing to those who draw nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from MAESILLib.errors import InputError
from MAESILLib.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROWS = ("Input", "Masked input", "Reconstruction", "Error")
HIDDEN_COLOUR = "#4d6a80"
HIDDEN_ROW, ERROR_ROW = 1, 3
TISSUE_HU = -500
DOTS_PER_INCH = 150

# Inches.
PAGE_WIDTH, SMALLEST_PAGE_WIDTH, TALLEST_GRID = 10.0, 7.0, 11.6
LEFT, RIGHT, TOP, BOTTOM, GAP = 0.42, 0.98, 0.16, 0.16, 0.07
COLUMN_TITLE_HEIGHT = 0.28
# What a column's and a row's title need.
NARROWEST_COLUMN, LOWEST_ROW = 1.3, 1.15
BAR_WIDTH, BAR_OFFSET = 0.11, 0.12
INSET, SMALLEST_LETTERED = 0.035, 0.35
# Points.
TITLE_SIZE, SUBTITLE_SIZE, LABEL_SIZE, SMALL_SIZE = 11.0, 8.5, 9.0, 7.5
LINE_SPACING = 1.35


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
    path: Path | str,
    *,
    reference_hu: np.ndarray,
    masked_hu: np.ndarray,
    reconstruction_hu: np.ndarray,
    error_hu: np.ndarray,
    spacing_dhw: tuple[float, float, float],
    hidden: np.ndarray | None = None,
    window_hu: tuple[float, float] = (-1000, 1000),
    title: str = "",
    subtitle: str = "",
    error_range_hu: float = 300,
    centre_dhw: tuple[int, int, int] | None = None,
) -> None:
    """Write a figure of four rows (input, masked, reconstruction, error) in three planes.

    All panels have the same scale in millimetres. Radiological convention: the patient's right is on
    the left of axial and coronal pictures, anterior on the left of sagittal ones.

    Args:
        path: file to write, ``.png`` or ``.pdf``.
        reference_hu, masked_hu, reconstruction_hu, error_hu: (D, H, W) HU in canonical orientation: D
            towards superior, H towards posterior, W towards the patient's left.
        spacing_dhw: voxel spacing in mm, in the order (D, H, W).
        hidden: (D, H, W) bool; these voxels get a flat colour in the masked row. None: none does.
        window_hu: grey window of the first three rows, low and high.
        title: line at the top: case, mask, checkpoint. Long lines are wrapped.
        subtitle: line below it: figures of merit.
        error_range_hu: the error's colours run from minus this to plus this.
        centre_dhw: voxel that the three planes pass through. None: the middle of the patient.

    Raises:
        InputError: the shapes do not fit, the centre is off the volume, or the suffix is another one.
    """
    path = Path(path)
    if path.suffix.lower() not in (".png", ".pdf"):
        raise InputError(f"cannot write a figure to {path}", "use a name that ends in .png or .pdf")
    volumes = (reference_hu, masked_hu, reconstruction_hu, error_hu)
    _check(volumes, hidden)
    centre = body_centre(reference_hu) if centre_dhw is None else centre_dhw
    if not all(0 <= index < size for index, size in zip(centre, reference_hu.shape, strict=True)):
        raise InputError(f"slice centre {centre} is off the volume of shape {reference_hu.shape}", "choose one in it")

    layout = _Layout.of(reference_hu.shape, spacing_dhw, title, subtitle)
    figure = layout.new_figure()
    _draw_header(figure, layout)
    for column, plane in enumerate(PLANES):
        _draw_column_title(figure, layout, column, centre[plane.normal] + 1, reference_hu.shape[plane.normal])
        for row, volume in enumerate(volumes):
            axes = layout.add_axes(figure, layout.panel(row, column))
            limits = window_hu if row != ERROR_ROW else (-error_range_hu, error_range_hu)
            _draw_slice(axes, plane_slice(volume, plane, centre), limits, "gray" if row != ERROR_ROW else "RdBu_r")
            if row == HIDDEN_ROW and hidden is not None:
                _draw_hidden(axes, plane_slice(hidden, plane, centre))
            if row == 0:
                with_scale = column == 0
                _draw_letters(axes, plane, layout.sizes[column], with_scale)
                if with_scale:
                    _draw_scale_bar(axes, layout.sizes[column], reference_hu.shape[2] * spacing_dhw[2])
    _draw_row_titles(figure, layout)
    _draw_colour_bars(figure, layout, window_hu, error_range_hu, hidden is not None)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=DOTS_PER_INCH)


def plane_slice(volume: np.ndarray, plane: Plane, centre_dhw: Sequence[int]) -> np.ndarray:
    """Return the slice of ``volume`` through ``centre_dhw``, its rows from top to bottom of the picture."""
    picture = np.take(volume, centre_dhw[plane.normal], axis=plane.normal)
    return picture[::-1] if plane.flipped else picture


def body_centre(hu: np.ndarray) -> tuple[int, int, int]:
    """Return the index (D, H, W) of the median tissue voxel along each axis (of the volume, if all is air)."""
    # Every third voxel gives the same picture in a twentieth of the time.
    step = 3
    tissue = hu[::step, ::step, ::step] > TISSUE_HU
    if not tissue.any():
        return (hu.shape[0] // 2, hu.shape[1] // 2, hu.shape[2] // 2)
    depth, height, width = (step * int(np.median(index)) for index in np.nonzero(tissue))
    return depth, height, width


def _check(volumes: Sequence[np.ndarray], hidden: np.ndarray | None) -> None:
    shapes = {volume.shape for volume in (*volumes, *([] if hidden is None else [hidden]))}
    if len(shapes) != 1 or len(next(iter(shapes))) != 3:
        raise InputError(f"a figure needs volumes on one grid, got shapes {sorted(shapes)}", "resample them first")


@dataclass(frozen=True)
class _Layout:
    """Where things are on the page, in inches from its left and top.

    Attributes:
        width, height: of the page.
        sizes: (width, height) of the panels of each column.
        column_widths, row_height: of the cells that hold the panels.
        grid_left, grid_top: of the panels.
        title, subtitle: wrapped lines.
    """

    width: float
    height: float
    sizes: tuple[tuple[float, float], ...]
    column_widths: tuple[float, ...]
    row_height: float
    grid_left: float
    grid_top: float
    title: tuple[str, ...]
    subtitle: tuple[str, ...]

    @classmethod
    def of(cls, shape: tuple[int, ...], spacing_dhw: tuple[float, float, float], title: str, subtitle: str) -> _Layout:
        """Make the panels as large as the page allows, all at one scale."""
        extent = [size * spacing for size, spacing in zip(shape, spacing_dhw, strict=True)]
        widths = [extent[plane.horizontal] for plane in PLANES]
        heights = [extent[plane.vertical] for plane in PLANES]
        around = LEFT + RIGHT + GAP * (len(PLANES) - 1)
        scale = min((PAGE_WIDTH - around) / sum(widths), TALLEST_GRID / len(ROWS) / max(heights))
        sizes = tuple((scale * width, scale * height) for width, height in zip(widths, heights, strict=True))
        column_widths = tuple(max(width, NARROWEST_COLUMN) for width, _ in sizes)
        row_height = max(scale * max(heights), LOWEST_ROW)
        page_width = max(sum(column_widths) + around, SMALLEST_PAGE_WIDTH)
        lines = [
            tuple(wrap_text(text, size, bold, (page_width - 2 * LEFT) * 72))
            for text, size, bold in ((title, TITLE_SIZE, True), (subtitle, SUBTITLE_SIZE, False))
        ]
        header = sum(len(part) * size for part, size in zip(lines, (TITLE_SIZE, SUBTITLE_SIZE), strict=True))
        top = TOP + header * LINE_SPACING / 72 + COLUMN_TITLE_HEIGHT
        return cls(
            width=page_width,
            height=top + len(ROWS) * (row_height + GAP) - GAP + BOTTOM,
            sizes=sizes,
            column_widths=column_widths,
            row_height=row_height,
            grid_left=LEFT + (page_width - around - sum(column_widths)) / 2,
            grid_top=top,
            title=lines[0],
            subtitle=lines[1],
        )

    def panel(self, row: int, column: int) -> tuple[float, float, float, float]:
        """Return left, top, width and height of a panel: at the top of its cell, in its middle."""
        width, height = self.sizes[column]
        left = self.grid_left + sum(self.column_widths[:column]) + GAP * column
        return left + (self.column_widths[column] - width) / 2, self.row_top(row), width, height

    def row_top(self, row: int) -> float:
        """Return the top of a row of panels."""
        return self.grid_top + row * (self.row_height + GAP)

    @property
    def grid_right(self) -> float:
        """Return the right end of the panels."""
        return self.grid_left + sum(self.column_widths) + GAP * (len(PLANES) - 1)

    def new_figure(self) -> Figure:
        """Return an empty page."""
        from matplotlib.figure import Figure

        return Figure(figsize=(self.width, self.height), facecolor="white")

    def add_axes(self, figure: Figure, box: tuple[float, float, float, float]) -> Axes:
        """Add axes at ``box``: left, top, width and height in inches."""
        left, top, width, height = box
        return figure.add_axes(
            (left / self.width, 1 - (top + height) / self.height, width / self.width, height / self.height)
        )

    def add_text(self, figure: Figure, left: float, top: float, text: str, **style: Any) -> None:
        """Add text at a point in inches; dollar signs in file names are no formulas."""
        figure.text(left / self.width, 1 - top / self.height, text, parse_math=False, **style)


def wrap_text(text: str, size: float, bold: bool, width: float) -> list[str]:
    """Break ``text`` into lines of at most ``width`` points, between words where possible."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(size=size, weight="bold" if bold else "normal")

    def fits(line: str) -> bool:
        return text_to_path.get_text_width_height_descent(line, font, False)[0] <= width

    lines: list[str] = []
    for word in text.split():
        joined = f"{lines[-1]} {word}" if lines else word
        if fits(joined):
            lines[-1:] = [joined]
            continue
        while not fits(word):
            cut = next(end for end in range(len(word) - 1, 0, -1) if end == 1 or fits(word[:end]))
            lines.append(word[:cut])
            word = word[cut:]
        lines.append(word)
    return lines


def _draw_header(figure: Figure, layout: _Layout) -> None:
    top = TOP
    for lines, size, weight, colour in (
        (layout.title, TITLE_SIZE, "bold", "black"),
        (layout.subtitle, SUBTITLE_SIZE, "normal", "0.3"),
    ):
        for line in lines:
            layout.add_text(figure, LEFT, top, line, size=size, weight=weight, color=colour, va="top")
            top += size * LINE_SPACING / 72


def _draw_column_title(figure: Figure, layout: _Layout, column: int, number: int, count: int) -> None:
    left, _, width, _ = layout.panel(0, column)
    text = f"{PLANES[column].name}  {number}/{count}"
    base = layout.grid_top - 0.07
    layout.add_text(figure, left + width / 2, base, text, size=LABEL_SIZE, ha="center", va="baseline")


def _draw_row_titles(figure: Figure, layout: _Layout) -> None:
    for row, name in enumerate(ROWS):
        middle = layout.row_top(row) + layout.row_height / 2
        layout.add_text(
            figure, layout.grid_left - 0.1, middle, name, size=LABEL_SIZE, rotation=90, ha="right", va="center"
        )


def _draw_slice(axes: Axes, picture: np.ndarray, limits: tuple[float, float], colours: str) -> None:
    axes.imshow(picture, cmap=colours, vmin=limits[0], vmax=limits[1], aspect="auto", interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(linewidth=0.5, color="0.6")


def _draw_hidden(axes: Axes, hidden: np.ndarray) -> None:
    from matplotlib.colors import ListedColormap

    flat = np.ma.masked_where(~hidden, hidden)
    axes.imshow(flat, cmap=ListedColormap([HIDDEN_COLOUR]), aspect="auto", interpolation="nearest")


def _draw_letters(axes: Axes, plane: Plane, size: tuple[float, float], with_scale: bool) -> None:
    if min(size) < SMALLEST_LETTERED:
        return
    x, y = INSET / size[0], INSET / size[1]
    places = [
        (x, 0.5, "left", "center"),
        (1 - x, 0.5, "right", "center"),
        (0.5, 1 - y, "center", "top"),
        (0.5, y, "center", "bottom"),
    ]
    # The scale bar needs the lower left of a small panel for itself; the opposite letter tells as much.
    crowded = (with_scale and size[1] < 0.6, False, False, with_scale and size[0] < NARROWEST_COLUMN)
    for letter, (left, bottom, horizontal, vertical), omitted in zip(plane.letters, places, crowded, strict=True):
        if not omitted:
            axes.text(left, bottom, letter, transform=axes.transAxes, ha=horizontal, va=vertical, **_overlay_style())


def _draw_scale_bar(axes: Axes, size: tuple[float, float], extent: float) -> None:
    length = next(mm for mm in (50, 20, 10, 5, 1) if mm <= 0.45 * extent or mm == 1)
    left, bottom = 2 * INSET / size[0], 2 * INSET / size[1]
    style = _overlay_style()
    axes.plot(
        (left, left + length / extent), (bottom, bottom), transform=axes.transAxes, color="white", linewidth=2,
        solid_capstyle="butt", path_effects=style["path_effects"],
    )  # fmt: skip
    axes.text(left, 1.5 * bottom, f"{length} mm", transform=axes.transAxes, ha="left", va="bottom", **style)


def _overlay_style() -> dict[str, Any]:
    """Return white text with a dark rim, legible on air and on bone."""
    from matplotlib.patheffects import withStroke

    return {"color": "white", "size": SMALL_SIZE, "path_effects": [withStroke(linewidth=1.6, foreground="0.1")]}


def _draw_colour_bars(
    figure: Figure, layout: _Layout, window_hu: tuple[float, float], error_range_hu: float, with_hidden: bool
) -> None:
    left = layout.grid_right + BAR_OFFSET
    below = 0.55 if with_hidden else 0.2
    grey_bottom = layout.row_top(ERROR_ROW) - GAP
    _draw_colour_bar(
        figure, layout, (left, layout.grid_top, BAR_WIDTH, grey_bottom - layout.grid_top - below), "gray", window_hu
    )
    error_box = (left, layout.row_top(ERROR_ROW), BAR_WIDTH, layout.row_height)
    _draw_colour_bar(figure, layout, error_box, "RdBu_r", (-error_range_hu, error_range_hu))
    if with_hidden:
        axes = layout.add_axes(figure, (left, grey_bottom - 0.25, BAR_WIDTH, BAR_WIDTH))
        axes.set(xticks=[], yticks=[], facecolor=HIDDEN_COLOUR)
        layout.add_text(
            figure, left + BAR_WIDTH + 0.06, grey_bottom - 0.25 + BAR_WIDTH / 2, "hidden", size=SMALL_SIZE, va="center"
        )


def _draw_colour_bar(
    figure: Figure, layout: _Layout, box: tuple[float, float, float, float], colours: str, limits: tuple[float, float]
) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    bar = figure.colorbar(ScalarMappable(Normalize(*limits), colours), cax=layout.add_axes(figure, box))
    bar.outline.set(linewidth=0.5, edgecolor="0.6")
    ticks = np.linspace(*limits, 5).tolist()
    bar.set_ticks(ticks, labels=[f"{tick:g}".replace("-", "\N{MINUS SIGN}") for tick in ticks])
    bar.ax.tick_params(labelsize=SMALL_SIZE, length=2, width=0.5, pad=2)
    bar.set_label("HU", size=SMALL_SIZE, labelpad=2)
