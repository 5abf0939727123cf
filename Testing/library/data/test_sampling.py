"""Crops, masks and batches of training: pure functions of a seed and a number."""

import os
import resource
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from training_factory import make_cache, tiny_config

from MAESILLib.config import Config
from MAESILLib.data.cache import Cache, CacheEntry, store_volume
from MAESILLib.data.foreground import foreground_share, foreground_table
from MAESILLib.data.sampling import CropSampler, readable
from MAESILLib.runtime.errors import InputError
from MAESILLib.training.batch import (
    Batch,
    chosen,
    crop_size_of_step,
    intensities,
    make_batch,
    mask_of_step,
    samples_of_update,
)
from MAESILLib.training.loader import batches, samples_of_pass
from MAESILLib.training.ranks import ALONE

SIZE = (32, 32, 32)
WINDOWS = ((-1000.0, 1000.0), (-160.0, 240.0))


def sampler_for(config: Config, cache: Cache) -> CropSampler:
    train = config.train
    return CropSampler(
        cache,
        cache.select("train"),
        patch_size=config.model.patch_size,
        volume_weighting=train.volume_weighting,
        min_foreground=train.min_foreground,
        flip=train.flip,
        seed=train.seed,
    )


def batch_of(config: Config, cache: Cache, first: int) -> Batch:
    return make_batch(config, sampler_for(config, cache), 0, range(first, first + 2))


def test_a_sample_depends_on_its_number_alone(cache: Cache) -> None:
    config = tiny_config()
    first, again = sampler_for(config, cache), sampler_for(config, cache)
    for number in (5, 0, 17):
        assert np.array_equal(first.crop(number, SIZE).hu, again.crop(number, SIZE).hu)
    assert not np.array_equal(first.crop(0, SIZE).hu, first.crop(1, SIZE).hu)
    four = make_batch(config, first, 3, range(8, 12))
    two = [make_batch(config, again, 3, range(8 + 2 * i, 10 + 2 * i)) for i in range(2)]
    assert torch.equal(four.hu, torch.cat([b.hu for b in two]))
    assert torch.equal(four.visible, torch.cat([b.visible for b in two]))
    assert torch.equal(four.jitter, torch.cat([b.jitter for b in two]))


def test_crops_hold_what_the_volume_holds(cache: Cache) -> None:
    """Without flips a crop is found in its volume; whole patches of padding are air, and not valid."""
    sampler = sampler_for(tiny_config(flip=False), cache)
    volumes = {entry.name: np.asarray(cache.open(entry)) for entry in cache.entries}
    seen_short = False
    for number in range(40):
        crop = sampler.crop(number, SIZE)
        d, h, w = crop.valid_size
        inner, boxes = crop.hu[:d, :h, :w], sliding_window_view(volumes[crop.source], crop.valid_size)
        starts = np.argwhere(boxes[..., 0, 0, 0] == inner[0, 0, 0])
        assert any(np.array_equal(boxes[tuple(start)], inner) for start in starts)
        # as estimated from blocks of 8
        assert (inner > -500).mean() >= 0.18
        if d < 32:
            seen_short = True
            assert d == 20
            assert (crop.hu[24:] == -1024).all()
            assert (crop.hu[20:24, :h, :w] == inner[-1]).all()
    assert seen_short


def test_intensities_are_windowed_jittered_and_clean_in_the_target(cache: Cache) -> None:
    config = tiny_config(noise_hu=0.0, scale_jitter=0.0, shift_jitter_hu=0.0)
    batch = batch_of(config, cache, 0)
    image, target, valid = intensities(batch, WINDOWS, torch.device("cpu"))
    hu = batch.hu.float()
    expected = torch.cat([(hu + 1000) / 2000, (hu + 160) / 400], 1).clamp(0, 1)
    torch.testing.assert_close(target, expected)
    assert torch.equal(image, target)
    padded = next(b for b in (batch_of(config, cache, n) for n in range(40)) if (b.valid_size < 32).any())
    _, _, counted = intensities(padded, WINDOWS, torch.device("cpu"))
    assert counted.flatten(1).sum(1).tolist() == padded.valid_size.prod(1).tolist()
    assert (valid is None) == bool((batch.valid_size == 32).all())
    noisy = tiny_config(noise_hu=100.0)
    batch = batch_of(noisy, cache, 0)
    image, target, _ = intensities(batch, WINDOWS, torch.device("cpu"))
    inside = (target[0, 0] > 0.2) & (target[0, 0] < 0.8)
    sigma = 2000 * (image - target)[0, 0][inside].std()
    assert sigma == pytest.approx(float(batch.jitter[0, 2]), rel=0.1)
    again, _, _ = intensities(batch, WINDOWS, torch.device("cpu"))
    assert torch.equal(image, again)


