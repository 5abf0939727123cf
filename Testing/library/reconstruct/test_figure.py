"""The figure: orientation, scale, colours, and text that neither overlaps nor leaves the page."""

from pathlib import Path
from typing import Any

import matplotlib.figure
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar

from MAESILLib.reconstruct.figure import HIDDEN_COLOUR, PLANES, body_centre, plane_slice, reconstruction_figure

SHAPES = {
    "chest": (40, 60, 80),
    "limb": (90, 30, 33),
    "flat": (10, 70, 90),
    "needle": (120, 20, 20),
    "one": (1, 50, 40),
}


def volumes(shape: tuple[int, int, int]) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    unit = rng.normal(0.5, 0.05, shape)
    hidden = rng.random(shape) < 0.5
    return {
        "reference": unit,
        "reconstruction": unit + 0.025,
        "hidden": hidden,
        "spacing_dhw": (2.0, 1.5, 1.0),
        "window_hu": (-1000.0, 1000.0),
        "title": "case_$1_$2 · dual mask .5/.5 · maesil-base " * 2,
        "subtitle": "PSNR masked 21.3 dB · MAE masked 61 HU · SSIM composite 0.83 · border index 1.02",
    }


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[matplotlib.figure.Figure]:
    """The figures that were saved."""
    figures: list[matplotlib.figure.Figure] = []
    save = matplotlib.figure.Figure.savefig

    def savefig(self: matplotlib.figure.Figure, *args: Any, **kwargs: Any) -> None:
        figures.append(self)
        save(self, *args, **kwargs)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", savefig)
    return figures


def panel_box(figure: matplotlib.figure.Figure, row: int, column: int) -> Bbox:
    """Where a picture is, as fractions of the page."""
    box = figure.axes[row * 3 + column].images[0].get_window_extent()
    return box.transformed(figure.transFigure.inverted())


def panel(page: np.ndarray, figure: matplotlib.figure.Figure, row: int, column: int) -> np.ndarray:
    """Cut a picture without its frame out of the page's pixels."""
    box = panel_box(figure, row, column)
    height, width = page.shape[:2]
    top, bottom = round((1 - box.y1) * height) + 2, round((1 - box.y0) * height) - 2
    return page[top:bottom, round(box.x0 * width) + 2 : round(box.x1 * width) - 2, :3]


def test_planes_are_shown_as_radiologists_see_them(tmp_path: Path, drawn: list) -> None:
    shape = (40, 50, 60)
    unit = np.zeros(shape)
    # superior (D high), anterior (H low), patient's right (W low): a block that all centre planes cut
    unit[18:36, 5:27, 8:32] = 1
    # twice as bright a block, twice as dark air
    changed = {"reference": unit, "reconstruction": 2 * unit - 0.5, "hidden": np.zeros(shape, bool)}
    reconstruction_figure(tmp_path / "f.png", **volumes(shape) | changed | {"spacing_dhw": (1, 1, 1), "title": ""})
    page = imread(tmp_path / "f.png")
    spans = {0: (slice(5, 27), slice(8, 32)), 1: (slice(4, 22), slice(8, 32)), 2: (slice(4, 22), slice(5, 27))}
    for column, (vertical, horizontal) in spans.items():
        # the axial reconstruction has the scale bar
        picture = panel(page, drawn[0], 2 if column else 1, column)
        rows, columns = np.nonzero(picture[..., 0] > 0.5)
        plane = PLANES[column]
        scale = picture.shape[0] / shape[plane.vertical]
        assert rows.min() / scale == pytest.approx(vertical.start, abs=0.7)
        assert (rows.max() + 1) / scale == pytest.approx(vertical.stop, abs=0.7)
        assert columns.min() / scale == pytest.approx(horizontal.start, abs=0.7)
        assert (columns.max() + 1) / scale == pytest.approx(horizontal.stop, abs=0.7)
        # in the error row, the same block is red (too bright), the rest blue
        error = panel(page, drawn[0], 3, column)
        assert error[rows, columns, 0].mean() > error[rows, columns, 2].mean() + 0.2
        assert error[0, 0, 2] > error[0, 0, 0] + 0.2


