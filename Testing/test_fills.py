"""The trivial fills against direct solvers, brute force and closed forms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import sparse
from scipy.sparse.linalg import spsolve

from MAESILLib import fills
from MAESILLib.errors import InputError
from MAESILLib.fills import fill_harmonic, fill_mean, fill_nearest

CHEST = Path(__file__).resolve().parents[2] / "shared" / "ct" / "val" / "lidc__lidc_0314.nii.gz"
FILLS = (fill_mean, fill_nearest, fill_harmonic)


def smooth_volume(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    d, h, w = np.indices(shape, dtype=np.float32)
    noise = np.random.default_rng(seed).normal(0, 0.03, shape)
    return (0.5 + 0.3 * np.sin(d / 7) * np.cos(h / 9) + 0.1 * np.sin(w / 3) + noise).astype(np.float32)


def patch_mask(shape: tuple[int, int, int], ratio: float, patch: int = 8, seed: int = 0) -> np.ndarray:
    grid = [-(-size // patch) for size in shape]
    hidden = np.random.default_rng(seed).random(grid) < ratio
    for axis in range(3):
        hidden = hidden.repeat(patch, axis)
    return hidden[: shape[0], : shape[1], : shape[2]]


def psnr_hidden(reference: np.ndarray, prediction: np.ndarray, hidden: np.ndarray) -> float:
    return float(-10 * np.log10(np.mean((reference[hidden].astype(float) - prediction[hidden]) ** 2)))


def direct_harmonic(image: np.ndarray, hidden: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Solve the graph Laplacian by sparse elimination, built edge by edge."""
    number = {tuple(index): row for row, index in enumerate(np.argwhere(hidden & valid))}
    matrix, right = sparse.lil_matrix((len(number), len(number))), np.zeros(len(number))
    for index, row in number.items():
        for axis in range(3):
            for step in (-1, 1):
                other = list(index)
                other[axis] += step
                if not 0 <= other[axis] < image.shape[axis] or not valid[tuple(other)]:
                    continue
                matrix[row, row] += 1
                if tuple(other) in number:
                    matrix[row, number[tuple(other)]] -= 1
                else:
                    right[row] += image[tuple(other)]
    filled = image.astype(float)
    for index, value in zip(number, spsolve(matrix.tocsr(), right), strict=True):
        filled[index] = value
    return filled


@pytest.mark.parametrize("shape", [(11, 9, 14), (1, 16, 7), (8, 8, 8)])
@pytest.mark.parametrize("ratio", [0.3, 0.8, 0.97])
def test_harmonic_equals_direct_solution(shape: tuple[int, int, int], ratio: float) -> None:
    image = np.random.default_rng(1).random(shape, np.float32)
    hidden = np.random.default_rng(2).random(shape) < ratio
    expected = direct_harmonic(image, hidden, np.ones(shape, bool))
    np.testing.assert_allclose(fill_harmonic(image, hidden, tolerance=1e-6), expected, atol=2e-5)


def test_harmonic_equals_direct_solution_inside_valid() -> None:
    shape = (9, 12, 10)
    image = smooth_volume(shape)
    hidden = patch_mask(shape, 0.6, patch=3)
    valid = np.zeros(shape, bool)
    valid[:8, 2:, :9] = True
    valid[3:5, 5:7, 4:6] = False
    filled = fill_harmonic(image, hidden, tolerance=1e-6, valid=valid)
    np.testing.assert_allclose(filled[valid], direct_harmonic(image, hidden, valid)[valid], atol=2e-5)
    disturbed = np.where(valid, image, np.float32(9))
    np.testing.assert_array_equal(fill_harmonic(disturbed, hidden, 1e-6, valid)[valid], filled[valid])


@pytest.mark.parametrize("shape", [(40, 33, 47), (64, 8, 8)])
def test_harmonic_continues_a_linear_ramp_through_a_large_hole(shape: tuple[int, int, int]) -> None:
    d, h, w = np.indices(shape)
    ramp = (0.1 + 0.008 * d + 0.003 * h - 0.001 * w).astype(np.float32)
    hidden = np.zeros(shape, bool)
    hidden[1:-1, 1:-1, 1:-1] = True
    filled = fill_harmonic(np.where(hidden, 7, ramp).astype(np.float32), hidden)
    np.testing.assert_allclose(filled, ramp, atol=2e-4)


def test_harmonic_lets_nothing_through_the_border() -> None:
    ramp = np.broadcast_to(np.linspace(0, 1, 50, dtype=np.float32), (6, 5, 50))
    hidden = np.ones(ramp.shape, bool)
    hidden[:, :, [0, -1]] = False
    np.testing.assert_allclose(fill_harmonic(ramp, hidden, tolerance=1e-5), ramp, atol=5e-4)


