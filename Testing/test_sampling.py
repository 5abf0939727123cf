"""Crops, masks and batches of training: pure functions of a seed and a number."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_cache, tiny_config

from MAESILLib.config import Config
from MAESILLib.data.cache import Cache
from MAESILLib.data.crops import HostCrops
from MAESILLib.data.sampling import CropSampler
from MAESILLib.training.batch import Batch, intensities, make_batch, mask_of_step
from MAESILLib.training.loader import BatchLoader


def sampler_for(config: Config, cache: Cache) -> CropSampler:
    train = config.train
    return CropSampler(
        cache,
        cache.select("train"),
        crop_size=train.crop_size,
        patch_size=config.model.patch_size,
        volume_weighting=train.volume_weighting,
        min_foreground=train.min_foreground,
        flip=train.flip,
        seed=train.seed,
    )


def batch_of(config: Config, cache: Cache, first: int) -> Batch:
    return make_batch(config, HostCrops(sampler_for(config, cache)), 0, range(first, first + 2))


def test_a_sample_depends_on_its_number_alone(cache: Cache) -> None:
    config = tiny_config()
    first, again = sampler_for(config, cache), sampler_for(config, cache)
    for number in (5, 0, 17):
        assert np.array_equal(first.crop(number).hu, again.crop(number).hu)
    assert not np.array_equal(first.crop(0).hu, first.crop(1).hu)
    four = make_batch(config, HostCrops(first, 3), 3, range(8, 12))
    two = [make_batch(config, HostCrops(again), 3, range(8 + 2 * i, 10 + 2 * i)) for i in range(2)]
    assert torch.equal(four.hu, torch.cat([b.hu for b in two]))
    assert torch.equal(four.visible, torch.cat([b.visible for b in two]))
    assert torch.equal(four.jitter, torch.cat([b.jitter for b in two]))


def test_crops_hold_what_the_volume_holds(cache: Cache) -> None:
    """Without flips a crop is found in its volume; whole patches of padding are air, and not valid."""
    sampler = sampler_for(tiny_config(flip=False), cache)
    seen_short = False
    for number in range(40):
        crop = sampler.crop(number)
        d, h, w = crop.valid_size
        volume = np.asarray(cache.open(next(e for e in cache.entries if e.name == crop.source)))
        inner = crop.hu[:d, :h, :w]
        found = [
            start
            for start in np.ndindex(*(v - s + 1 for v, s in zip(volume.shape, (d, h, w), strict=True)))
            if volume[start] == inner[0, 0, 0]
            and np.array_equal(volume[start[0] : start[0] + d, start[1] : start[1] + h, start[2] : start[2] + w], inner)
        ]
        assert found
        assert (inner > -500).mean() >= 0.2
        if d < 32:
            seen_short = True
            assert d == 20
            assert (crop.hu[24:] == -1024).all()
            assert (crop.hu[20:24, :h, :w] == inner[-1]).all()
    assert seen_short


def test_intensities_are_windowed_jittered_and_clean_in_the_target(cache: Cache) -> None:
    config = tiny_config(noise=0.0, scale_jitter=0.0, shift_jitter=0.0)
    batch = batch_of(config, cache, 0)
    image, target, valid = intensities(batch, (-1000.0, 1000.0), torch.device("cpu"))
    torch.testing.assert_close(target, ((batch.hu.float() + 1000) / 2000).clamp(0, 1))
    assert torch.equal(image, target)
    padded = next(b for b in (batch_of(config, cache, n) for n in range(40)) if (b.valid_size < 32).any())
    _, _, counted = intensities(padded, (-1000.0, 1000.0), torch.device("cpu"))
    assert counted is not None
    assert counted.flatten(1).sum(1).tolist() == padded.valid_size.prod(1).tolist()
    assert (valid is None) == bool((batch.valid_size == 32).all())
    noisy = tiny_config(noise=0.05)
    batch = batch_of(noisy, cache, 0)
    image, target, _ = intensities(batch, (-1000.0, 1000.0), torch.device("cpu"))
    inside = (target > 0.2) & (target < 0.8)
    sigma = (image - target)[0][inside[0]].std()
    assert sigma == pytest.approx(float(batch.jitter[0, 2]), rel=0.1)
    again, _, _ = intensities(batch, (-1000.0, 1000.0), torch.device("cpu"))
    assert torch.equal(image, again)


def test_masks_of_steps_come_from_the_configuration() -> None:
    config = tiny_config()
    drawn = {
        (m.strategy, round(1 - (1 - m.plane_ratio) ** 2, 3)) for m in (mask_of_step(config, s) for s in range(400))
    }
    assert drawn == {(s, h) for s in set(config.mask.strategies) for h in set(config.mask.hidden_shares)}


def test_the_loader_gives_the_batches_in_order_and_from_anywhere(cache: Cache) -> None:
    config = tiny_config(batch_size=4, accumulation=2)
    loader = BatchLoader(config, HostCrops(sampler_for(config, cache)))
    other = BatchLoader(config, HostCrops(sampler_for(config, cache)))
    try:
        batches = [loader.batch(step, micro) for step in range(3) for micro in range(2)]
        assert torch.equal(other.batch(2, 1).hu, batches[5].hu)
        assert batches[2].mask == batches[3].mask, "one update has one mask"
    finally:
        loader.close()
        other.close()


def test_held_out_patients(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "cache", [(16, 16, 16)] * 20)
    few, many = cache.select("val", 0.1), cache.select("val", 0.5)
    assert (len(few), len(many)) == (2, 10)
    assert {e.name for e in few} < {e.name for e in many}
    assert not {e.name for e in few} & {e.name for e in cache.select("train", 0.1)}
    assert cache.select("val", 0.0) == ()


def test_the_ends_of_a_volume_are_seen(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "cache", [(96, 32, 32)], ["train"])
    sampler = sampler_for(tiny_config(min_foreground=0.0, flip=False), cache)
    first_plane = np.asarray(cache.open(cache.entries[0]))[0]
    share = np.mean([np.array_equal(sampler.crop(n).hu[0], first_plane) for n in range(200)])
    assert share > 0.1
