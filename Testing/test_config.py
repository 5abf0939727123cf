"""Configuration: unknown keys, wrong kinds, presets, and that every key changes something."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path

import pytest

import MAESILLib
from MAESILLib.config import PRESETS, Config, from_dict, load, preset, to_dict
from MAESILLib.errors import InputError


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


def test_every_key_is_read_somewhere() -> None:
    """A key that no code reads would be one that changes nothing."""
    folder = Path(inspect.getfile(MAESILLib)).parent
    code = "\n".join(p.read_text(encoding="utf-8") for p in folder.rglob("*.py") if p.name != "config.py")
    for section in dataclasses.fields(Config):
        if section.name == "preset":
            continue
        for key in dataclasses.fields(getattr(preset("small"), section.name)):
            assert f".{key.name}" in code, f"{section.name}.{key.name} is read nowhere"


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
}


@pytest.mark.parametrize("key", [f.name for f in dataclasses.fields(preset("tiny").model)])
def test_every_model_key_changes_the_network_or_its_superpatches(key: str) -> None:
    import torch
    from conftest import tiny_config

    from MAESILLib.model import MaskedAutoencoder
    from MAESILLib.superpatch import partition

    def facts(model: object) -> object:
        torch.manual_seed(0)
        network = MaskedAutoencoder(model).eval()  # type: ignore[arg-type]
        image = torch.linspace(0, 1, 32**3).view(1, 1, 32, 32, 32)
        with torch.no_grad():
            out = network(image, torch.tensor([[0, 3, 5]]), queried=torch.tensor([[0, 1, 2]]))
        boxes = partition((40, 40, 40), model.superpatch_size, model.patch_size)  # type: ignore[attr-defined]
        return out.hidden_patches.flatten().tolist(), out.visible_patches.flatten().tolist(), boxes

    before = tiny_config().model
    assert facts(dataclasses.replace(before, **{key: MODEL_CHANGES[key]})) != facts(before)


def test_preprocessing_keys_change_what_the_network_sees() -> None:
    """window_hu and spacing_mm: see test_training and test_prepare; here, that odd values are refused."""
    for bad in ({"spacing_mm": 0.0}, {"spacing_mm": float("nan")}, {"window_hu": [1, 0]}, {"window_hu": [0, 1e30]}):
        with pytest.raises(InputError, match="preprocessing"):
            from_dict({"preprocessing": bad})
