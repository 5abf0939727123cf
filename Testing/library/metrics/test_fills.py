"""The trivial fills against brute force and closed forms."""

from pathlib import Path

import numpy as np
import pytest
import torch
from volume_factory import patch_mask, read_chest, smooth_volume, unit_of

from MAESILLib.mae.harmonic import harmonic_fill
from MAESILLib.metrics.fills import fill_mean, fill_nearest

FILLS = (fill_mean, fill_nearest)


def psnr_hidden(reference: np.ndarray, prediction: np.ndarray, hidden: np.ndarray) -> float:
    return float(-10 * np.log10(np.mean((reference[hidden].astype(float) - prediction[hidden]) ** 2)))


def test_nearest_takes_a_voxel_at_the_least_distance() -> None:
    shape = (9, 8, 11)
    image = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    hidden = np.random.default_rng(3).random(shape) < 0.9
    filled = fill_nearest(image, hidden)
    visible = np.argwhere(~hidden)
    for index in np.argwhere(hidden):
        source = np.unravel_index(int(filled[tuple(index)]), shape)
        least = ((visible - index) ** 2).sum(axis=1).min()
        assert not hidden[source]
        assert ((np.array(source) - index) ** 2).sum() == least


def test_mean_is_of_visible_voxels() -> None:
    image = np.array([[[1, 2, 4, 100]]], np.float32)
    hidden = np.array([[[False, False, True, False]]])
    assert fill_mean(image, hidden).tolist() == [[[1, 2, pytest.approx(103 / 3), 100]]]


@pytest.mark.parametrize("fill", FILLS)
def test_visible_voxels_stay_and_hidden_ones_are_not_read(fill) -> None:
    image = smooth_volume((20, 17, 23))
    hidden = patch_mask(image.shape, 0.7, patch=5)
    leaky = np.where(hidden, np.nan, image).astype(np.float32)
    filled = fill(leaky, hidden)
    assert filled.dtype == np.float32
    np.testing.assert_array_equal(filled[~hidden], image[~hidden])
    np.testing.assert_array_equal(filled, fill(image, hidden))
    assert np.isfinite(filled).all()
    assert np.isnan(leaky[hidden]).all()


@pytest.mark.parametrize("fill", FILLS)
def test_nothing_hidden(fill) -> None:
    image = smooth_volume((8, 9, 10))
    np.testing.assert_array_equal(fill(image, np.zeros(image.shape, bool)), image)


def test_real_chest_ranks_the_fills(real_ct: Path) -> None:
    unit = unit_of(read_chest(real_ct)[20:148, 40:168, 60:188])
    hidden = patch_mask(unit.shape, 0.75)
    mean, nearest = (psnr_hidden(unit, fill(unit, hidden), hidden) for fill in FILLS)
    filled = harmonic_fill(torch.from_numpy(unit)[None, None], torch.from_numpy(~hidden)[None, None])
    harmonic = psnr_hidden(unit, filled[0, 0].numpy(), hidden)
    assert 10 < mean < 15
    assert mean + 3 < nearest < harmonic
    assert 18 < harmonic < 22
