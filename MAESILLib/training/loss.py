"""The training loss: squared error of hidden patches, and what keeps their structure and their borders."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from MAESILLib.config import Triple
from MAESILLib.model import Prediction, patchify, take_tokens, unpatchify

SSIM_WINDOW = 7
"""Voxels of a side of the windows of the loss's SSIM."""
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2


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
    valid: torch.Tensor | None,
    patch_size: Triple,
    *,
    visible_weight: float,
    gradient_weight: float,
    ssim_weight: float = 0.0,
) -> Loss:
    """Compare a prediction with the clean image; padding never counts.

    Args:
        prediction: of the network.
        target: (B, 1, D, H, W) intensities in [0, 1].
        valid: (B, 1, D, H, W) bool, False in padding; None where nothing is padding.
        visible_weight: of the squared error of the visible patches that were queried.
        gradient_weight: of the squared error of steps between neighbouring voxels of the composite,
            where at least one of the two is hidden.
        ssim_weight: of 1 - SSIM of the composite.
    """
    patches = patchify(target, patch_size)
    weights = None if valid is None else patchify(valid.to(target.dtype), patch_size)
    difference, counted = _difference(prediction.hidden_patches, prediction.hidden, patches, weights)
    hidden = (difference.square().sum((1, 2)) / counted).mean()
    shown, shown_counted = _difference(prediction.visible_patches, prediction.visible, patches, weights)
    visible = (shown.square().sum((1, 2)) / shown_counted).mean()
    gradient = target.new_zeros(())
    if gradient_weight > 0 and prediction.hidden.shape[1]:
        error = _composite_error(difference, prediction.hidden, target.shape, patch_size)
        gradient = (_gradient_energy(error, valid) / (3 * counted)).mean()
    total = hidden + visible_weight * visible + gradient_weight * gradient
    if ssim_weight > 0 and prediction.hidden.shape[1]:
        error = _composite_error(difference, prediction.hidden, target.shape, patch_size)
        total = total + ssim_weight * (1 - ssim(target + error, target, valid)).mean()
    return Loss(total, hidden.detach(), visible.detach(), gradient.detach())


def _difference(
    predicted: torch.Tensor, index: torch.Tensor, patches: torch.Tensor, weights: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | int]:
    """Return predicted minus true patches, zero in padding, and each sample's number of voxels that count, 1 at least.

    A sample's error is the mean over its own voxels and a batch's that over its samples, so that an update is the
    same however its samples are shared out.
    """
    difference = predicted - take_tokens(patches, index)
    if weights is None:
        return difference, max(1, difference.shape[1] * difference.shape[2])
    weight = take_tokens(weights, index)
    return difference * weight, weight.sum((1, 2)).clamp_min(1)


def _composite_error(
    difference: torch.Tensor, hidden: torch.Tensor, shape: torch.Size, patch_size: Triple
) -> torch.Tensor:
    """Lay the hidden patches' errors (B, N, P) into (B, 1, D, H, W); visible patches of a composite have none."""
    grid = (shape[2] // patch_size[0], shape[3] // patch_size[1], shape[4] // patch_size[2])
    patches = difference.new_zeros(shape[0], grid[0] * grid[1] * grid[2], difference.shape[-1])
    index = hidden[..., None].expand(-1, -1, difference.shape[-1])
    return unpatchify(patches.scatter(1, index, difference), grid, patch_size)


def _gradient_energy(error: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
    """Return each sample's sum of squared steps between face neighbours that both count."""
    sums = []
    for axis in (2, 3, 4):
        n = error.shape[axis] - 1
        step = error.narrow(axis, 1, n) - error.narrow(axis, 0, n)
        if valid is not None:
            step = step * (valid.narrow(axis, 0, n) & valid.narrow(axis, 1, n))
        sums.append(step.square().sum((1, 2, 3, 4)))
    return torch.stack(sums).sum(0)


def ssim(image: torch.Tensor, target: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
    """Return the structural similarity (B,) of images (B, 1, D, H, W) of data range 1 (Wang et al. 2004).

    Windows are cubes of :data:`SSIM_WINDOW` voxels, all alike within; those that reach into padding do not count, and a
    sample without any whole window counts as alike. Metrics use the Gaussian windows of :mod:`MAESILLib.metrics`.
    """
    if min(target.shape[2:]) < SSIM_WINDOW:
        return target.new_ones(len(target))
    image, target = image.float(), target.float()
    maps = torch.cat([image, target, image * image, target * target, image * target], 1)
    a, b, aa, bb, ab = _means(maps).split(1, 1)
    # one over n - 1 would change both sides of the ratio alike
    luminance = (2 * a * b + SSIM_C1) / (a * a + b * b + SSIM_C1)
    structure = (2 * (ab - a * b) + SSIM_C2) / ((aa - a * a) + (bb - b * b) + SSIM_C2)
    if valid is None:
        return (luminance * structure).mean((1, 2, 3, 4))
    whole = (_means(valid.float()) > 1 - 0.5 / SSIM_WINDOW**3).float()
    counted = whole.sum((1, 2, 3, 4))
    similarity = (luminance * structure * whole).sum((1, 2, 3, 4)) / counted.clamp_min(1)
    return torch.where(counted > 0, similarity, 1.0)


def _means(maps: torch.Tensor) -> torch.Tensor:
    """Return the means of (B, C, D, H, W) over every whole window."""
    for axis in (2, 3, 4):
        n = maps.shape[axis] - SSIM_WINDOW + 1
        # sums of two, four, six and seven neighbours: fewer passes than a pooling of seven
        two = maps.narrow(axis, 0, n + 5) + maps.narrow(axis, 1, n + 5)
        four = two.narrow(axis, 0, n) + two.narrow(axis, 2, n)
        six = four + two.narrow(axis, 4, n)
        maps = six + maps.narrow(axis, 6, n)
    return maps / SSIM_WINDOW**3
