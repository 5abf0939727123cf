"""The losses of a training step, against sums over voxels written out."""

import numpy as np
import pytest
import torch
from scipy.fft import dctn

from MAESILLib.mae.loss import completion_loss, core_loss, latent_loss, mean_of_samples, patch_error
from MAESILLib.mae.mask_spec import MaskSpec
from MAESILLib.mae.masking import draw_visible, generator_for, hidden_from_visible, hidden_tokens
from MAESILLib.mae.model import Prediction, composite, patchify, spread, take_tokens, valid_voxels

PATCH = (8, 8, 8)
SHAPE = (16, 24, 32)
GRID = (2, 3, 4)
SIZES = torch.tensor([[16, 24, 32], [13, 24, 20]])


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Targets (2, 2, D, H, W) of two windows, valid voxels, and visible tokens."""
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(2, 2, *SHAPE, generator=generator)
    visible = draw_visible(GRID, MaskSpec("uniform", 0.5, 0.5), 2, generator_for(0))
    return target, valid_voxels(SIZES, torch.Size(SHAPE)), visible


def predicted(target: torch.Tensor, decoded: torch.Tensor, seed: int = 1) -> Prediction:
    """Patches of the decoded tokens, each voxel wrong by something else."""
    patches = take_tokens(patchify(target, PATCH), decoded)
    noise = torch.randn(patches.shape, generator=torch.Generator().manual_seed(seed))
    return Prediction([], torch.zeros(0), decoded, patches + noise)


def error_image(target: torch.Tensor, prediction: Prediction) -> torch.Tensor:
    """Predicted minus true voxels (B, C, D, H, W), 0 where nothing was decoded."""
    images = []
    for channel in range(target.shape[1]):
        one = target[:, channel : channel + 1]
        patches = prediction.patches[..., channel * 512 : channel * 512 + 512]
        images.append(composite(one, prediction.decoded, patches, PATCH) - one)
    return torch.cat(images, 1)


@pytest.mark.parametrize("is_padded", [False, True])
def test_the_core_loss_is_that_of_decoded_voxels_that_are_not_padding(is_padded: bool) -> None:
    target, valid, visible = batch()
    decoded = hidden_from_visible(visible, 24)[:, ::2]
    prediction = predicted(target, decoded)
    loss, first = core_loss(prediction, target, valid if is_padded else None, PATCH, 0.0)
    tokens = torch.zeros(2, 24, dtype=torch.bool).scatter_(1, decoded, True).view(2, *GRID)
    counted = spread(tokens, PATCH) & (valid if is_padded else True)
    squared = error_image(target, prediction).double().square()
    means = [[float(s[c][m[0]].mean()) for c in range(2)] for s, m in zip(squared, counted, strict=True)]
    assert float(loss) == pytest.approx(np.mean(means), rel=1e-5)
    assert float(first) == pytest.approx(np.mean([m[0] for m in means]), rel=1e-5)


@pytest.mark.parametrize("is_padded", [False, True])
def test_weighted_bands_are_those_of_scipy(is_padded: bool) -> None:
    target, valid, visible = batch()
    decoded = hidden_from_visible(visible, 24)
    prediction = predicted(target, decoded)
    loss, first = core_loss(prediction, target, valid if is_padded else None, PATCH, 1.5)
    error, weight = patch_error(prediction.patches, decoded, target, valid if is_padded else None, PATCH)
    squares = sum(axis**2 for axis in np.meshgrid(*[np.arange(8)] * 3, indexing="ij"))
    slope = (1.0 + squares) ** 0.75
    slope /= slope.mean()
    bands = dctn(error.unflatten(-1, (2, 8, 8, 8)).numpy(), axes=(3, 4, 5), norm="ortho") ** 2 * slope
    counts = [error[0].numel()] * 2 if weight is None else weight.flatten(1).sum(1).tolist()
    expected = np.mean([sample.sum() / count for sample, count in zip(bands, counts, strict=True)])
    assert float(loss) == pytest.approx(expected, rel=1e-4)
    assert first == core_loss(prediction, target, valid if is_padded else None, PATCH, 0.0)[1]


def test_samples_count_alike_however_much_of_them_is_padding() -> None:
    squared = torch.tensor([[1.0, 1.0, 1.0, 1.0], [4.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    weight = torch.tensor([[1.0] * 4, [1.0, 0.0, 0.0, 0.0], [0.0] * 4])
    assert float(mean_of_samples(squared, weight)) == pytest.approx((1 + 4 + 0) / 3)
    assert float(mean_of_samples(squared[:1], None)) == 1.0


def test_the_completion_loss_counts_hidden_voxels_and_steps_of_the_composite() -> None:
    target, valid, visible = batch()
    target = target[:, :1]
    hidden = spread(hidden_tokens(visible, GRID), PATCH)
    counted = hidden & valid
    made = target + torch.randn(target.shape, generator=torch.Generator().manual_seed(2))
    loss, squared = completion_loss(made, target, counted, 0.3)
    whole = torch.where(counted, made, target)
    expected, logs = [], []
    for a, b, mask in zip(whole, target, counted, strict=True):
        expected.append(float((a - b)[mask].square().mean()))
        differences = sum(float((a.diff(dim=d) - b.diff(dim=d)).square().sum()) for d in (1, 2, 3))
        logs.append(np.log(expected[-1] + 0.3 * differences / (3 * int(mask.sum())) + 1e-6))
    assert float(squared) == pytest.approx(np.mean(expected), rel=1e-5)
    assert float(loss) == pytest.approx(np.mean(logs), rel=1e-4)
    least = completion_loss(torch.where(counted, target, 9.0), target, counted, 0.3)[0]
    assert float(least) == pytest.approx(np.log(1e-6))


def test_latents_are_compared_with_the_normalised_mean_of_the_teachers_blocks() -> None:
    generator = torch.Generator().manual_seed(0)
    blocks = [torch.randn(2, 24, 6, generator=generator) for _ in range(3)]
    index = torch.tensor([[0, 5, 7], [1, 2, 23]])
    wanted = np.stack([normalised(block.numpy()) for block in blocks]).mean(0)
    wanted = np.take_along_axis(normalised(wanted), index[..., None].numpy(), 1)
    right = torch.from_numpy(wanted)
    assert float(latent_loss(right, blocks, index)) == pytest.approx(0, abs=1e-9)
    # smooth L1: half the square of small errors, large ones less a half
    assert float(latent_loss(right + 0.5, blocks, index)) == pytest.approx(0.125, abs=1e-5)
    assert float(latent_loss(right + 3, blocks, index)) == pytest.approx(2.5, abs=1e-5)


def normalised(x: np.ndarray) -> np.ndarray:
    """Layer-norm the last axis, as PyTorch does."""
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
