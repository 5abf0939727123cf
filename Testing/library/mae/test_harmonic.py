"""The harmonic and the biharmonic fill against direct solvers and closed forms, alone and in batches."""

import numpy as np
import pytest
import torch
from reconstruct_checks import direct_fill
from scipy import ndimage
from volume_factory import patch_mask, smooth_volume

from MAESILLib.mae import harmonic
from MAESILLib.mae.harmonic import TENSION, biharmonic_fill, harmonic_fill
from MAESILLib.mae.masking import MaskSpec, draw_visible, generator_for, hidden_tokens

Shape = tuple[int, int, int]


def fill(image: np.ndarray, hidden: np.ndarray, tolerance: float = 1e-4) -> np.ndarray:
    """Fill one volume (D, H, W); what is hidden is not a number."""
    known = torch.from_numpy(~hidden)[None, None]
    filled = harmonic_fill(torch.from_numpy(image)[None, None].where(known, torch.nan), known, tolerance)
    assert filled.dtype == torch.float32
    assert filled.shape == known.shape
    return filled[0, 0].numpy()


def token_mask(shape: Shape, spec: MaskSpec, patch: int = 4) -> np.ndarray:
    """Draw a mask of patches and return the hidden voxels; patches at the far faces may be cut."""
    depth, height, width = (-(-n // patch) for n in shape)
    grid = (depth, height, width)
    tokens = hidden_tokens(draw_visible(grid, spec, 1, generator_for(0)), grid)[0].numpy()
    hidden = np.kron(tokens, np.ones((patch,) * 3, bool))
    return hidden[: shape[0], : shape[1], : shape[2]]


@pytest.mark.parametrize("shape", [(11, 9, 14), (1, 16, 7), (8, 8, 8)])
@pytest.mark.parametrize("ratio", [0.3, 0.8, 0.97])
@pytest.mark.parametrize("tolerance", [1e-4, 1e-5])
def test_single_voxels_equal_the_direct_solution(shape: Shape, ratio: float, tolerance: float) -> None:
    image = np.random.default_rng(1).random(shape, np.float32)
    hidden = np.random.default_rng(2).random(shape) < ratio
    np.testing.assert_allclose(fill(image, hidden, tolerance), direct_fill(image, hidden), atol=tolerance, rtol=0)


@pytest.mark.parametrize("shape", [(24, 16, 32), (23, 17, 21), (9, 33, 18)])
@pytest.mark.parametrize(
    ("strategy", "share"),
    [("dual", 0.75), ("uniform", 0.75), ("uniform", 0.9), ("group", 0.75), ("block", 0.75), ("product", 0.75)],
)
@pytest.mark.parametrize("tolerance", [1e-4, 1e-2])
def test_patches_equal_the_direct_solution(shape: Shape, strategy: str, share: float, tolerance: float) -> None:
    image = np.random.default_rng(1).random(shape, np.float32)
    ratio = 1 - (1 - share) ** 0.5
    hidden = token_mask(shape, MaskSpec(strategy, ratio, ratio))
    np.testing.assert_allclose(fill(image, hidden, tolerance), direct_fill(image, hidden), atol=tolerance, rtol=0)


def test_padding_is_filled_like_what_is_hidden() -> None:
    image = smooth_volume((16, 24, 16))
    hidden = patch_mask(image.shape, 0.6)
    hidden[13:], hidden[:, 20:] = True, True
    np.testing.assert_allclose(fill(image, hidden), direct_fill(image, hidden), atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", [(40, 33, 47), (64, 8, 8)])
def test_a_linear_ramp_goes_on_through_a_large_hole(shape: Shape) -> None:
    d, h, w = np.indices(shape)
    ramp = (0.1 + 0.008 * d + 0.003 * h - 0.001 * w).astype(np.float32)
    hidden = np.zeros(shape, bool)
    hidden[1:-1, 1:-1, 1:-1] = True
    np.testing.assert_allclose(fill(ramp, hidden), ramp, atol=1e-4, rtol=0)


def test_nothing_passes_the_border() -> None:
    ramp = np.broadcast_to(np.linspace(0, 1, 50, dtype=np.float32), (6, 5, 50)).copy()
    hidden = np.ones(ramp.shape, bool)
    hidden[:, :, [0, -1]] = False
    np.testing.assert_allclose(fill(ramp, hidden), ramp, atol=1e-4, rtol=0)


@pytest.mark.parametrize("ratio", [0.5, 0.75, 0.9])
def test_it_is_converged_at_the_default_tolerance(ratio: float) -> None:
    image = smooth_volume((56, 50, 61))
    hidden = patch_mask(image.shape, ratio)
    default = fill(image, hidden)
    np.testing.assert_allclose(default, fill(image, hidden, 3e-6), atol=5e-5, rtol=0)
    # each hidden voxel off the border is the mean of its six neighbours
    inner = default[1:-1, 1:-1, 1:-1]
    neighbours = sum(np.roll(default, step, axis)[1:-1, 1:-1, 1:-1] for axis in range(3) for step in (-1, 1))
    assert np.abs(neighbours / 6 - inner)[hidden[1:-1, 1:-1, 1:-1]].max() < 2e-4
    assert default[hidden].min() > image[~hidden].min() - 1e-4
    assert default[hidden].max() < image[~hidden].max() + 1e-4


def test_few_cycles_are_needed_whatever_the_size_of_the_holes(monkeypatch: pytest.MonkeyPatch) -> None:
    image = smooth_volume((56, 50, 61))
    one_patch = np.ones(image.shape, bool)
    one_patch[24:32, 16:24, 8:16] = False
    monkeypatch.setattr(harmonic, "MAX_CYCLES", 6)
    for hidden in (patch_mask(image.shape, 0.75), patch_mask(image.shape, 0.97), one_patch):
        fill(image, hidden)
    monkeypatch.setattr(harmonic, "MAX_CYCLES", 3)
    fill(image, patch_mask(image.shape, 0.75), 1e-2)
    monkeypatch.setattr(harmonic, "MAX_CYCLES", 2)
    with pytest.raises(ArithmeticError, match="not reached"):
        fill(image, one_patch)


def test_known_voxels_stay_and_unknown_ones_are_not_read() -> None:
    image = torch.from_numpy(smooth_volume((20, 17, 23)))[None, None]
    known = torch.from_numpy(~patch_mask((20, 17, 23), 0.7, patch=5))[None, None]
    filled = harmonic_fill(image, known)
    assert torch.equal(filled[known], image[known])
    for value in (torch.nan, torch.inf, 1e30):
        assert torch.equal(harmonic_fill(image.where(known, value), known), filled)
    assert harmonic_fill(image.bfloat16(), known).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(harmonic_fill(image, known), filled)


@pytest.mark.parametrize("shape", [(8, 9, 10), (1, 1, 1)])
def test_nothing_unknown_and_nothing_known(shape: Shape) -> None:
    image = torch.rand(2, 1, *shape)
    assert torch.equal(harmonic_fill(image, torch.ones_like(image, dtype=torch.bool)), image)
    nothing = torch.zeros_like(image, dtype=torch.bool)
    assert harmonic_fill(torch.full_like(image, torch.nan), nothing).eq(0.5).all()


def batch_of(shape: Shape, *masks: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and what is known of them: under ``masks``, of all and of nothing."""
    hidden = np.stack([*masks, np.zeros(shape, bool), np.ones(shape, bool)])
    image = np.stack([smooth_volume(shape, seed) for seed in range(len(hidden))])
    return torch.from_numpy(image)[:, None], torch.from_numpy(~hidden)[:, None]


@pytest.mark.parametrize("tolerance", [1e-4, 1e-2])
def test_samples_of_a_batch_do_not_influence_one_another(tolerance: float) -> None:
    """Others that need more cycles, more grids, or none."""
    shape = (32, 24, 40)
    one_patch = np.ones(shape, bool)
    one_patch[8:16, :8, 8:16] = False
    image, known = batch_of(shape, patch_mask(shape, 0.75), patch_mask(shape, 0.2, seed=1), one_patch)
    for alone, together in zip(zip(image, known, strict=True), harmonic_fill(image, known, tolerance), strict=True):
        one = harmonic_fill(*(x[None] for x in alone), tolerance)[0]
        torch.testing.assert_close(together, one, atol=1e-6, rtol=0)


def plate(image: np.ndarray, hidden: np.ndarray, tolerance: float = 1e-5) -> np.ndarray:
    """Fill one volume (D, H, W) biharmonically."""
    known = torch.from_numpy(~hidden)[None, None]
    harmonic_one = harmonic_fill(torch.from_numpy(image)[None, None], known)
    return biharmonic_fill(harmonic_one, known, tolerance)[0, 0].numpy()


@pytest.mark.parametrize("shape", [(24, 16, 24), (23, 17, 9)])
@pytest.mark.parametrize("strategy", ["dual", "uniform", "group"])
def test_the_plate_equals_the_direct_solution(shape: Shape, strategy: str) -> None:
    image = smooth_volume(shape)
    hidden = token_mask(shape, MaskSpec(strategy, 0.5, 0.5))
    wanted = np.where(hidden, direct_fill(image, hidden, TENSION).clip(0, 1), image)
    np.testing.assert_allclose(plate(image, hidden), wanted, atol=1e-4, rtol=0)
    # as it is used: what is left hardly counts
    rough = plate(image, hidden, 0.1) - image
    assert np.square(rough).sum() < 1.05 * np.square(wanted - image).sum()


def bending(image: np.ndarray) -> float:
    """Return what a plate makes least."""
    steps = (np.diff(image, axis=axis) for axis in range(3))
    return np.square(ndimage.laplace(image)).sum() + TENSION * sum(np.square(step).sum() for step in steps)


@pytest.mark.parametrize(("strategy", "share"), [("block", 0.9), ("group", 0.9), ("product", 0.9), ("dual", 0.95)])
def test_large_holes_have_a_plate_too(strategy: str, share: float) -> None:
    """They take many more cycles; one in a thousand voxels is known."""
    image = smooth_volume((64, 48, 64))
    hidden = token_mask(image.shape, MaskSpec(strategy, share, share), patch=8)
    filled = plate(image, hidden, 0.1)
    assert np.array_equal(filled[~hidden], image[~hidden])
    assert bending(filled) < bending(fill(image, hidden))


def test_a_plate_goes_on_with_the_slope() -> None:
    d, h, w = np.indices((32, 32, 32)) / 31
    image = (0.2 + 0.5 * (d - 0.5) ** 2 + 0.3 * h * w).astype(np.float32)
    hidden = np.zeros(image.shape, bool)
    hidden[8:24, 8:24, 8:24] = True
    assert np.abs(plate(image, hidden) - image).max() < 0.25 * np.abs(fill(image, hidden) - image).max()


def test_plates_of_a_batch_keep_what_is_known_and_do_not_influence_one_another() -> None:
    shape = (24, 16, 16)
    image, known = batch_of(shape, patch_mask(shape, 0.75), patch_mask(shape, 0.3, seed=1))
    start = harmonic_fill(image, known)
    filled = biharmonic_fill(start, known)
    assert torch.equal(filled[known], image[known])
    assert filled[3].eq(0.5).all()
    for alone, together in zip(zip(start, known, strict=True), filled, strict=True):
        one = biharmonic_fill(*(x[None] for x in alone))[0]
        torch.testing.assert_close(together, one, atol=1e-6, rtol=0)
