"""Masks: counts, order, seeds, structure, covers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from MAESILLib.errors import InputError
from MAESILLib.masking import (
    STRATEGIES,
    MaskSpec,
    complete_cover,
    draw_visible,
    generator_for,
    hidden_from_visible,
    hidden_tokens,
    visible_count,
)

GRIDS = [(16, 16, 16), (7, 14, 12), (3, 4, 5), (1, 6, 9)]
RATIOS = [(0.0, 0.0), (0.5, 0.5), (0.25, 0.6), (0.7, 0.1), (0.95, 0.95)]
HIDING = [name for name in STRATEGIES if name != "none"]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("grid", GRIDS)
def test_counts_are_exact_and_rows_sorted_and_unique(strategy: str, grid: tuple[int, int, int]) -> None:
    for plane, axis in RATIOS:
        spec = MaskSpec(strategy, plane, axis)
        visible = draw_visible(grid, spec, 5, generator_for(1))
        assert visible.shape == (5, visible_count(grid, spec))
        assert visible.dtype == torch.int64
        assert (visible.diff(dim=1) > 0).all(), "not strictly ascending"
        assert visible.min() >= 0
        assert visible.max() < np.prod(grid)


def test_dual_counts_follow_the_definition() -> None:
    # round(256 * .5) = 128 positions, of these round(128 * .5) = 64 at each of 16 depths
    assert visible_count((16, 16, 16), MaskSpec("dual", 0.5, 0.5)) == 16 * 64
    # round(20 * .75) = 15, round(15 * .4) = 6
    assert visible_count((3, 4, 5), MaskSpec("dual", 0.25, 0.6)) == 3 * 6


def test_dual_keeps_the_same_positions_at_every_depth_and_the_same_number() -> None:
    grid = (7, 6, 5)
    visible = draw_visible(grid, MaskSpec("dual", 0.5, 0.5), 4, generator_for(2))
    n_plane, n_axis = 15, 8
    for row in (~hidden_tokens(visible, grid)).numpy():
        assert (row.reshape(7, -1).sum(1) == n_axis).all()
        assert row.reshape(7, -1).any(0).sum() <= n_plane
    # over many depths the union is the whole plane set, not less
    tall = draw_visible((64, 6, 5), MaskSpec("dual", 0.5, 0.5), 1, generator_for(3))
    assert (~hidden_tokens(tall, (64, 6, 5))).numpy().reshape(64, -1).any(0).sum() == n_plane


def test_structured_strategies_have_their_structure() -> None:
    grid = (8, 6, 6)
    product = (~hidden_tokens(draw_visible(grid, MaskSpec("product"), 1, generator_for(0)), grid))[0].numpy()
    slices, columns = product.any((1, 2)), product.any(0)
    assert (product == slices[:, None, None] & columns).all()
    assert slices.sum() == 4
    assert columns.sum() == 18
    tube = (~hidden_tokens(draw_visible(grid, MaskSpec("tube"), 1, generator_for(0)), grid))[0].numpy()
    assert (tube == tube[:1]).all()
    block = (~hidden_tokens(draw_visible(grid, MaskSpec("block"), 1, generator_for(0)), grid))[0].numpy()
    sums = block.reshape(4, 2, 3, 2, 3, 2).sum((1, 3, 5))
    assert ((sums > 0) & (sums < 8)).sum() <= 1, "more than the last block is split"


def test_one_seed_gives_one_mask() -> None:
    spec = MaskSpec("dual", 0.5, 0.5)
    first = draw_visible((4, 4, 4), spec, 2, generator_for(7, "volume", 3))
    assert torch.equal(first, draw_visible((4, 4, 4), spec, 2, generator_for(7, "volume", 3)))
    assert not torch.equal(first, draw_visible((4, 4, 4), spec, 2, generator_for(8, "volume", 3)))
    assert not torch.equal(first, draw_visible((4, 4, 4), spec, 2, generator_for(7, "volume", 4)))


def test_the_exact_mask_of_a_seed() -> None:
    visible = draw_visible((2, 3, 4), MaskSpec("dual", 0.5, 0.5), 1, generator_for(0))
    assert visible.tolist() == GOLDEN


GOLDEN = [[0, 3, 6, 12, 18, 21]]


@pytest.mark.parametrize("strategy", HIDING)
def test_every_token_is_drawn_equally_often(strategy: str) -> None:
    grid, draws = (4, 4, 4), 4000
    visible = draw_visible(grid, MaskSpec(strategy, 0.5, 0.5), draws, generator_for(11))
    share = torch.bincount(visible.flatten(), minlength=64) / draws
    # 5 standard deviations of a binomial share
    assert (share - 0.25).abs().max() < 5 * (0.25 * 0.75 / draws) ** 0.5


def test_rows_of_a_batch_differ() -> None:
    visible = draw_visible((8, 8, 8), MaskSpec("uniform"), 8, generator_for(0))
    for a, b in itertools.combinations(visible, 2):
        assert not torch.equal(a, b)


@pytest.mark.parametrize("strategy", HIDING)
@pytest.mark.parametrize("grid", GRIDS)
def test_a_complete_cover_hides_every_token(strategy: str, grid: tuple[int, int, int]) -> None:
    for plane, axis in [(0.5, 0.5), (0.25, 0.0), (0.0, 0.25), (0.4, 0.3), (0.9, 0.9)]:
        spec = MaskSpec(strategy, plane, axis)
        if visible_count(grid, spec) == np.prod(grid):
            with pytest.raises(InputError, match="hides no token"):
                complete_cover(grid, spec, generator_for(0))
            continue
        cover = complete_cover(grid, spec, generator_for(0))
        hidden = hidden_tokens(cover, grid)
        assert hidden.any(0).all()
        assert cover.shape[1] == visible_count(grid, spec)
        assert (cover.diff(dim=1) > 0).all()


@pytest.mark.parametrize("strategy", HIDING)
@pytest.mark.parametrize("ratios", [(0.5, 0.5), (0.5, 0.0), (0.75, 0.2), (0.9, 0.9)])
def test_a_cover_is_two_disjoint_masks_where_half_is_hidden(strategy: str, ratios: tuple[float, float]) -> None:
    cover = complete_cover((16, 16, 16), MaskSpec(strategy, *ratios), generator_for(5))
    assert len(cover) == 2
    assert cover.flatten().unique().numel() == cover.numel()


@pytest.mark.parametrize("strategy", HIDING)
def test_covers_of_ragged_grids_end_and_hide_every_token(strategy: str) -> None:
    """Blocks and rows that are cut at the border, and ratios that hide one token or leave one."""
    tried = 0
    for grid in itertools.product((1, 2, 3, 4, 5, 8), repeat=3):
        tokens = grid[0] * grid[1] * grid[2]
        for ratios in itertools.product((0.0, 0.05, 0.3, 0.5, 0.95), repeat=2):
            spec = MaskSpec(strategy, *ratios)
            if visible_count(grid, spec) == tokens:
                continue
            cover = complete_cover(grid, spec, generator_for(0, grid, ratios))
            seen = torch.bincount(cover.flatten(), minlength=tokens)
            assert seen.max() < len(cover) <= tokens, (grid, ratios)
            assert seen.sum() == len(cover) * visible_count(grid, spec)
            tried += 1
    assert tried > 4000


def test_a_strategy_that_never_covers_is_a_bug_not_a_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STRATEGIES, "uniform", lambda *_: np.array([[0, 1, 2]]))
    with pytest.raises(RuntimeError, match=r"24 masks by .*uniform.* of a \(2, 3, 4\) grid that none of them hides"):
        complete_cover((2, 3, 4), MaskSpec("uniform"), generator_for(0))


def test_hidden_is_the_sorted_complement() -> None:
    visible = torch.tensor([[0, 2, 5], [1, 3, 4]])
    assert hidden_from_visible(visible, 6).tolist() == [[1, 3, 4], [0, 2, 5]]
    grid = hidden_tokens(visible, (1, 2, 3))
    assert grid[0].tolist() == [[[False, True, False], [True, True, False]]]


@pytest.mark.parametrize("bad", [{"strategy": "dial"}, {"plane_ratio": 0.96}, {"axis_ratio": -0.1}])
def test_a_wrong_mask_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(InputError, match=r"dial|plane_ratio|axis_ratio"):
        MaskSpec(**bad)  # type: ignore[arg-type]


def test_the_command_line_knows_every_strategy() -> None:
    from MAESILLib.config import STRATEGY_NAMES

    assert tuple(STRATEGIES) == STRATEGY_NAMES