def test_masks_of_steps_come_from_the_configuration() -> None:
    config = tiny_config()
    drawn = {
        (m.strategy, round(1 - (1 - m.plane_ratio) ** 2, 3)) for m in (mask_of_step(config, s) for s in range(400))
    }
    assert drawn == {(s, h) for s in set(config.mask.strategies) for h in set(config.mask.ratios)}


def test_every_second_update_of_the_cooldown_has_larger_crops_and_fewer(cache: Cache) -> None:
    # the last six updates are a cool-down, with crops of 32x32x32 voxels in every second one
    config = tiny_config(steps=20, cooldown_share=0.3, batch_size=16, crop_size=(16, 16, 16))
    large = [step for step in range(20) if crop_size_of_step(config, step) == (32, 32, 32)]
    assert large == [15, 17, 19]
    assert all(crop_size_of_step(config, step) == (16, 16, 16) for step in range(20) if step not in large)
    samples = [samples_of_update(config, step) for step in range(20)]
    assert [len(one) for one in samples] == [2 if step in large else 16 for step in range(20)]
    assert [one.start for one in samples] == [16 * step for step in range(20)]
    shapes = [tuple(batch.hu.shape) for batch in batches(config, sampler_for(config, cache), first=13)]
    assert shapes == [(16, 1, 16, 16, 16), *((16, 1, 16, 16, 16), (2, 1, 32, 32, 32)) * 3]
    # without a cool-down its crops are not looked at
    plain = tiny_config(steps=20, cooldown_share=0.0, batch_size=3, crop_size=(16, 16, 16))
    assert {crop_size_of_step(plain, step) for step in range(20)} == {(16, 16, 16)}
    with pytest.raises(InputError, match=r"batch_size 3 is no multiple of 8, as the cool-down needs"):
        tiny_config(steps=20, cooldown_share=0.1, batch_size=3, crop_size=(16, 16, 16))


@pytest.mark.parametrize("passes", [1, 2, 4, 8])
def test_readers_and_teacher_take_crops_of_the_update_however_it_is_shared_out(passes: int) -> None:
    """Losses of passes, weighted, average to the mean over the chosen crops."""
    update, values = range(40, 48), np.random.default_rng(0).random(8)
    size = len(update) // passes
    for count, part in ((1, update[:1]), (3, (40, 42, 44)), (4, update[::2]), (8, update), (9, update)):
        losses, seen = [], []
        for number in range(passes):
            samples = update[number * size : (number + 1) * size]
            one = chosen(samples, update, count)
            seen += samples[one.crops]
            losses.append(one.weight * values[np.array(samples)[one.crops] - 40].mean() if one else 0.0)
        assert seen == list(part)
        assert np.mean(losses) == pytest.approx(values[np.array(part) - 40].mean())


@pytest.mark.parametrize("threads", [1, 3])
def test_batches_come_in_order_and_from_any_update(cache: Cache, threads: int) -> None:
    config = tiny_config(batch_size=4, accumulation=2, loader_threads=threads)
    sampler = sampler_for(config, cache)
    made = list(batches(config, sampler))
    passes = [(step, number) for step in range(config.train.steps) for number in range(2)]
    for batch, key in zip(made, passes, strict=True):
        expected = make_batch(config, sampler, key[0], samples_of_pass(config, ALONE, *key))
        assert torch.equal(batch.hu, expected.hu)
        assert torch.equal(batch.visible, expected.visible)
    assert made[2].mask == made[3].mask, "one update has one mask"
    for batch, expected in zip(batches(config, sampler, first=6), made[12:], strict=True):
        assert torch.equal(batch.hu, expected.hu)


def test_closing_the_loader_ends_its_threads(cache: Cache) -> None:
    loader = batches(tiny_config(loader_threads=3), sampler_for(tiny_config(), cache))
    next(loader)

    def names() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name.startswith("batches")]

    assert names()
    loader.close()
    assert not names()


def test_the_ends_of_a_volume_are_seen(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "cache", [(96, 32, 32)], ["train"])
    sampler = sampler_for(tiny_config(min_foreground=0.0, flip=False), cache)
    first_plane = np.asarray(cache.open(cache.entries[0]))[0]
    share = np.mean([np.array_equal(sampler.crop(n, SIZE).hu[0], first_plane) for n in range(200)])
    assert share > 0.1


