"""A training batch: crops, their masks, and the augmentation on the device.

Everything in it is a function of the seed, the update and the sample numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch

from MAESILLib.config import Config, Triple, Window
from MAESILLib.data.sampling import CropSampler, random_for
from MAESILLib.mae.masking import MaskSpec, draw_visible, generator_for, hidden_from_visible
from MAESILLib.mae.model import valid_voxels, windowed


@dataclass(frozen=True)
class Chosen:
    """Those crops of a batch that one loss is taken of.

    Attributes:
        crops: which ones.
        weight: of their mean loss; the mean over an update's passes is that over all its chosen crops.
    """

    crops: slice
    weight: float

    def __bool__(self) -> bool:
        return self.crops.stop > self.crops.start


@dataclass(frozen=True)
class Batch:
    """Inputs of one forward pass, on the CPU.

    Attributes:
        hu: (B, 1, D, H, W) int16.
        valid_size: (B, 3) int64, voxels that are not padding.
        visible: (B, N) int64, sorted visible tokens.
        decoded: (B, M) int64, sorted hidden tokens that are decoded.
        jitter: (B, 3) float32: contrast factor, shift in HU, noise sigma in HU.
        noise_seeds: (B,) seeds of the samples' noise.
        offset: tokens, the same for the batch: where in the superpatch's grid the crops lie.
        completed: crops that the completion is trained on.
        taught: crops whose latents are predicted.
    """

    hu: torch.Tensor
    valid_size: torch.Tensor
    visible: torch.Tensor
    decoded: torch.Tensor
    jitter: torch.Tensor
    noise_seeds: tuple[int, ...]
    offset: Triple
    mask: MaskSpec
    completed: Chosen
    taught: Chosen

    def pinned(self) -> Batch:
        """Return the batch in page-locked memory, from which a card copies without waiting."""
        names = ("hu", "valid_size", "visible", "decoded", "jitter")
        return replace(self, **{name: getattr(self, name).pin_memory() for name in names})


def crop_size_of_step(config: Config, step: int) -> Triple:
    """Return the size of an update's crops: every second one of the cool-down has its own."""
    train = config.train
    cooled = step - train.cooldown_from
    return train.cooldown_crop_size if cooled >= 0 and cooled % 2 else train.crop_size


def samples_of_update(config: Config, step: int) -> range:
    """Return the numbers of the samples that make update ``step`` (from 0); larger crops are fewer."""
    train, crop = config.train, crop_size_of_step(config, step)
    count = train.batch_size * math.prod(train.crop_size) // math.prod(crop)
    return range(step * train.batch_size, step * train.batch_size + count)


def chosen(samples: range, update: range, count: int) -> Chosen:
    """Return which ``samples`` of an update are among the ``count`` that a loss is taken of.

    They are spread evenly, so that ranks have as many of them, as far as that goes.
    """
    part = update[:: max(1, len(update) // count)][:count]
    inside = [number for number, sample in enumerate(samples) if sample in part]
    if not inside:
        return Chosen(slice(0, 0), 0.0)
    weight = len(inside) / len(samples) * len(update) / len(part)
    return Chosen(slice(inside[0], inside[-1] + 1, part.step), weight)


def mask_of_step(config: Config, step: int) -> MaskSpec:
    """Return the mask of an update: one strategy and one ratio."""
    rng = random_for(config.train.seed, "mask", step)
    strategy, ratio = str(rng.choice(config.mask.strategies)), float(rng.choice(config.mask.ratios))
    # both steps of the dual mask hide the same share: 1 - (1 - r)^2 = ratio
    each = 1 - (1 - ratio) ** 0.5
    return MaskSpec(strategy, each, each)


def offset_of_step(config: Config, step: int) -> Triple:
    """Return where in the model's token grid the crops of an update pretend to lie.

    Crops smaller than a superpatch would otherwise never teach fixed positions of its far end.
    """
    rng, model = random_for(config.train.seed, "offset", step), config.model
    crop = crop_size_of_step(config, step)
    d, h, w = (
        int(rng.integers(0, (s - c) // p + 1))
        for s, c, p in zip(model.superpatch_size, crop, model.patch_size, strict=True)
    )
    return d, h, w


def make_batch(config: Config, sampler: CropSampler, step: int, samples: range) -> Batch:
    """Assemble samples of update ``step``, which decides the mask's strategy and ratio."""
    model, train = config.model, config.train
    size = crop_size_of_step(config, step)
    crops = [sampler.crop(sample, size) for sample in samples]
    d, h, w = (s // p for s, p in zip(size, model.patch_size, strict=True))
    mask = mask_of_step(config, step)
    generators = [generator_for(train.seed, "mask", sample) for sample in samples]
    visible = torch.cat([draw_visible((d, h, w), mask, 1, generator) for generator in generators])
    hidden = hidden_from_visible(visible, d * h * w)
    count = max(1, round(hidden.shape[1] * train.decoded_ratio))
    decoded = torch.stack([torch.randperm(hidden.shape[1], generator=g)[:count].sort()[0] for g in generators])
    jitter, seeds = [], []
    for sample in samples:
        rng = random_for(train.seed, "augment", sample)
        scale = 1 + train.scale_jitter * rng.uniform(-1, 1)
        jitter.append([scale, train.shift_jitter_hu * rng.uniform(-1, 1), train.noise_hu * rng.uniform()])
        seeds.append(int(rng.integers(2**62)))
    update = samples_of_update(config, step)
    return Batch(
        torch.from_numpy(np.stack([crop.hu for crop in crops]))[:, None],
        torch.tensor([crop.valid_size for crop in crops]),
        visible,
        hidden.gather(1, decoded),
        torch.tensor(jitter, dtype=torch.float32),
        tuple(seeds),
        offset_of_step(config, step),
        mask,
        chosen(samples, update, train.completion_crops),
        chosen(samples, update, train.teacher_crops),
    )


def intensities(
    batch: Batch, windows_hu: tuple[Window, ...], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Jitter, add noise and window on the device.

    Returns:
        input (noisy), target (clean), both (B, windows, D, H, W) float32 in [0, 1], and valid (B, 1, D, H, W) bool, or
        None where nothing is padding.
    """
    hu, jitter = batch.hu.to(device, non_blocking=True).float(), batch.jitter.to(device, non_blocking=True)
    scale, shift, sigma = jitter[:, :, None, None, None, None].unbind(1)
    clean = hu * scale + shift
    noisy = clean
    if bool((batch.jitter[:, 2] > 0).any()):
        noise, generator = torch.empty_like(clean), torch.Generator(device)
        for one, seed in zip(noise, batch.noise_seeds, strict=True):
            one.normal_(generator=generator.manual_seed(seed))
        noisy = clean + sigma * noise
    image, target = windowed(noisy, windows_hu), windowed(clean, windows_hu)
    # known on the CPU, so that asking costs no wait for the device
    if bool((batch.valid_size == torch.tensor(batch.hu.shape[2:])).all()):
        return image, target, None
    return image, target, valid_voxels(batch.valid_size.to(device, non_blocking=True), batch.hu.shape[2:])
