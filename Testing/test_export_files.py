"""What an exported file says of itself, and which files are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from export_factory import SIZE
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from MAESILLib.errors import InputError
from MAESILLib.export.description import read_encoder_info
from MAESILLib.export.encoder import load_encoder
from MAESILLib.export.monai_nets import monai_unetr, monai_vit
from MAESILLib.export.write import export_encoder
from MAESILLib.files import sha256_of


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata())


class TestFiles:
    """What an exported file says, and which files are refused."""

    @pytest.mark.parametrize("kind", ["torch", "vit", "unetr"])
    def test_the_description(self, lively: Path, tmp_path: Path, kind: str) -> None:
        path = tmp_path / f"{kind}.safetensors"
        export_encoder(lively, kind, path, None if kind == "torch" else SIZE)
        header = json.loads(path.read_bytes()[8 : 8 + int.from_bytes(path.read_bytes()[:8], "little")])
        said = json.loads(header["__metadata__"]["maesil"])
        assert said["source"]["sha256"] == sha256_of(lively)
        assert said["licence"] == "weights: Apache-2.0"
        assert said["training"]["data"]["volumes"] == ["a", "b"]
        assert said["preprocessing"] == {"orientation": "LPS", "spacing_mm": 1.5, "window_hu": [-900.0, 700.0]}
        assert said["image_size"] == (None if kind == "torch" else list(SIZE))
        assert path.name in said["load"]
        names: dict[str, object] = {}
        exec(said["load"].replace(path.name, str(path)), names)
        assert any(isinstance(value, nn.Module) for value in names.values())

    def test_what_it_says_of_the_architecture_is_what_it_holds(self, lively: Path, tmp_path: Path) -> None:
        from monai.networks.nets import ViT

        export_encoder(lively, "vit", tmp_path / "vit.safetensors", SIZE)
        architecture = read_encoder_info(tmp_path / "vit.safetensors").architecture
        assert architecture["class"] == "monai.networks.nets.ViT"
        plain = {key: value.shape for key, value in ViT(**architecture["arguments"]).state_dict().items()}
        held = {key: value.shape for key, value in load_file(tmp_path / "vit.safetensors").items()}
        added = {key for key in held if "input_rearrange" in key}
        assert len(added) == 2 * 5
        assert {key: shape for key, shape in held.items() if key not in added} == plain

    def test_a_unetr_file_holds_the_encoder_alone(self, lively: Path, tmp_path: Path) -> None:
        export_encoder(lively, "unetr", tmp_path / "unetr.safetensors", SIZE)
        net = monai_unetr(lively, 2, SIZE, 4)
        of_encoder = {key for key in net.state_dict() if key.startswith("vit.")}
        assert set(load_file(tmp_path / "unetr.safetensors")) == of_encoder

    @pytest.mark.parametrize("load", [load_encoder, monai_vit, lambda path: monai_unetr(path, 2)])
    @pytest.mark.parametrize("what", ["missing", "pickle", "foreign", "cut", "empty"])
    def test_other_files_are_refused(
        self, lively: Path, tmp_path: Path, load: Callable[[Path], object], what: str
    ) -> None:
        path = tmp_path / "other.safetensors"
        if what == "pickle":
            torch.save({"a": torch.zeros(2)}, path)
        elif what == "foreign":
            save_file({"a": torch.zeros(2)}, path, {"maesil": "[]"})
        elif what == "cut":
            path.write_bytes(lively.read_bytes()[:-100])
        elif what == "empty":
            path.touch()
        with pytest.raises(InputError, match=r"other\.safetensors") as caught:
            load(path)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("kind", ["torch", "vit", "unetr"])
    @pytest.mark.parametrize("what", ["a tensor is missing", "one too many", "another shape"])
    def test_a_file_that_does_not_fit_its_description_is_refused(
        self, lively: Path, tmp_path: Path, kind: str, what: str
    ) -> None:
        path = tmp_path / "part.safetensors"
        export_encoder(lively, kind, path, None if kind == "torch" else SIZE)
        tensors, said = load_file(path), metadata(path)["maesil"]
        name = next(key for key in tensors if key.endswith("norm.weight"))
        if what == "a tensor is missing":
            del tensors[name]
        elif what == "another shape":
            tensors[name] = tensors[name][:5].clone()
        else:
            tensors["zzz"] = torch.zeros(1)
        save_file(tensors, path, {"maesil": said})
        load = {"torch": load_encoder, "vit": monai_vit, "unetr": lambda p: monai_unetr(p, 2)}[kind]
        with pytest.raises(InputError, match="1 tensors differ"):
            load(path)

    @pytest.mark.parametrize(
        ("key", "value"),
        [("kind", "onnx"), ("image_size", [0, 8, 8]), ("image_size", None), ("layers", "many"), ("model", {})],
    )
    def test_a_description_that_makes_no_sense_is_refused(
        self, lively: Path, tmp_path: Path, key: str, value: object
    ) -> None:
        path = tmp_path / "vit.safetensors"
        export_encoder(lively, "vit", path, SIZE)
        tensors, said = load_file(path), json.loads(metadata(path)["maesil"])
        save_file(tensors, path, {"maesil": json.dumps({**said, key: value})})
        with pytest.raises(InputError, match=r"vit\.safetensors"):
            monai_vit(path)

    def test_a_file_for_another_network_or_size_is_refused(self, lively: Path, tmp_path: Path) -> None:
        for kind in ("vit", "unetr"):
            export_encoder(lively, kind, tmp_path / f"{kind}.safetensors", SIZE)
        with pytest.raises(InputError, match="is an export for MONAI"):
            load_encoder(tmp_path / "vit.safetensors")
        with pytest.raises(InputError, match=r"image_size \(16, 32, 24\), not \(32, 32, 32\)"):
            monai_vit(tmp_path / "vit.safetensors", 32)
        with pytest.raises(InputError, match="layers 5, not 12"):
            monai_unetr(tmp_path / "vit.safetensors", 2)
        with pytest.raises(InputError, match="patch_size"):
            monai_unetr(tmp_path / "unetr.safetensors", 2, patch_size=16)