def test_half_of_the_crops_are_mirrored(cache: Cache) -> None:
    """Left and right: other axes tell which way is up."""
    sampler, never = sampler_for(tiny_config(), cache), sampler_for(tiny_config(flip=False), cache)
    mirrored, volumes = [], set()
    for number in range(300):
        crop, plain = sampler.crop(number, SIZE), never.crop(number, SIZE)
        assert (crop.valid_size, crop.source) == (plain.valid_size, plain.source)
        d, h, w = crop.valid_size
        inner, other = crop.hu[:d, :h, :w], plain.hu[:d, :h, :w]
        mirrored.append(not np.array_equal(inner, other))
        assert np.array_equal(inner, other[:, :, ::-1] if mirrored[-1] else other)
        volumes.add(crop.source)
    assert 0.4 < np.mean(mirrored) < 0.6
    assert len(volumes) == 3


def test_the_foreground_is_judged_from_the_table(tmp_path: Path) -> None:
    """Body in one corner: nearly every crop holds some of it, and which ones hold enough is known beforehand."""
    hu = np.full((64, 64, 64), -1000, np.int16)
    hu[:32, :32, :32] = 40
    entry = CacheEntry("v", (64, 64, 64), "p", "train", "0", 0.125, crc32=store_volume(tmp_path, "v", hu))
    cache = Cache(tmp_path, 1.5, (entry,))
    sampler = sampler_for(tiny_config(min_foreground=0.5), cache)
    shares = [float((sampler.crop(number, SIZE).hu > -500).mean()) for number in range(100)]
    without = sampler_for(tiny_config(min_foreground=0.0), cache)
    assert np.mean(np.array(shares) >= 0.45) > 0.5
    assert np.mean([(without.crop(number, SIZE).hu > -500).mean() >= 0.45 for number in range(100)]) < 0.3


@pytest.mark.parametrize("name", ["v1.npy", "v1.foreground.npy"])
def test_damage_is_found_before_training(cache: Cache, name: str) -> None:
    (cache.folder / "volumes" / name).write_bytes(b"")
    usable, (problem,) = readable(cache, cache.select("train"))
    assert [entry.name for entry in usable] == ["v0", "v2"]
    assert name in problem


def test_a_volume_that_is_cut_while_it_is_read(tmp_path: Path) -> None:
    """As a copy in place does; touching what is gone would end the process."""
    cache = make_cache(tmp_path / "cache", [(40, 40, 40)])
    sampler = sampler_for(tiny_config(), cache)
    sampler.crop(0, SIZE)
    os.truncate(cache.path(cache.entries[0]), 5000)
    with pytest.raises(InputError, match=r"v0\.npy is damaged"):
        sampler.crop(0, SIZE)


def test_more_volumes_than_files_may_be_open(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "cache", [(16, 16, 16)] * 60)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 100
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("MAESILLib.data.sampling.OPEN_VOLUMES", 5)
        resource.setrlimit(resource.RLIMIT_NOFILE, (opened + 20, before[1]))
        try:
            sampler = sampler_for(tiny_config(), cache)
            names = {sampler.crop(number, SIZE).source for number in range(200)}
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert len(names) > 40


def test_foreground_tables_count_blocks_and_give_shares_in_proportion() -> None:
    """Every voxel stands for the mean of its block, so shares of whole blocks are exact."""
    shape = (21, 16, 30)
    hu, means = np.random.default_rng(0).integers(-1024, 200, shape).astype(np.int16), np.empty(shape)
    table = foreground_table(hu)
    assert (table.shape, table.dtype) == ((3, 2, 4), np.uint16)
    for d, h, w in np.ndindex(table.shape):
        block = (slice(8 * d, 8 * d + 8), slice(8 * h, 8 * h + 8), slice(8 * w, 8 * w + 8))
        assert table[d, h, w] == (hu[block] > -500).sum()
        means[block] = (hu[block] > -500).mean()
    assert foreground_table(np.full((8, 8, 8), -500, np.int16)).tolist() == [[[0]]]
    assert foreground_table(np.full((8, 8, 8), -499, np.int16)).tolist() == [[[512]]]
    rng = np.random.default_rng(1)
    starts = [tuple(int(rng.integers(0, n)) for n in shape) for _ in range(50)]
    boxes = [[(s, int(rng.integers(1, n - s + 1))) for s, n in zip(start, shape, strict=True)] for start in starts]
    whole = [[(0, 21), (0, 16), (0, 30)], [(8, 8), (0, 16), (16, 14)], [(16, 5), (8, 8), (24, 6)]]
    for expected, chosen_boxes in ((hu > -500, whole), (means, boxes)):
        for pairs in chosen_boxes:
            d, h, w = (slice(start, start + size) for start, size in pairs)
            share = foreground_share(table, shape, (d, h, w))
            assert share == pytest.approx(expected[d, h, w].mean(), abs=1e-12)
