"""Masks: counts, order, seeds, structure, covers."""

import itertools
import math

import numpy as np
import pytest
import torch

from MAESILLib.config import HIDING_NAMES, STRATEGY_NAMES
from MAESILLib.mae.masking import (
    STRATEGIES,
    MaskSpec,
    complete_cover,
    draw_visible,
    generator_for,
    hidden_from_visible,
    hidden_tokens,
    visible_count,
)
from MAESILLib.runtime.errors import InputError

Grid = tuple[int, int, int]

GRIDS = [(16, 16, 16), (7, 14, 12), (3, 4, 5), (1, 6, 9)]
RATIOS = [(0.0, 0.0), (0.5, 0.5), (0.25, 0.6), (0.7, 0.1), (0.95, 0.95)]


def visible_grids(grid: Grid, spec: MaskSpec, batch: int = 1) -> np.ndarray:
    """Draw masks (batch, D, H, W), True where a token is visible."""
    return (~hidden_tokens(draw_visible(grid, spec, batch, generator_for(2)), grid)).numpy()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_counts_are_exact_and_rows_sorted_and_unique(strategy: str) -> None:
    for grid, ratios in itertools.product(GRIDS, RATIOS):
        spec = MaskSpec(strategy, *ratios)
        visible = draw_visible(grid, spec, 5, generator_for(1))
        assert visible.shape == (5, visible_count(grid, spec))
        assert visible.dtype == torch.int64
        assert (visible.diff(dim=1) > 0).all(), "not strictly ascending"
        assert visible.min() >= 0
        assert visible.max() < math.prod(grid)


def test_counts_follow_the_definition_of_dual() -> None:
    assert tuple(STRATEGIES) == STRATEGY_NAMES
    # round(256 * .5) = 128 positions, of these round(128 * .5) = 64 at each of 16 depths
    assert visible_count((16, 16, 16), MaskSpec("dual", 0.5, 0.5)) == 16 * 64
    # round(20 * .75) = 15, round(15 * .4) = 6
    assert visible_count((3, 4, 5), MaskSpec("dual", 0.25, 0.6)) == 3 * 6
    for strategy, grid, ratios in itertools.product(("uniform", "group", "block"), GRIDS, RATIOS):
        assert visible_count(grid, MaskSpec(strategy, *ratios)) == visible_count(grid, MaskSpec("dual", *ratios))


@pytest.mark.parametrize(("strategy", "expected"), [("dual", [3, 5, 9, 15, 16, 17]), ("group", [2, 3, 6, 7, 18, 19])])
def test_the_exact_mask_of_a_seed(strategy: str, expected: list[int]) -> None:
    assert draw_visible((2, 3, 4), MaskSpec(strategy), 1, generator_for(0)).tolist() == [expected]


def test_a_mask_depends_on_its_generator_alone() -> None:
    def draw(*seed: object) -> torch.Tensor:
        return draw_visible((8, 8, 8), MaskSpec("dual"), 8, generator_for(*seed))

    first = draw(7, "volume", 3)
    torch.rand(1)
    assert torch.equal(first, draw(7, "volume", 3))
    others = [draw(8, "volume", 3), draw(7, "volume", 4)]
    # nor are two samples of a batch alike
    assert len(torch.cat([first, *others]).unique(dim=0)) == 24


@pytest.mark.parametrize("strategy", HIDING_NAMES)
@pytest.mark.parametrize("grid", [(4, 4, 4), (8, 4, 8)])
def test_every_token_is_drawn_equally_often(strategy: str, grid: Grid) -> None:
    draws, tokens = 4000, math.prod(grid)
    visible = draw_visible(grid, MaskSpec(strategy, 0.5, 0.5), draws, generator_for(11))
    share = torch.bincount(visible.flatten(), minlength=tokens) / draws
    # 5 standard deviations of a binomial share
    assert (share - 0.25).abs().max() < 5 * (0.25 * 0.75 / draws) ** 0.5


