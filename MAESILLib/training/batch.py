"""A training batch: crops, their masks, and the augmentation on the device.

Everything in it is a function of the seed, the update and the sample numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from MAESILLib.config import Config, Triple
from MAESILLib.data.crops import Crops
from MAESILLib.data.sampling import random_for
from MAESILLib.masking import MaskSpec, draw_visible, generator_for
from MAESILLib.model import valid_voxels

Augment = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, tuple[float, float]], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Batch:
    """Inputs of one forward pass, on the CPU; ``hu`` may lie on the device already.

    Attributes:
        hu: (B, 1, D, H, W) int16.
        valid_size: (B, 3) int64, voxels that are not padding.
        visible: (B, N) int64, sorted visible tokens.
        queried: (B, M) int64, places in ``visible`` of the tokens that are decoded too.
        jitter: (B, 3) float32: contrast factor, shift, noise sigma.
        noise_seeds: (B,) seeds of the samples' noise.
        offset: tokens, the same for the batch: where in the superpatch's grid the crops lie.
    """

    hu: torch.Tensor
    valid_size: torch.Tensor
    visible: torch.Tensor
    queried: torch.Tensor
    jitter: torch.Tensor
    noise_seeds: tuple[int, ...]
    offset: Triple
    mask: MaskSpec

    def pinned(self) -> Batch:
        """Return the batch in page-locked memory, from which a card copies without waiting."""
        names = ("valid_size", "visible", "queried", "jitter")
        return replace(self, **{name: getattr(self, name).pin_memory() for name in names})


def mask_of_step(config: Config, step: int) -> MaskSpec:
    """Return the mask of an update: one strategy and one share of hidden tokens."""
    rng = random_for(config.train.seed, "mask", step)
    strategy = str(rng.choice(config.mask.strategies))
    hidden_share = float(rng.choice(config.mask.hidden_shares))
    # both steps of the dual mask hide the same share: 1 - (1 - r)^2 = hidden_share
    ratio = 1 - (1 - hidden_share) ** 0.5
    return MaskSpec(strategy, ratio, ratio)


def offset_of_step(config: Config, step: int) -> Triple:
    """Return where in the model's token grid the crops of an update pretend to lie.

    Crops smaller than a superpatch would otherwise never teach the positions of its far end.
    """
    rng = random_for(config.train.seed, "offset", step)
    d, h, w = (
        int(rng.integers(0, (s - c) // p + 1))
        for s, c, p in zip(config.model.superpatch_size, config.train.crop_size, config.model.patch_size, strict=True)
    )
    return d, h, w


def make_batch(config: Config, crops: Crops, step: int, samples: range) -> Batch:
    """Assemble samples of update ``step``, which decides the mask's strategy and share."""
    model, train = config.model, config.train
    hu, valid_size = crops.stack(samples)
    d, h, w = (c // p for c, p in zip(train.crop_size, model.patch_size, strict=True))
    mask = mask_of_step(config, step)
    masks = [draw_visible((d, h, w), mask, 1, generator_for(train.seed, "mask", sample)) for sample in samples]
    visible = torch.cat(masks)
    count = round(visible.shape[1] * train.visible_share)
    queried, jitter, seeds = [], [], []
    for sample in samples:
        rng = random_for(train.seed, "augment", sample)
        queried.append(np.sort(rng.choice(visible.shape[1], count, replace=False)))
        scale = 1 + train.scale_jitter * rng.uniform(-1, 1)
        jitter.append([scale, train.shift_jitter * rng.uniform(-1, 1), train.noise * rng.uniform()])
        seeds.append(int(rng.integers(2**62)))
    return Batch(
        hu,
        valid_size,
        visible,
        torch.from_numpy(np.stack(queried).astype(np.int64)),
        torch.tensor(jitter, dtype=torch.float32),
        tuple(seeds),
        offset_of_step(config, step),
        mask,
    )


def intensities(
    batch: Batch, window_hu: tuple[float, float], device: torch.device, augment: Augment | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Window, jitter and add noise on the device.

    Args:
        augment: :func:`augmented`, or that compiled.

    Returns:
        input (noisy), target (clean), both (B, 1, D, H, W) float32 in [0, 1], and valid, bool, or None
        where nothing is padding.
    """
    augment = augmented if augment is None else augment
    hu, jitter = batch.hu.to(device, non_blocking=True), batch.jitter.to(device, non_blocking=True)
    noise = torch.empty(hu.shape, device=device)
    generator = torch.Generator(device)
    for i, seed in enumerate(batch.noise_seeds):
        noise[i].normal_(generator=generator.manual_seed(seed))
    image, target = augment(hu, jitter, noise, window_hu)
    # known on the CPU, so that asking costs no wait for the device
    if bool((batch.valid_size == torch.tensor(batch.hu.shape[2:])).all()):
        return image, target, None
    return image, target, valid_voxels(batch.valid_size.to(device, non_blocking=True), batch.hu.shape[2:])


def augmented(
    hu: torch.Tensor, jitter: torch.Tensor, noise: torch.Tensor, window_hu: tuple[float, float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Window and jitter HU (B, 1, D, H, W); return it with noise, and clean.

    Args:
        jitter: (B, 3) contrast factor, shift, noise sigma.
        noise: (B, 1, D, H, W) float32 of deviation 1.
    """
    low, high = window_hu
    scale, shift, sigma = jitter[:, :, None, None, None, None].unbind(1)
    target = ((hu.float() - low) / (high - low) * scale + shift).clamp(0, 1)
    return (target + sigma * noise).clamp(0, 1), target
