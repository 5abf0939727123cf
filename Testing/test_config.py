"""Configuration: unknown keys, wrong kinds, presets, and that every key changes something."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_factory import read_array, reconstruct, write_checkpoint, write_ct
from training_factory import awakened, tiny_config

from MAESILLib.config import PRESETS, Config, Preprocessing, from_dict, load, preset, to_dict
from MAESILLib.data.cache import Cache
from MAESILLib.data.crops import HostCrops
from MAESILLib.errors import InputError
from MAESILLib.model import MaskedAutoencoder
from MAESILLib.superpatch import extract, partition
from MAESILLib.training.batch import make_batch
from MAESILLib.training.trainer import Trainer


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid_and_survive_a_round_trip(name: str) -> None:
    config = preset(name)
    assert config.preset == name
    assert from_dict(to_dict(config)) == config


def test_a_file_lies_over_the_preset_and_arguments_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text('preset = "tiny"\n[train]\nsteps = 7\nlearning_rate = 1\n[mask]\nhidden_shares = [0.5]\n')
    config = load(path, None, {"train": {"steps": 9}})
    assert config.train.steps == 9
    assert config.train.learning_rate == 1.0
    assert config.mask.hidden_shares == (0.5,)
    assert config.model == preset("tiny").model
    assert load(path, "small").model == preset("small").model


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[train]\nstep = 3", r"unknown key 'train.step' in .*did you mean 'train.steps'"),
        ("[trian]\nsteps = 3", r"unknown key 'trian'.*did you mean 'train'"),
        ("[train]\nsteps = 'many'", r"'train.steps' in .* is 'many'.*write a int"),
        ("[train]\nsteps = true", r"'train.steps' in .* is True"),
        ("[train]\nsteps = 0", "steps starts at 1"),
        ("[model]\npatch_size = [8, 8]", "list of 3 values"),
        ("[model]\npatch_size = [7, 8, 8]", "not a multiple of patch"),
        ("[model]\nencoder_width = 100", "encoder_width is not a multiple"),
        ("[train]\ncrop_size = [256, 128, 128]", "exceeds model.superpatch_size"),
        ("[train]\nprecision = 'fp8'", "precision is 'fp8'"),
        ("[mask]\nhidden_shares = [0.99]", "between 0 and 0.95"),
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


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        load(tmp_path / "none.toml")


MODEL_CHANGES = {
    "superpatch_size": (32, 32, 16),
    "patch_size": (4, 8, 8),
    "encoder_width": 64,
    "encoder_depth": 1,
    "decoder_width": 64,
    "decoder_depth": 2,
    "head_width": 8,
    "mlp_ratio": 3.0,
    "prior": False,
    "context_margin": 1,
    "mixing_depth": 2,
    "local_channels": (8,),
    "direct_head": False,
}


MASK_CHANGES = {"strategies": ("tube",), "hidden_shares": (0.6,)}
PREPROCESSING_CHANGES = {"spacing_mm": 3.0, "window_hu": (-160.0, 240.0)}


def test_every_key_is_tested() -> None:
    """What a changed key changes is tested below; for the section ``train``, in test_training."""
    config = preset("tiny")
    assert [f.name for f in dataclasses.fields(config)] == ["preset", "preprocessing", "model", "mask", "train"]
    for section, changes in (
        (config.model, MODEL_CHANGES),
        (config.mask, MASK_CHANGES),
        (config.preprocessing, PREPROCESSING_CHANGES),
    ):
        assert sorted(changes) == sorted(f.name for f in dataclasses.fields(section))


@pytest.mark.parametrize("key", MODEL_CHANGES)
def test_every_model_key_changes_the_network_or_its_superpatches(key: str) -> None:
    def facts(model: object) -> object:
        torch.manual_seed(0)
        network = awakened(MaskedAutoencoder(model).eval())  # type: ignore[arg-type]
        image = torch.linspace(0, 1, 32**3).view(1, 1, 32, 32, 32)
        with torch.no_grad():
            out = network(image, torch.tensor([[0, 3, 5]]), queried=torch.tensor([[0, 1, 2]]))
        boxes = partition((40, 40, 40), model.superpatch_size, model.patch_size)  # type: ignore[attr-defined]
        return out.hidden_patches.flatten().tolist(), out.visible_patches.flatten().tolist(), boxes

    before = tiny_config().model
    assert facts(dataclasses.replace(before, **{key: MODEL_CHANGES[key]})) != facts(before)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """The images (D, H, W) that any network is given, in order."""
    images: list[np.ndarray] = []
    forward = MaskedAutoencoder.forward

    def watched(self: MaskedAutoencoder, image: torch.Tensor, *rest: Any, **options: Any) -> Any:
        images.extend(image[:, 0].detach().cpu().numpy().copy())
        return forward(self, image, *rest, **options)

    monkeypatch.setattr(MaskedAutoencoder, "forward", watched)
    return images


def in_window(hu: np.ndarray, window_hu: tuple[float, float]) -> np.ndarray:
    return np.clip((hu.astype(np.float64) - window_hu[0]) / (window_hu[1] - window_hu[0]), 0, 1)


@pytest.mark.parametrize("window_hu", [(-1000.0, 1000.0), PREPROCESSING_CHANGES["window_hu"]])
def test_training_shows_the_network_the_window(
    tmp_path: Path, cache: Cache, seen: list[np.ndarray], window_hu: tuple[float, float]
) -> None:
    plain = tiny_config(steps=1, noise=0.0, scale_jitter=0.0, shift_jitter=0.0)
    config = dataclasses.replace(plain, preprocessing=dataclasses.replace(plain.preprocessing, window_hu=window_hu))
    trainer = Trainer(config, cache, tmp_path / "run")
    trainer.run()
    crops = [trainer.sampler.crop(number).hu for number in range(config.train.batch_size)]
    for image, crop in zip(seen, crops, strict=False):
        np.testing.assert_allclose(image, in_window(crop, window_hu), atol=1e-6)
    # after them come the validation superpatches
    assert len(seen) > len(crops)
    volume = cache.open(trainer.validation_entries[0])
    boxes = partition(volume.shape, config.model.superpatch_size, config.model.patch_size)
    known = [in_window(extract(volume, box), window_hu) for box in boxes]
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
    assert reconstruct(scan, tmp_path / "out", checkpoint).status == 0
    (image,) = seen
    if preprocessing.spacing_mm == 1.5:
        np.testing.assert_allclose(image, in_window(read_array(scan), preprocessing.window_hu), atol=1e-6)
    else:
        assert image.shape == (16, 16, 16)


@pytest.mark.parametrize("key", MASK_CHANGES)
def test_every_mask_key_changes_the_masks_of_training(cache: Cache, key: str) -> None:
    def masks(config: Config) -> list[object]:
        crops = HostCrops(Trainer(config, cache, cache.folder.parent / "run").sampler)
        return [make_batch(config, crops, step, range(2 * step, 2 * step + 2)).visible.tolist() for step in range(4)]

    before = tiny_config()
    changed = dataclasses.replace(before, mask=dataclasses.replace(before.mask, **{key: MASK_CHANGES[key]}))
    assert masks(changed) != masks(before)


@pytest.mark.parametrize(
    "bad", [{"spacing_mm": 0.0}, {"spacing_mm": float("nan")}, {"window_hu": [1, 0]}, {"window_hu": [0, 1e30]}]
)
def test_impossible_preprocessing_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(InputError, match="preprocessing"):
        from_dict({"preprocessing": bad})
