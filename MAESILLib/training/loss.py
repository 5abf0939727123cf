"""The training loss: squared error of hidden patches, and what keeps their borders smooth."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from MAESILLib.model import Prediction, patchify, take_tokens, unpatchify

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Loss:
    """The loss and its parts, scalars on the device."""

    total: torch.Tensor
    hidden_mse: torch.Tensor
    visible_mse: torch.Tensor
    gradient: torch.Tensor


def masked_loss(
    prediction: Prediction,
    target: torch.Tensor,
    valid: torch.Tensor,
    patch_size: Triple,
    *,
    visible_weight: float,
    gradient_weight: float,
) -> Loss:
    """Compare a prediction with the clean image; padding never counts.

    Args:
        prediction: of the network.
        target: (B, 1, D, H, W) intensities in [0, 1].
        valid: (B, 1, D, H, W) bool, False in padding.
        visible_weight: of the squared error of the visible patches that were queried.
        gradient_weight: of the squared error of steps between neighbouring voxels of the composite,
            where at least one of the two is hidden.
    """
    patches = patchify(target, patch_size)
    weights = patchify(valid.to(target.dtype), patch_size)
    hidden = _mean_square(prediction.hidden_patches, patches, weights, prediction.hidden)
    visible = _mean_square(prediction.visible_patches, patches, weights, prediction.visible)
    gradient = target.new_zeros(())
    if gradient_weight > 0 and prediction.hidden.shape[1]:
        gradient = _gradient_error(prediction, patches, weights, target.shape, patch_size)
    total = hidden + visible_weight * visible + gradient_weight * gradient
    return Loss(total, hidden.detach(), visible.detach(), gradient.detach())


def _mean_square(
    predicted: torch.Tensor, patches: torch.Tensor, weights: torch.Tensor, index: torch.Tensor
) -> torch.Tensor:
    if index.shape[1] == 0:
        return predicted.sum() * 0
    weight = take_tokens(weights, index)
    squares = (predicted - take_tokens(patches, index)).square() * weight
    return squares.sum() / weight.sum().clamp_min(1)


def _gradient_error(
    prediction: Prediction, patches: torch.Tensor, weights: torch.Tensor, shape: torch.Size, patch_size: Triple
) -> torch.Tensor:
    """Mean squared error of finite differences of the composite.

    The composite's error is zero where patches are visible, so its differences count border steps
    against visible neighbours too.
    """
    grid = (shape[2] // patch_size[0], shape[3] // patch_size[1], shape[4] // patch_size[2])
    index = prediction.hidden[..., None].expand(-1, -1, patches.shape[-1])
    difference = prediction.hidden_patches - take_tokens(patches, prediction.hidden)
    difference = difference * take_tokens(weights, prediction.hidden)
    error = unpatchify(torch.zeros_like(patches).scatter(1, index, difference), grid, patch_size)
    total = sum(error.diff(dim=axis).square().sum() for axis in (2, 3, 4))
    count = 3 * take_tokens(weights, prediction.hidden).sum().clamp_min(1)
    return torch.as_tensor(total) / count
