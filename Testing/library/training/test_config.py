"""Configuration: unknown keys, wrong kinds, presets, and that every key changes something."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_factory import read_array, reconstruct, write_checkpoint, write_ct
from training_factory import awakened, tiny_config

from MAESILLib.config import (
    PRESETS,
    SOFT_TISSUE,
    WIDE,
    Config,
    ModelConfig,
    Preprocessing,
    Window,
    from_dict,
    load,
    to_dict,
)
from MAESILLib.data.cache import Cache
from MAESILLib.mae.harmonic import harmonic_fill
from MAESILLib.mae.masking import hidden_tokens
from MAESILLib.mae.model import MaskedAutoencoder, spread
from MAESILLib.mae.network import Network
from MAESILLib.mae.superpatch import extract, partition
from MAESILLib.runtime.errors import InputError
from MAESILLib.training.batch import make_batch
from MAESILLib.training.trainer import Trainer


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid_and_survive_a_round_trip(name: str) -> None:
    config = from_dict({"preset": name})
    assert config.preset == name
    assert from_dict(to_dict(config)) == config


def test_a_file_lies_over_the_preset_and_arguments_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text('preset = "tiny"\n[train]\nsteps = 7\nlearning_rate = 1\n[mask]\nratios = [0.5]\n')
    config = load(path, None, {"train": {"steps": 9}})
    assert config.train.steps == 9
    assert config.train.learning_rate == 1.0
    assert config.mask.ratios == (0.5,)
    assert config.model == from_dict({"preset": "tiny"}).model
    assert load(path, "small").model == from_dict({"preset": "small"}).model


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[train]\nstep = 3", r"unknown key 'train.step' in .*did you mean 'train.steps'"),
        ("steps = 3", "unknown key 'steps'"),
        ("[trian]\nsteps = 3", r"unknown key 'trian'.*did you mean 'train'"),
        ("[train]\nsteps = 'many'", r"'train.steps' in .* is 'many'.*write a int"),
        ("[train]\nsteps = true", r"'train.steps' in .* is True"),
        ("[train]\nsteps = 0", "steps must be at least 1"),
        ("[model]\npatch_size = [8, 8]", "list of 3 values"),
        ("[model]\npatch_size = [7, 8, 8]", "not a multiple of patch"),
        ("[model]\nencoder_width = 100", "encoder_width is not a multiple"),
        ("[train]\ncrop_size = [256, 128, 128]", "exceeds model.superpatch_size"),
        ("[train]\nprecision = 'fp8'", "precision must be one of auto, fp32, bf16"),
        ("[mask]\nratios = [0.99]", "above 0 and at most 0.95"),
        ("[mask]\nratios = [0.0]", "above 0 and at most 0.95"),
        ("[mask]\nratios = []", "need an entry"),
        ("[mask]\nratios = 0.5", "write a list of values"),
        ("[mask]\nhidden_ratios = [0.5]", "did you mean 'mask.ratios'"),
        ("[mask]\nstrategies = ['none']", "none"),
        ("[model]\nhead_width = 32", "multiple of 6 for rotary"),
        ("[model]\npositions = 'learned'", "positions must be one of rotary, sincos"),
        ("[model]\ndecoder = 'both'", "decoder must be one of cross, self"),
        ("[model]\npatch_size = [8, 8, 2]", "not a multiple of 8, as model.completion_channels"),
        ("[model]\ncompletion_channels = []", "completion_channels"),
        ("[preprocessing]\nwindows_hu = []", "1 to 16 windows"),
        ("[preprocessing]\nwindows_hu = [[-160, 240], [-1000, 1000]]", "first window must contain the others"),
        ("[preprocessing]\nwindow_hu = [-1000, 1000]", "did you mean 'preprocessing.windows_hu'"),
        ("[preprocessing]\nspacing_mm = 0.0", "preprocessing"),
        ("[preprocessing]\nspacing_mm = nan", "preprocessing"),
        ("[preprocessing]\nwindows_hu = [[1, 0]]", "preprocessing"),
        ("[preprocessing]\nwindows_hu = [[0, 1e30]]", "preprocessing"),
        ("[train]\nbatch_size = 3", "is no multiple of 8"),
        ("[train]\ndecoded_ratio = 0", "decoded_ratio must be above 0"),
        ("[train]\ncooldown_share = 1.5", "cooldown_share must be from 0 to 1"),
        ("[train]\nbetas = [0.9, 1.0]", "betas"),
        ("[train]\nlearning_rate = nan", "learning_rate must be at least 0"),
        ("[mask]\nstrategies = ['dial']", "dial"),
        ("preset = 'huge'", "unknown preset 'huge'"),
        ("train = 3", "not a section"),
        ("[train", "not valid TOML"),
    ],
)
def test_a_wrong_file_is_refused_with_the_key(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "c.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        load(path)
    with pytest.raises(InputError, match="cannot read"):
        load(tmp_path / "none.toml")


MODEL_CHANGES = {
    "superpatch_size": (32, 32, 16),
    "patch_size": (4, 8, 8),
    "encoder_width": 72,
    "encoder_depth": 1,
    "head_width": 12,
    "positions": "sincos",
    "decoder": "self",
    "decoder_width": 48,
    "decoder_depth": 2,
    "block_mix": False,
    "completion_channels": (8,),
}
MASK_CHANGES = {"strategies": ("tube",), "ratios": (0.6,)}
PREPROCESSING_CHANGES = {"spacing_mm": 3.0, "windows_hu": (SOFT_TISSUE,)}


def test_every_key_is_tested() -> None:
    """What a changed key changes is tested below; for the section ``train``, in test_training."""
    config = from_dict({"preset": "tiny"})
    assert [f.name for f in dataclasses.fields(config)] == ["preset", "preprocessing", "model", "mask", "train"]
    for section, changes in (
        (config.model, MODEL_CHANGES),
        (config.mask, MASK_CHANGES),
        (config.preprocessing, PREPROCESSING_CHANGES),
    ):
        assert sorted(changes) == sorted(f.name for f in dataclasses.fields(section))


@pytest.mark.parametrize("key", MODEL_CHANGES)
def test_every_model_key_changes_the_network_or_its_superpatches(key: str) -> None:
    @torch.no_grad()
    def facts(model: ModelConfig) -> object:
        torch.manual_seed(0)
        network = awakened(Network(model, (WIDE,)).eval())
        image, visible = torch.linspace(0, 1, 32**3).view(1, 1, 32, 32, 32), torch.tensor([[0, 3, 5]])
        d, h, w = (32 // p for p in model.patch_size)
        filled = harmonic_fill(image, ~spread(hidden_tokens(visible, (d, h, w)), model.patch_size))
        completed, plain = (network.reconstruct(image, visible, filled, completed=c) for c in (True, False))
        boxes = partition((40, 40, 40), model.superpatch_size, model.patch_size)
        return plain.hidden_patches.flatten().tolist(), completed.hidden_patches.flatten().tolist(), boxes

    before = tiny_config().model
    assert facts(dataclasses.replace(before, **{key: MODEL_CHANGES[key]})) != facts(before)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """The images (windows, D, H, W) that any core is given, in order."""
    images: list[np.ndarray] = []
    forward = MaskedAutoencoder.forward

    def watched(self: MaskedAutoencoder, image: torch.Tensor, *rest: Any, **options: Any) -> Any:
        images.extend(image.detach().cpu().numpy().copy())
        return forward(self, image, *rest, **options)

    monkeypatch.setattr(MaskedAutoencoder, "forward", watched)
    return images


def in_windows(hu: np.ndarray, windows_hu: tuple[Window, ...]) -> np.ndarray:
    return np.stack([np.clip((hu.astype(np.float64) - low) / (high - low), 0, 1) for low, high in windows_hu])


@pytest.mark.parametrize("windows_hu", [Preprocessing().windows_hu, PREPROCESSING_CHANGES["windows_hu"]])
def test_training_shows_the_network_the_windows(
    tmp_path: Path, cache: Cache, seen: list[np.ndarray], windows_hu: tuple[Window, ...]
) -> None:
    plain = tiny_config(steps=1, noise_hu=0.0, scale_jitter=0.0, shift_jitter_hu=0.0, cooldown_share=0.0)
    config = dataclasses.replace(plain, preprocessing=dataclasses.replace(plain.preprocessing, windows_hu=windows_hu))
    trainer = Trainer(config, cache, tmp_path / "run")
    trainer.run()
    crops = [trainer.sampler.crop(number, config.train.crop_size).hu for number in range(config.train.batch_size)]
    for image, crop in zip(seen, crops, strict=False):
        np.testing.assert_allclose(image, in_windows(crop, windows_hu), atol=1e-6)
    # after them come the validation superpatches
    assert len(seen) > len(crops)
    volume = cache.open(trainer.validation_entries[0])
    boxes = partition(volume.shape, config.model.superpatch_size, config.model.patch_size)
    known = [in_windows(extract(volume, box), windows_hu) for box in boxes]
    for image in seen[len(crops) :]:
        assert any(k.shape == image.shape and np.allclose(k, image, atol=1e-6) for k in known)


@pytest.mark.parametrize("key", [None, *PREPROCESSING_CHANGES])
def test_reconstruction_shows_the_network_the_window_and_the_spacing(
    tmp_path: Path, seen: list[np.ndarray], key: str | None
) -> None:
    changes = {} if key is None else {key: PREPROCESSING_CHANGES[key]}
    preprocessing = dataclasses.replace(Preprocessing(), **changes)
    checkpoint = write_checkpoint(tmp_path / "c.safetensors", preprocessing=preprocessing)
    scan = write_ct(tmp_path / "scan.nrrd", (32, 32, 32), spacing_dhw=(1.5, 1.5, 1.5))
    reconstruct(scan, tmp_path / "out", checkpoint).checked()
    (image,) = seen
    if preprocessing.spacing_mm == 1.5:
        expected = in_windows(np.clip(read_array(scan), *preprocessing.window_hu), preprocessing.windows_hu)
        np.testing.assert_allclose(image, expected, atol=1e-5)
    else:
        assert image.shape == (2, 16, 16, 16)


@pytest.mark.parametrize("key", MASK_CHANGES)
def test_every_mask_key_changes_the_masks_of_training(cache: Cache, key: str) -> None:
    def masks(config: Config) -> list[object]:
        sampler = Trainer(config, cache, cache.folder.parent / "run").sampler
        return [make_batch(config, sampler, step, range(2 * step, 2 * step + 2)).visible.tolist() for step in range(4)]

    before = tiny_config()
    changed = dataclasses.replace(before, mask=dataclasses.replace(before.mask, **{key: MASK_CHANGES[key]}))
    assert masks(changed) != masks(before)
