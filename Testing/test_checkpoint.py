"""Checkpoints: what goes in comes out, and what does not fit is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from training_factory import tiny_config

from MAESILLib.checkpoint import CheckpointInfo, load_checkpoint, read_info, save_checkpoint
from MAESILLib.config import BEFORE_LOCAL_BRANCH, Preprocessing
from MAESILLib.errors import InputError
from MAESILLib.model import MaskedAutoencoder

CONFIG = tiny_config().model


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, MaskedAutoencoder]:
    torch.manual_seed(0)
    model = MaskedAutoencoder(CONFIG)
    info = CheckpointInfo(CONFIG, Preprocessing(2.0, (-160.0, 240.0)), {"strategies": ["dual"]}, {"steps": 3})
    save_checkpoint(tmp_path / "c.safetensors", model.state_dict(), info)
    return tmp_path / "c.safetensors", model


def rewritten(path: Path, change: Any) -> Path:
    with safe_open(path, "pt") as file:
        tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
        description = json.loads(file.metadata()["maesil"])
    change(tensors, description)
    save_file(tensors, path, {"maesil": json.dumps(description)})
    return path


def test_everything_comes_back(written: tuple[Path, MaskedAutoencoder]) -> None:
    path, model = written
    loaded, info = load_checkpoint(path)
    assert not loaded.training
    assert info.model == CONFIG
    assert info.preprocessing == Preprocessing(2.0, (-160.0, 240.0))
    assert (info.mask, info.training) == ({"strategies": ["dual"]}, {"steps": 3})
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight)
    assert any(name.startswith("encoder.") for name in model.state_dict())
    assert any(name.startswith("decoder.") for name in model.state_dict())
    assert path.stat().st_mode & 0o044, "others may not read it"


@pytest.mark.parametrize(("dtype", "step"), [("fp16", 2**-10), ("bf16", 2**-7)])
def test_half_precision_is_stored_and_read_as_fp32(
    tmp_path: Path, written: tuple[Path, MaskedAutoencoder], dtype: str, step: float
) -> None:
    path, model = written
    small = tmp_path / "half.safetensors"
    save_checkpoint(small, model.state_dict(), read_info(path), dtype)
    assert small.stat().st_size < 0.6 * path.stat().st_size
    loaded, _ = load_checkpoint(small)
    for name, weight in model.state_dict().items():
        assert loaded.state_dict()[name].dtype == torch.float32
        assert (loaded.state_dict()[name] - weight).abs().max() <= step * weight.abs().max() + 1e-7


def test_a_missing_tensor_is_named(written: tuple[Path, MaskedAutoencoder]) -> None:
    path = rewritten(written[0], lambda tensors, _: tensors.pop("decoder.mask_token"))
    with pytest.raises(InputError, match=r"1 tensors differ, first 'decoder\.mask_token'"):
        load_checkpoint(path)


def test_a_tensor_of_another_shape_is_named(written: tuple[Path, MaskedAutoencoder]) -> None:
    def shrink(tensors: dict[str, torch.Tensor], _: Any) -> None:
        tensors["encoder.norm.weight"] = torch.zeros(3)

    with pytest.raises(InputError, match=r"first 'encoder\.norm\.weight'"):
        load_checkpoint(rewritten(written[0], shrink))


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("model", "head_width", 0, "head_width"),
        ("model", "encoder_width", -48, "encoder_width"),
        ("model", "mlp_ratio", float("nan"), "mlp_ratio"),
        ("model", "secret", 1, "unknown key 'model.secret'"),
        ("preprocessing", "spacing_mm", 0.0, "spacing_mm"),
        ("preprocessing", "window_hu", [0.0, 0.0], "window_hu"),
        ("preprocessing", "orientation", "RAS", "orientation 'RAS'"),
        (None, "format", "maesil-checkpoint/9", "format 'maesil-checkpoint/9'"),
        (None, "preprocessing", "none", "not a MAESIL checkpoint"),
    ],
)
def test_a_description_that_makes_no_sense_is_refused(
    written: tuple[Path, MaskedAutoencoder], section: str | None, key: str, value: Any, message: str
) -> None:
    def change(_: Any, description: dict[str, Any]) -> None:
        (description if section is None else description[section])[key] = value

    with pytest.raises(InputError, match=message):
        read_info(rewritten(written[0], change))


def test_other_safetensors_files_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="not a MAESIL checkpoint"):
        load_checkpoint(tmp_path / "other.safetensors")


def test_an_unknown_weight_type_is_refused(tmp_path: Path, written: tuple[Path, MaskedAutoencoder]) -> None:
    with pytest.raises(InputError, match="fp8"):
        save_checkpoint(tmp_path / "x.safetensors", written[1].state_dict(), read_info(written[0]), "fp8")


def test_a_checkpoint_from_before_the_local_branch_is_one_without_it(tmp_path: Path) -> None:
    without = dataclasses.replace(CONFIG, mixing_depth=0, local_channels=(), direct_head=False)
    path = tmp_path / "old.safetensors"
    save_checkpoint(path, MaskedAutoencoder(without).state_dict(), CheckpointInfo(without, Preprocessing()))

    def forget(_: Any, description: Any) -> None:
        for key in BEFORE_LOCAL_BRANCH:
            del description["model"][key]

    assert read_info(rewritten(path, forget)).model == without


def test_a_checkpoint_says_all_or_nothing_of_the_local_branch(written: tuple[Path, MaskedAutoencoder]) -> None:
    path = rewritten(written[0], lambda _, description: description["model"].pop("mixing_depth"))
    with pytest.raises(InputError, match="does not say its mixing_depth"):
        read_info(path)
