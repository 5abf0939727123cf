"""The structural part of the training loss, beside scikit-image's SSIM."""

from __future__ import annotations

import pytest
import torch
from skimage.metrics import structural_similarity
from training_factory import tiny_config

from MAESILLib.mask_spec import MaskSpec
from MAESILLib.masking import draw_visible, generator_for
from MAESILLib.model import MaskedAutoencoder, Prediction, patchify, take_tokens, valid_voxels
from MAESILLib.training.loss import masked_loss, ssim

OPTIONS = {"data_range": 1.0, "win_size": 7, "use_sample_covariance": False}


def images(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(2, 1, *shape, generator=generator)
    return (target + 0.1 * torch.randn(target.shape, generator=generator)).clamp(0, 1), target


def test_it_is_scikit_images() -> None:
    made, target = images(20, 17, 24)
    found = ssim(made, target, None)
    for one, a, b in zip(found, made, target, strict=True):
        assert float(one) == pytest.approx(structural_similarity(a[0].numpy(), b[0].numpy(), **OPTIONS), abs=1e-5)


def test_windows_with_padding_do_not_count() -> None:
    made, target = images(16, 24, 16)
    size = torch.tensor([[16, 20, 11], [16, 24, 16]])
    valid = valid_voxels(size, target.shape[2:])
    made = torch.where(valid, made, 5.0)
    found = ssim(made, target, valid)
    part = (slice(None), slice(20), slice(11))
    expected = structural_similarity(made[0, 0][part].numpy(), target[0, 0][part].numpy(), **OPTIONS)
    assert float(found[0]) == pytest.approx(expected, abs=1e-5)


def test_what_holds_no_window_is_alike() -> None:
    made, target = images(6, 24, 24)
    assert ssim(made, target, None).tolist() == [1.0, 1.0]
    made, target = images(16, 16, 16)
    valid = valid_voxels(torch.tensor([[5, 16, 16], [16, 16, 16]]), target.shape[2:])
    found = ssim(made, target, valid)
    assert float(found[0]) == 1.0
    assert float(found[1]) < 1.0


def test_the_loss_counts_it_for_the_composite() -> None:
    _, target = images(16, 16, 24)
    visible = draw_visible((2, 2, 3), MaskSpec("uniform", 0.5, 0.5), 2, generator_for(0))
    model = MaskedAutoencoder(tiny_config().model).eval()
    with torch.no_grad():
        out = model(target, visible)
    patches = patchify(target, (8, 8, 8))
    truth = take_tokens(patches, out.hidden)
    wrong = Prediction(out.hidden, truth + 0.2, out.visible, out.visible_patches)
    weights = {"visible_weight": 0.0, "gradient_weight": 0.0}
    plain, more = (masked_loss(wrong, target, None, (8, 8, 8), **weights, ssim_weight=w) for w in (0.0, 0.5))
    composite = target.clone()
    for sample, tokens in enumerate(out.hidden):
        for token in tokens.tolist():
            d, h, w = token // 6, token // 3 % 2, token % 3
            composite[sample, 0, 8 * d : 8 * d + 8, 8 * h : 8 * h + 8, 8 * w : 8 * w + 8] += 0.2
    alike = [
        structural_similarity(a[0].numpy(), b[0].numpy(), **OPTIONS) for a, b in zip(composite, target, strict=True)
    ]
    assert float(more.total - plain.total) == pytest.approx(0.5 * (1 - sum(alike) / 2), abs=1e-4)
    right = Prediction(out.hidden, truth, out.visible, out.visible_patches)
    assert float(masked_loss(right, target, None, (8, 8, 8), **weights, ssim_weight=0.5).total) == pytest.approx(
        0, abs=1e-6
    )
