"""Superpatches: covering, alignment, padding, blending."""

import itertools

import numpy as np
import pytest

from MAESILLib.mae.superpatch import Blend, Superpatch, blending_weights, extract, partition
from MAESILLib.runtime.errors import InputError

SHAPES = [(51, 181, 220), (128, 128, 128), (9, 8, 130), (300, 70, 129)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("overlap", [0.0, 0.1, 0.25, 0.5, 0.75])
def test_boxes_cover_the_volume_with_whole_patches(shape: tuple[int, int, int], overlap: float) -> None:
    covered = np.zeros(shape, int)
    for box in partition(shape, (128, 64, 32), (8, 8, 4), overlap):
        for size, most, patch, start, length in zip(box.size, (128, 64, 32), (8, 8, 4), box.start, shape, strict=True):
            assert size % patch == 0
            assert size <= most
            assert start >= 0
            assert start + size - patch < length, "a patch of nothing but padding"
        covered[box.in_volume(shape)] += 1
    assert covered.min() >= 1
    if overlap == 0:
        assert covered.max() == 1, "superpatches overlap"


@pytest.mark.parametrize("superpatch", [8, 16, 24, 64, 128])
@pytest.mark.parametrize("overlap", [0.05, 0.25, 0.5, 0.75])
def test_neighbours_share_what_was_asked_for_at_every_length(superpatch: int, overlap: float) -> None:
    for length in range(superpatch + 1, 600):
        boxes = partition((8, 8, length), (8, 8, superpatch), (8, 8, 8), overlap)
        starts = [b.start[2] for b in boxes]
        assert starts[0] == 0
        assert starts[-1] + superpatch >= length
        shared = min(a + superpatch - b for a, b in itertools.pairwise(starts))
        # boxes lie on half patches, so the nearest neighbour is four voxels away
        assert shared >= min(overlap * superpatch, superpatch - 4)
        assert {start % 8 for start in starts} <= {0, 4}
        assert starts[-1] + superpatch - 8 < length, "a patch of nothing but padding"


def test_without_overlap_all_boxes_lie_on_one_patch_grid_and_are_even() -> None:
    boxes = partition((51, 181, 220), (128, 128, 128), (8, 8, 8))
    assert [b.index for b in boxes] == [0, 1, 2, 3]
    assert {b.size for b in boxes} == {(56, 96, 112), (56, 88, 112)}
    assert all(s % 8 == 0 for b in boxes for s in b.start)


def test_overlapping_neighbours_are_half_a_patch_off() -> None:
    starts = sorted({b.start[2] for b in partition((8, 8, 300), (64, 64, 64), (8, 8, 8), 0.25)})
    assert {s % 8 for s in starts} == {0, 4}
    for a, b in itertools.pairwise(starts):
        assert a + 64 - b >= 16, "neighbours share less than a quarter"


def test_extract_repeats_the_edge_and_place_back_drops_it() -> None:
    volume = np.arange(5 * 6 * 7, dtype=np.float32).reshape(5, 6, 7)
    box = Superpatch(0, (0, 0, 0), (8, 8, 8))
    cut = extract(volume, box)
    assert cut.shape == (8, 8, 8)
    assert np.array_equal(cut[:5, :6, :7], volume)
    assert (cut[5:, :6, :7] == volume[-1]).all()
    assert (cut[:5, :6, 7] == volume[:, :, -1]).all()
    blend = Blend(volume.shape)
    blend.add(box, cut, np.ones(box.size, np.float32))
    assert np.array_equal(blend.mean(), volume)


@pytest.mark.parametrize("overlap", [0.0, 0.25])
def test_cutting_and_blending_returns_the_volume(overlap: float) -> None:
    volume = np.random.default_rng(0).random((20, 50, 61), np.float32)
    blend = Blend(volume.shape)
    for box in partition(volume.shape, (32, 32, 32), (8, 8, 8), overlap):
        blend.add(box, extract(volume, box), blending_weights(box.size))
    np.testing.assert_allclose(blend.mean(), volume, atol=1e-6)


def test_blend_is_the_weighted_mean() -> None:
    blend = Blend((1, 1, 3))
    blend.add(Superpatch(0, (0, 0, 0), (1, 1, 2)), np.full((1, 1, 2), 2.0), np.full((1, 1, 2), 1.0))
    blend.add(Superpatch(1, (0, 0, 1), (1, 1, 1)), np.full((1, 1, 1), 8.0), np.full((1, 1, 1), 3.0))
    assert blend.mean(where_empty=-1).tolist() == [[[2.0, 6.5, -1.0]]]


@pytest.mark.parametrize(
    ("superpatch", "patch"), [((30, 32, 32), (8, 8, 8)), ((4, 4, 4), (8, 8, 8)), ((8, 8, 8), (0, 8, 8))]
)
def test_what_is_refused(superpatch: tuple[int, int, int], patch: tuple[int, int, int]) -> None:
    with pytest.raises(InputError, match="not a multiple"):
        partition((40, 40, 40), superpatch, patch)
    with pytest.raises(InputError, match="overlap"):
        partition((40, 40, 40), (32, 32, 32), (8, 8, 8), 0.8)