@pytest.mark.parametrize("ratio", [0.5, 0.75, 0.9])
def test_harmonic_is_converged_at_the_default_tolerance(ratio: float) -> None:
    image = smooth_volume((56, 50, 61))
    hidden = patch_mask(image.shape, ratio)
    default, tight = fill_harmonic(image, hidden), fill_harmonic(image, hidden, tolerance=1e-5)
    assert abs(psnr_hidden(image, default, hidden) - psnr_hidden(image, tight, hidden)) < 0.005
    # each hidden voxel off the border is the mean of its six neighbours
    inner = default[1:-1, 1:-1, 1:-1]
    neighbours = sum(np.roll(default, step, axis)[1:-1, 1:-1, 1:-1] for axis in range(3) for step in (-1, 1))
    assert np.abs(neighbours / 6 - inner)[hidden[1:-1, 1:-1, 1:-1]].max() < 2e-4


def test_harmonic_needs_few_iterations_whatever_the_size_of_the_holes(monkeypatch: pytest.MonkeyPatch) -> None:
    image = smooth_volume((56, 50, 61))
    one_patch = np.ones(image.shape, bool)
    one_patch[24:32, 16:24, 8:16] = False
    monkeypatch.setattr(fills, "MAX_ITERATIONS", 7)
    for hidden in (patch_mask(image.shape, 0.75), patch_mask(image.shape, 0.97), one_patch):
        fill_harmonic(image, hidden)
    monkeypatch.setattr(fills, "MAX_ITERATIONS", 2)
    with pytest.raises(ArithmeticError, match="not reached"):
        fill_harmonic(image, one_patch)


def test_harmonic_stays_within_the_visible_values() -> None:
    image = smooth_volume((30, 30, 30))
    hidden = patch_mask(image.shape, 0.85)
    filled = fill_harmonic(image, hidden)
    assert filled[hidden].min() > image[~hidden].min() - 1e-4
    assert filled[hidden].max() < image[~hidden].max() + 1e-4


def test_harmonic_fills_a_pocket_cut_off_from_everything_visible() -> None:
    image = smooth_volume((12, 12, 24))
    hidden = np.zeros(image.shape, bool)
    hidden[:, :, 14:] = True
    hidden[2:6, 2:6, 2:6] = True
    valid = np.ones(image.shape, bool)
    valid[:, :, 12:15] = False
    filled = fill_harmonic(image, hidden, valid=valid)
    assert np.isfinite(filled).all()
    np.testing.assert_allclose(filled[:, :, 15:], image[~hidden & valid].mean(), atol=0.02)


def test_nearest_takes_a_voxel_at_the_least_distance() -> None:
    shape = (9, 8, 11)
    image = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    hidden = np.random.default_rng(3).random(shape) < 0.9
    valid = np.random.default_rng(4).random(shape) < 0.7
    filled = fill_nearest(image, hidden, valid)
    visible = np.argwhere(~hidden & valid)
    for index in np.argwhere(hidden):
        source = np.unravel_index(int(filled[tuple(index)]), shape)
        least = ((visible - index) ** 2).sum(axis=1).min()
        assert not hidden[source]
        assert valid[source]
        assert ((np.array(source) - index) ** 2).sum() == least


def test_mean_is_of_visible_valid_voxels() -> None:
    image = np.array([[[1, 2, 4, 100]]], np.float32)
    hidden = np.array([[[False, False, True, False]]])
    assert fill_mean(image, hidden).tolist() == [[[1, 2, pytest.approx(103 / 3), 100]]]
    valid = np.array([[[True, True, True, False]]])
    assert fill_mean(image, hidden, valid).tolist() == [[[1, 2, 1.5, 100]]]


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
def test_nothing_hidden_and_nothing_visible(fill) -> None:
    image = smooth_volume((8, 9, 10))
    np.testing.assert_array_equal(fill(image, np.zeros(image.shape, bool)), image)
    with pytest.raises(InputError, match="nothing is visible"):
        fill(image, np.ones(image.shape, bool))
    with pytest.raises(InputError, match="bool"):
        fill(image, np.zeros(image.shape, np.uint8))
    with pytest.raises(InputError, match="shape"):
        fill(image, np.zeros((8, 9, 11), bool))


@pytest.mark.skipif(not CHEST.exists(), reason="no real CT beside the checkout")
def test_real_chest_ranks_the_fills() -> None:
    import SimpleITK as sitk

    image = sitk.GetArrayFromImage(sitk.DICOMOrient(sitk.ReadImage(str(CHEST)), "LPS"))[20:148, 40:168, 60:188]
    unit = ((np.clip(image, -1000, 1000) + 1000) / 2000).astype(np.float32)
    hidden = patch_mask(unit.shape, 0.75)
    mean, nearest, harmonic = (psnr_hidden(unit, fill(unit, hidden), hidden) for fill in FILLS)
    assert 10 < mean < 15
    assert mean + 3 < nearest < harmonic
    assert 18 < harmonic < 22