def test_letters_name_the_ends_of_the_array_axes() -> None:
    towards = {0: "IS", 1: "AP", 2: "RL"}
    for plane in PLANES:
        left, right, top, bottom = plane.letters
        assert left + right == towards[plane.horizontal]
        assert (bottom + top if plane.flipped else top + bottom) == towards[plane.vertical]
    indices = np.indices((3, 4, 5))
    coronal = plane_slice(indices[0], PLANES[1], (1, 2, 3))
    assert coronal[:, 0].tolist() == [2, 1, 0]
    assert plane_slice(indices[1], PLANES[1], (1, 2, 3)).tolist() == [[2] * 5] * 3
    assert plane_slice(indices[1], PLANES[2], (1, 2, 3))[0].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("name", SHAPES)
def test_layout(name: str, tmp_path: Path, drawn: list) -> None:
    shape, spacing = SHAPES[name], (2.0, 1.5, 1.0)
    reconstruction_figure(tmp_path / "f.png", **volumes(shape))
    figure = drawn[0]
    # millimetres: one scale in all panels
    page = figure.get_size_inches()
    scales = []
    for number in range(12):
        box = panel_box(figure, number // 3, number % 3)
        vertical, horizontal = [(1, 2), (0, 2), (0, 1)][number % 3]
        scales += [box.width * page[0] / (shape[horizontal] * spacing[horizontal])]
        scales += [box.height * page[1] / (shape[vertical] * spacing[vertical])]
    np.testing.assert_allclose(scales, scales[0], rtol=1e-6)
    # text: on the page, and no two overlap
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    texts = [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in texts]
    assert {"Axial", "Coronal", "Sagittal"} <= {text.split()[0] for text, _ in boxes}
    for number, (text, box) in enumerate(boxes):
        assert box.x0 >= 0, text
        assert box.y0 >= 0, text
        assert box.x1 <= figure.bbox.x1, text
        assert box.y1 <= figure.bbox.y1, text
        for other, other_box in boxes[number + 1 :]:
            assert not box.padded(-1).overlaps(other_box.padded(-1)), (text, other)
    # a page of reasonable size
    assert 1000 <= imread(tmp_path / "f.png").shape[1] <= 1700
    assert (tmp_path / "f.png").stat().st_size < 1.5e6


def test_scale_bar_is_as_long_as_it_says(tmp_path: Path, drawn: list) -> None:
    reconstruction_figure(tmp_path / "f.png", **volumes((40, 100, 200)))
    (bar,) = drawn[0].findobj(AnchoredSizeBar)
    assert bar.txt_label.get_text() == "50 mm"
    (line,) = bar.size_bar.findobj(Rectangle)
    # the axial picture is 200 mm wide, and the bar is inside it
    picture = bar.axes.images[0].get_window_extent()
    length = line.get_window_extent().width
    assert length / picture.width * 200 * 1.0 == pytest.approx(50, rel=0.01)
    assert picture.x0 <= line.get_window_extent().x0
    assert picture.y0 <= line.get_window_extent().y0 <= picture.y0 + picture.height / 3


def test_hidden_voxels_have_their_own_colour(tmp_path: Path, drawn: list) -> None:
    arguments = volumes((32, 32, 32))
    arguments["hidden"][:, :, :16] = True
    arguments["hidden"][:, :, 16:] = False
    reconstruction_figure(tmp_path / "f.png", **arguments)
    axial = panel(imread(tmp_path / "f.png"), drawn[0], 1, 0)
    flat = np.abs(axial - to_rgb(HIDDEN_COLOUR)).max(axis=-1) < 0.01
    half = axial.shape[1] // 2
    assert flat[:, : half - 3].all()
    assert not flat[:, half + 3 :].any()


def test_hidden_voxels_are_named_if_there_are_any_and_long_titles_are_wrapped(tmp_path: Path, drawn: list) -> None:
    arguments = volumes((12, 14, 16))
    for hidden, title in ((arguments["hidden"], "one two " + "x" * 200), (np.zeros((12, 14, 16), bool), "")):
        reconstruction_figure(tmp_path / "f.png", **(arguments | {"hidden": hidden, "title": title}))
    named = ["hidden" in [text.get_text() for text in figure.findobj(Text)] for figure in drawn]
    assert named == [True, False]
    title = drawn[0].get_suptitle()
    assert title.count("\n") >= 2
    assert title.replace("\n", "").replace(" ", "") == "onetwo" + "x" * 200


def test_centre_is_in_the_body() -> None:
    window = (-1000.0, 1000.0)
    unit = np.zeros((30, 60, 90))
    unit[3:12, 40:55, 60:84] = 0.525
    centre = body_centre(unit, window)
    np.testing.assert_allclose(centre, (7, 47, 71.5), atol=3)
    assert body_centre(np.zeros((4, 6, 8)), window) == (2, 3, 4)
