"""The network: token order, what hidden voxels may reach, attention over the right tokens, the prior."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from training_factory import awakened

from MAESILLib.config import ModelConfig
from MAESILLib.fills import fill_harmonic
from MAESILLib.masking import MaskSpec, draw_visible, generator_for, hidden_tokens
from MAESILLib.model import MaskedAutoencoder, patchify, sincos_positions, take_tokens, unpatchify, valid_voxels
from MAESILLib.prior import smooth_fill
from MAESILLib.training.loss import masked_loss

CONFIG = ModelConfig(
    superpatch_size=(32, 24, 16),
    patch_size=(8, 8, 8),
    encoder_width=48,
    encoder_depth=2,
    decoder_width=32,
    decoder_depth=1,
    head_width=16,
)
GRID = (4, 3, 2)


def network(config: ModelConfig = CONFIG) -> MaskedAutoencoder:
    torch.manual_seed(0)
    return awakened(MaskedAutoencoder(config).eval())


def hidden_voxels(visible: torch.Tensor, grid: tuple[int, int, int] = GRID) -> torch.Tensor:
    hidden = hidden_tokens(visible, grid)
    for axis in (1, 2, 3):
        hidden = hidden.repeat_interleave(8, axis)
    return hidden[:, None]


def test_patch_order_on_a_grid_that_is_not_a_cube() -> None:
    tokens = torch.arange(24).view(1, 1, *GRID)
    image = tokens.repeat_interleave(8, 2).repeat_interleave(4, 3).repeat_interleave(2, 4).float()
    patches = patchify(image, (8, 4, 2))
    assert patches.shape == (1, 24, 64)
    assert (patches == torch.arange(24)[None, :, None]).all(), "patches are not in row-major token order"
    assert torch.equal(unpatchify(patches, GRID, (8, 4, 2)), image)
    noise = torch.rand(2, 1, 32, 12, 4)
    assert torch.equal(unpatchify(patchify(noise, (8, 4, 2)), GRID, (8, 4, 2)), noise)


def test_voxel_order_inside_a_patch() -> None:
    image = torch.arange(16 * 8 * 8).view(1, 1, 16, 8, 8).float()
    assert torch.equal(patchify(image, (8, 8, 8))[0, 1], image[0, 0, 8:].flatten())


def test_positions_differ_between_tokens_and_shift_with_the_offset() -> None:
    table = sincos_positions((3, 4, 5), 60)
    assert table.shape == (60, 60)
    assert torch.pdist(table).min() > 0.1
    whole = sincos_positions((5, 5, 5), 60).view(5, 5, 5, 60)
    part = sincos_positions((2, 3, 4), 60, (3, 2, 1)).view(2, 3, 4, 60)
    assert torch.equal(part, whole[3:5, 2:5, 1:5])
    # d of token (2, 0, 0): sin(2), at the axis's first frequency 1
    assert table.view(3, 4, 5, 60)[2, 0, 0, 0] == pytest.approx(np.sin(2.0))


@pytest.mark.parametrize("prior", [True, False])
@pytest.mark.parametrize("strategy", ["dual", "uniform", "product", "tube", "block"])
def test_hidden_voxels_cannot_reach_the_output(prior: bool, strategy: str) -> None:
    model = network(dataclasses.replace(CONFIG, prior=prior))
    visible = draw_visible(GRID, MaskSpec(strategy), 2, generator_for(3))
    image = torch.rand(2, 1, 32, 24, 16)
    changed = torch.where(hidden_voxels(visible), torch.rand_like(image), image)
    changed[0][hidden_voxels(visible)[0]] = torch.nan
    queried = torch.arange(visible.shape[1])[None].expand(2, -1)
    with torch.no_grad():
        first, second = (model(x, visible, queried=queried) for x in (image, changed))
    assert torch.equal(first.hidden_patches, second.hidden_patches)
    assert torch.equal(first.visible_patches, second.visible_patches)
    assert first.hidden_patches.std() > 0.01


def test_visible_voxels_do_reach_the_output() -> None:
    model = network()
    visible = draw_visible(GRID, MaskSpec("dual"), 1, generator_for(3))
    image = torch.rand(1, 1, 32, 24, 16)
    with torch.no_grad():
        first = model(image, visible).hidden_patches
        second = model(torch.where(hidden_voxels(visible), image, 1 - image), visible).hidden_patches
    assert (first - second).abs().mean() > 0.01


def test_without_the_prior_order_of_samples_and_batch_do_not_matter() -> None:
    model = network()
    visible = draw_visible(GRID, MaskSpec("dual"), 3, generator_for(4))
    image = torch.rand(3, 1, 32, 24, 16)
    with torch.no_grad():
        together = model(image, visible).hidden_patches
        alone = torch.cat([model(image[i : i + 1], visible[i : i + 1]).hidden_patches for i in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_padding_does_not_reach_the_prior() -> None:
    valid = valid_voxels(torch.tensor([[32, 24, 12]]), torch.Size((32, 24, 16)))
    image = torch.full((1, 1, 32, 24, 16), 0.5)
    known = torch.ones_like(valid)
    known[..., 8:] = False
    known[:, :, 8:, :, 8:] = True
    padded = torch.where(valid, image, torch.ones(()))
    assert smooth_fill(padded, known & valid, (8, 8, 8))[..., :12].sub(0.5).abs().max() < 1e-6
    assert smooth_fill(padded, known, (8, 8, 8))[..., :12].sub(0.5).abs().max() > 1e-3


def test_a_prediction_starts_at_the_prior() -> None:
    torch.manual_seed(0)
    model = MaskedAutoencoder(CONFIG).eval()
    visible = draw_visible(GRID, MaskSpec("dual"), 1, generator_for(0))
    image = torch.rand(1, 1, 32, 24, 16)
    hidden = hidden_voxels(visible)
    with torch.no_grad():
        out = model(image, visible)
    fill = patchify(smooth_fill(image, ~hidden, (8, 8, 8)), (8, 8, 8))
    torch.testing.assert_close(out.hidden_patches, take_tokens(fill, out.hidden))


def test_the_prior_is_close_to_the_harmonic_fill_and_keeps_what_is_known() -> None:
    from training_factory import smooth_hu

    image = torch.from_numpy((smooth_hu((64, 64, 64), 1).astype(np.float32) + 1000) / 2000)[None, None].clamp(0, 1)
    hidden = hidden_voxels(draw_visible((8, 8, 8), MaskSpec("dual"), 1, generator_for(0)), (8, 8, 8))
    fill = smooth_fill(torch.where(hidden, torch.nan, image), ~hidden, (8, 8, 8))
    assert torch.equal(fill[~hidden], image[~hidden])
    harmonic = fill_harmonic(image[0, 0].numpy(), hidden[0, 0].numpy())

    def psnr(x: np.ndarray) -> float:
        return float(-10 * np.log10(np.mean((x - image[0, 0].numpy())[hidden[0, 0].numpy()] ** 2)))

    assert psnr(fill[0, 0].numpy()) > psnr(harmonic) - 0.5
    assert smooth_fill(image, torch.zeros_like(hidden), (8, 8, 8)).eq(0.5).all()


def test_the_loss_trains_exactly_the_hidden_voxels() -> None:
    model = network()
    visible = draw_visible(GRID, MaskSpec("dual"), 1, generator_for(6))
    image = torch.rand(1, 1, 32, 24, 16)
    target = image.clone().requires_grad_()
    out = model(image, visible)
    valid = valid_voxels(torch.tensor([[32, 20, 16]]), torch.Size((32, 24, 16)))
    loss = masked_loss(out, target, valid, (8, 8, 8), visible_weight=1.0, gradient_weight=0.0)
    loss.total.backward()
    assert target.grad is not None
    assert torch.equal(target.grad != 0, hidden_voxels(visible) & valid)
    expected = (unpatchify_hidden(out, image) - image)[hidden_voxels(visible) & valid].square().mean()
    torch.testing.assert_close(loss.hidden_mse, expected)


def unpatchify_hidden(out: object, image: torch.Tensor) -> torch.Tensor:
    patches = torch.zeros_like(patchify(image, (8, 8, 8)))
    index = out.hidden[..., None].expand(-1, -1, 512)  # type: ignore[attr-defined]
    return unpatchify(patches.scatter(1, index, out.hidden_patches), GRID, (8, 8, 8))  # type: ignore[attr-defined]


def test_the_gradient_term_is_the_error_of_differences_of_the_composite() -> None:
    model = network()
    visible = draw_visible(GRID, MaskSpec("dual"), 1, generator_for(6))
    image = torch.rand(1, 1, 32, 24, 16)
    out = model(image, visible)
    valid = torch.ones_like(image, dtype=torch.bool)
    loss = masked_loss(out, image, valid, (8, 8, 8), visible_weight=0.0, gradient_weight=1.0)
    composite = torch.where(hidden_voxels(visible), unpatchify_hidden(out, image), image)
    total = sum((composite.diff(dim=a) - image.diff(dim=a)).square().sum() for a in (2, 3, 4))
    torch.testing.assert_close(loss.gradient, total.detach() / (3 * hidden_voxels(visible).sum()))


def test_dropping_padding_makes_no_difference_to_the_error() -> None:
    """Valid counts come from voxels, not from tokens."""
    valid = valid_voxels(torch.tensor([[3, 2, 1], [4, 4, 4]]), torch.Size((4, 4, 4)))
    assert valid.flatten(1).sum(1).tolist() == [6, 64]
    assert valid[0, 0, 2, 1, 0]
    assert not valid[0, 0, 3].any()