def test_structured_masks() -> None:
    grid, n_plane, n_axis = (64, 6, 5), 15, 8
    for row in visible_grids(grid, MaskSpec("dual"), 4).reshape(4, 64, -1):
        assert (row.sum(1) == n_axis).all()
        # over many depths the union is the whole plane set, not less
        assert row.any(0).sum() == n_plane
    (product,), (tube,) = (visible_grids((8, 6, 6), MaskSpec(name)) for name in ("product", "tube"))
    slices, columns = product.any((1, 2)), product.any(0)
    assert (product == slices[:, None, None] & columns).all()
    assert slices.sum() == 4
    assert columns.sum() == 18
    assert (tube == tube[:1]).all()


@pytest.mark.parametrize(("strategy", "side"), [("group", 2), ("block", 4)])
@pytest.mark.parametrize("grid", [(16, 16, 16), (8, 4, 12), (7, 10, 13), (3, 4, 5)])
@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.7])
def test_cubes_of_tokens_hide_together(strategy: str, side: int, grid: Grid, ratio: float) -> None:
    for mask in visible_grids(grid, MaskSpec(strategy, ratio, ratio), 4):
        starts = itertools.product(*(range(0, n, side) for n in grid))
        cubes = [mask[d : d + side, h : h + side, w : w + side] for d, h, w in starts]
        assert sum(cube.any() and not cube.all() for cube in cubes) <= 1, "more than the last cube is cut"


@pytest.mark.parametrize("strategy", HIDING_NAMES)
@pytest.mark.parametrize("ratios", [(0.5, 0.5), (0.5, 0.0), (0.75, 0.2), (0.9, 0.9)])
@pytest.mark.parametrize("grid", [(16, 16, 16), (6, 10, 14)])
def test_a_cover_is_two_disjoint_masks_where_half_is_hidden(
    strategy: str, ratios: tuple[float, float], grid: Grid
) -> None:
    cover = complete_cover(grid, MaskSpec(strategy, *ratios), generator_for(5))
    assert len(cover) == 2
    assert cover.flatten().unique().numel() == cover.numel()


@pytest.mark.parametrize("strategy", HIDING_NAMES)
def test_covers_hide_every_token_whatever_the_grid(strategy: str) -> None:
    """Cubes and rows that are cut at the border, and ratios that hide one token or leave one."""
    tried = 0
    for grid in itertools.product((1, 2, 3, 5, 8), repeat=3):
        for ratios in itertools.product((0.0, 0.05, 0.3, 0.5, 0.95), repeat=2):
            spec = MaskSpec(strategy, *ratios)
            if visible_count(grid, spec) == math.prod(grid):
                with pytest.raises(InputError, match="hides no token"):
                    complete_cover(grid, spec, generator_for(0))
                continue
            cover = complete_cover(grid, spec, generator_for(0, grid, ratios))
            assert cover.shape[1] == visible_count(grid, spec)
            assert (cover.diff(dim=1) > 0).all()
            assert torch.bincount(cover.flatten(), minlength=math.prod(grid)).max() < len(cover) <= math.prod(grid)
            tried += 1
    assert tried > 1000


def test_a_strategy_that_never_covers_is_a_bug_not_a_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STRATEGIES, "uniform", lambda *_: np.array([0, 1, 2]))
    with pytest.raises(RuntimeError, match=r"24 masks by .*uniform.* of a \(2, 3, 4\) grid that none of them hides"):
        complete_cover((2, 3, 4), MaskSpec("uniform"), generator_for(0))


def test_hidden_is_the_sorted_complement() -> None:
    visible = torch.tensor([[0, 2, 5], [1, 3, 4]])
    assert hidden_from_visible(visible, 6).tolist() == [[1, 3, 4], [0, 2, 5]]
    assert hidden_tokens(visible, (1, 2, 3))[0].tolist() == [[[False, True, False], [True, True, False]]]


@pytest.mark.parametrize("bad", [{"strategy": "dial"}, {"plane_ratio": 0.96}, {"axis_ratio": -0.1}])
def test_a_wrong_mask_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(InputError, match=r"dial|plane_ratio|axis_ratio"):
        MaskSpec(**bad)
