"""The losses of a training step: of the core, and of what reads it."""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F

from MAESILLib.config import Triple
from MAESILLib.mae.model import Prediction, patchify, take_tokens

LEAST_ERROR = 1e-6
"""Added to an image's squared error before its logarithm is taken: 60 dB."""


@dataclass(frozen=True)
class Loss:
    """What a step minimises, scalars.

    Attributes:
        core: of what pretraining teaches.
        readers: of completion and read-out, whose inputs are detached; None without them.
        metrics: means for the log, detached.
    """

    core: torch.Tensor
    readers: torch.Tensor | None
    metrics: dict[str, torch.Tensor]


def mean_of_samples(squared: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
    """Average errors over each sample's voxels that count, then over samples.

    So an update is the same however its samples are shared out.

    Args:
        squared: (B, ...), 0 where nothing counts.
        weight: as large, 1 where a voxel counts, else 0; None where all do.
    """
    if weight is None:
        return squared.mean()
    return (squared.flatten(1).sum(1) / weight.flatten(1).sum(1).clamp_min(1)).mean()


def patch_error(
    patches: torch.Tensor, index: torch.Tensor, target: torch.Tensor, valid: torch.Tensor | None, patch_size: Triple
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return predicted minus true patches (B, N, C * P) of the tokens ``index`` (B, N), 0 in padding, and what counts.

    Args:
        target: (B, C, D, H, W).
        valid: (B, 1, D, H, W) bool, False in padding; None where nothing is.
    """
    error = patches - take_tokens(patchify(target, patch_size), index)
    if valid is None:
        return error, None
    weight = take_tokens(patchify(valid.to(error.dtype), patch_size), index).repeat(1, 1, target.shape[1])
    return error * weight, weight


def dct_matrix(length: int) -> torch.Tensor:
    """Return the orthonormal DCT-II (Ahmed, Natarajan & Rao 1974), a row for each frequency, float64."""
    k = torch.arange(length, dtype=torch.float64)
    matrix = (2 / length) ** 0.5 * torch.cos(math.pi / length * k[:, None] * (k + 0.5))
    matrix[0] *= 0.5**0.5
    return matrix


@lru_cache(maxsize=8)
def band_weights(patch_size: Triple, slope: float, device: torch.device) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Return the DCT-II matrices of a patch's axes and the weights (d, h, w) of its frequencies, of mean 1.

    The spectrum of a CT falls with frequency; weights that rise with it whiten the error, and depend on nothing else.
    """
    matrices = [dct_matrix(n).float().to(device) for n in patch_size]
    squares = sum(axis**2 for axis in torch.meshgrid(*(torch.arange(n) for n in patch_size), indexing="ij"))
    weights = (1.0 + squares) ** (slope / 2)
    return matrices, (weights / weights.mean()).to(device)


def whitened(error: torch.Tensor, patch_size: Triple, slope: float) -> torch.Tensor:
    """Weight the frequencies of errors (B, N, C * P) so that their squares are the error of each band."""
    (d, h, w), weights = band_weights(patch_size, slope, error.device)
    x = error.unflatten(-1, (-1, *patch_size))
    bands = torch.einsum("...dhw,ad,bh,cw->...abc", x, d, h, w)
    return (bands * weights.sqrt()).flatten(2)


def core_loss(
    prediction: Prediction,
    target: torch.Tensor,
    valid: torch.Tensor | None,
    patch_size: Triple,
    band_slope: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss of the decoded patches in all windows, and the squared error in the first."""
    error, weight = patch_error(prediction.patches, prediction.decoded, target, valid, patch_size)
    voxels = patch_size[0] * patch_size[1] * patch_size[2]
    first = mean_of_samples(error[..., :voxels].square(), None if weight is None else weight[..., :voxels])
    if band_slope > 0:
        error = whitened(error, patch_size, band_slope)
    return mean_of_samples(error.square(), weight), first.detach()


def completion_loss(
    completed: torch.Tensor, target: torch.Tensor, counted: torch.Tensor, gradient_weight: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss of completed images, a mean of logarithms, and their mean squared error.

    What is reported is a mean of decibels; the mean of the errors themselves is that of the hardest images.

    Args:
        completed: (B, 1, D, H, W).
        target: (B, 1, D, H, W), the first window.
        counted: (B, 1, D, H, W) bool, the hidden voxels that are not padding.
        gradient_weight: of the squared error of steps between face neighbours of the composite.
    """
    # visible voxels are pasted in, so they have no error
    error = (completed - target) * counted
    count = counted.flatten(1).sum(1).clamp_min(1)
    squared = error.square().flatten(1).sum(1) / count
    steps = torch.stack([error.diff(dim=axis).square().flatten(1).sum(1) for axis in (2, 3, 4)]).sum(0)
    relative = (squared + gradient_weight * steps / (3 * count) + LEAST_ERROR).log()
    return relative.mean(), squared.mean().detach()


def latent_loss(predicted: torch.Tensor, teacher: list[torch.Tensor], index: torch.Tensor) -> torch.Tensor:
    """Return how far predicted latents are from a teacher's (data2vec, Baevski et al. 2022, arXiv 2202.03555).

    Args:
        predicted: (B, N, width), for the tokens ``index`` (B, N).
        teacher: outputs (B, tokens, width) of the averaged encoder's last blocks, which saw every token.
    """
    mean = torch.stack([F.layer_norm(x.float(), x.shape[-1:]) for x in teacher]).mean(0)
    wanted = take_tokens(F.layer_norm(mean, mean.shape[-1:]), index)
    return F.smooth_l1_loss(predicted.float(), wanted)
