"""Checkpoints: what goes in comes out, and what does not fit is refused."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from export_factory import rewritten
from training_factory import awakened, tiny_config
from volume_factory import trunk

from MAESILLib.config import PRESETS, Preprocessing, from_dict
from MAESILLib.mae.checkpoint import CheckpointInfo, load_checkpoint, read_info, save_checkpoint
from MAESILLib.mae.checkpoint_info import PARTS, parameter_counts
from MAESILLib.mae.harmonic import harmonic_fill
from MAESILLib.mae.masking import MaskSpec, draw_visible, generator_for, hidden_tokens
from MAESILLib.mae.model import spread, windowed
from MAESILLib.mae.network import Network, Reconstructed
from MAESILLib.runtime.errors import InputError

CONFIG = tiny_config().model
WINDOWS = ((-500.0, 500.0), (-160.0, 240.0))
MOST_BYTES = 4 * 2**20
"""Of a checkpoint that ships."""
REALISTIC = {
    "preset": "small",
    "steps": 20000,
    "samples": 320000,
    "train": {f"setting_{n}": 0.123456789 for n in range(45)},
    "data": {
        "fingerprint": "0" * 16,
        "volumes": [f"collection__case_of_a_long_name_{n:04d}" for n in range(50)],
        "sources_sha256": [f"{n:064x}" for n in range(50)],
        "patients_sha256": [f"{n:016x}" for n in range(50)],
        "licences": ["CC BY 3.0", "CC BY 4.0"],
    },
    "licence": "weights: Apache-2.0; training data: CC BY 3.0 and CC BY 4.0",
    "evaluation": {"settings": {f"setting {n}": {f"metric_{k}": 1 / 3 for k in range(12)} for n in range(8)}},
    "probe": {"points": "points.csv", "window": 64, **{f"auroc_of_{n}": 1 / 3 for n in range(6)}},
}


def new_network(config: Any, windows: Any = WINDOWS) -> Network:
    torch.manual_seed(0)
    return awakened(Network(config, windows).eval(), 0.02)


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, Network]:
    model = new_network(CONFIG)
    info = CheckpointInfo(CONFIG, Preprocessing(2.0, WINDOWS), {"strategies": ["dual"]}, {"steps": 3})
    save_checkpoint(tmp_path / "c.safetensors", model.state_dict(), info)
    return tmp_path / "c.safetensors", model


def saved(path: Path, model: Network, dtype: str = "fp32") -> Path:
    save_checkpoint(path, model.state_dict(), CheckpointInfo(CONFIG, Preprocessing()), as_int8=dtype == "int8")
    return path


@torch.no_grad()
def reconstructed(model: Network) -> Reconstructed:
    """What a network makes of a box of 16^3 voxels, three quarters hidden."""
    image = windowed(torch.from_numpy(trunk((16, 16, 16), 1)).float()[None, None], model.windows_hu)
    visible = draw_visible((2, 2, 2), MaskSpec("dual"), 1, generator_for(0))
    return model.reconstruct(
        image, visible, harmonic_fill(image[:, :1], ~spread(hidden_tokens(visible, (2, 2, 2)), (8, 8, 8)))
    )


def test_everything_comes_back(written: tuple[Path, Network]) -> None:
    path, model = written
    loaded, info = load_checkpoint(path)
    assert isinstance(loaded, Network)
    assert not loaded.training
    assert (info.model, info.preprocessing, info.parts) == (CONFIG, Preprocessing(2.0, WINDOWS), PARTS)
    assert loaded.windows_hu == info.preprocessing.windows_hu == WINDOWS
    assert (info.mask, info.training) == ({"strategies": ["dual"]}, {"steps": 3})
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight)
    for part in ("core.encoder.", "core.decoder.", "completion.", "readout."):
        assert any(name.startswith(part) for name in model.state_dict())
    assert path.stat().st_mode & 0o044, "others may not read it"


@pytest.mark.parametrize("parts", [(), ("readout",), ("completion",)])
def test_parts_that_were_not_trained_are_not_there(tmp_path: Path, parts: tuple[str, ...]) -> None:
    loaded, info = load_checkpoint(saved(tmp_path / "c.safetensors", Network(CONFIG, WINDOWS, parts)))
    assert info.parts == parts
    assert (loaded.completion is not None, loaded.readout is not None) == ("completion" in parts, "readout" in parts)


LARGEST = {"fp32": 0.0, "int8": 0.5 / 127}
"""Error of a stored weight, relative to the largest of its row."""
OF_PATCHES = {"fp32": 0.0, "int8": 0.015}
"""Root mean squared error of the intensities that random weights make, from 0 to 1."""


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_builds_reconstructs_and_comes_back(tmp_path: Path, name: str) -> None:
    config = from_dict({"preset": name})
    model = new_network(config.model, config.preprocessing.windows_hu)
    before = reconstructed(model)
    assert before.hidden_patches.shape[1:] == (6, 512)
    sizes = {}
    for dtype, largest in LARGEST.items():
        path = tmp_path / f"{dtype}.safetensors"
        info = CheckpointInfo(config.model, config.preprocessing)
        save_checkpoint(path, model.state_dict(), info, as_int8=dtype == "int8")
        sizes[dtype] = path.stat().st_size
        loaded, _ = load_checkpoint(path)
        weights = loaded.state_dict()
        for key, weight in model.state_dict().items():
            kept = weights[key]
            assert kept.dtype == torch.float32
            rows, error = weight.reshape(len(weight), -1), (kept - weight).abs().reshape(len(weight), -1)
            assert (error.amax(1) <= 1.001 * largest * rows.abs().amax(1) + 1e-7).all(), key
        after = vars(reconstructed(loaded))
        assert torch.equal(after["hidden"], before.hidden)
        for name in ("hidden_patches", "visible_patches"):
            assert (after[name] - vars(before)[name]).square().mean().sqrt() <= OF_PATCHES[dtype]
        path.unlink()
    assert sizes["int8"] < 0.27 * sizes["fp32"]


def test_the_small_preset_in_int8_is_small_enough_to_ship(tmp_path: Path) -> None:
    """With completion and read-out, and with metadata as those of a checkpoint that ships."""
    config = from_dict({"preset": "small"})
    path = tmp_path / "c.safetensors"
    info = CheckpointInfo(config.model, config.preprocessing, {"ratios": [0.75]}, REALISTIC)
    save_checkpoint(path, new_network(config.model, config.preprocessing.windows_hu).state_dict(), info, as_int8=True)
    assert read_info(path).parts == PARTS
    assert len(json.dumps(REALISTIC)) > 10_000
    assert path.stat().st_size <= MOST_BYTES


def test_a_row_of_zeros_comes_back_as_zeros(tmp_path: Path) -> None:
    model = new_network(CONFIG)
    with torch.no_grad():
        model.core.encoder.embed.weight[3] = 0
    loaded, _ = load_checkpoint(saved(tmp_path / "c.safetensors", model, "int8"))
    assert not loaded.state_dict()["core.encoder.embed.weight"][3].any()


class TestDamage:
    """A file that was changed ends in one line that names the tensor."""

    EMBED = "core.encoder.embed.weight"

    @pytest.fixture(params=["fp32", "int8"])
    def path(self, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
        return saved(tmp_path / "c.safetensors", new_network(CONFIG), request.param)

    def refused(self, path: Path, tensor: str) -> None:
        with pytest.raises(InputError) as refusal:
            load_checkpoint(path)
        assert f"'{tensor}'" in str(refusal.value)
        assert path.name in str(refusal.value)
        assert "\n" not in str(refusal.value)

    @pytest.mark.parametrize("name", ["core.decoder.mask_token", EMBED, "completion.stem.bias", "readout.mix.weight"])
    def test_a_missing_tensor(self, path: Path, name: str) -> None:
        rewritten(path, lambda tensors, _: [tensors.pop(name), tensors.pop(name + ".scale", None)])
        self.refused(path, name)

    @pytest.mark.parametrize("name", ["core.encoder.more", "latent_head.weight", "core.encoder.norm.weight.scale"])
    def test_a_surplus_tensor(self, path: Path, name: str) -> None:
        rewritten(path, lambda tensors, _: tensors.update({name: torch.zeros(48)}))
        self.refused(path, name)

    @pytest.mark.parametrize("name", ["core.encoder.norm.weight", "core.decoder.mask_token"])
    def test_a_tensor_of_another_shape(self, path: Path, name: str) -> None:
        rewritten(path, lambda tensors, _: tensors.update({name: torch.zeros(3, 5)}))
        self.refused(path, name)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int32, torch.uint8, torch.bool, torch.int8])
    @pytest.mark.parametrize("name", [EMBED, "core.encoder.norm.weight"])
    def test_a_tensor_of_another_type(self, path: Path, name: str, dtype: torch.dtype) -> None:
        def change(tensors: dict[str, torch.Tensor], _: Any) -> None:
            tensors[name] = tensors[name].float().round().to(dtype)
            if dtype == torch.int8:
                tensors.pop(name + ".scale", None)

        rewritten(path, change)
        self.refused(path, name)

    @pytest.mark.parametrize(
        "scale",
        [None, torch.ones(1), torch.ones(47), torch.ones(48, 1), torch.ones(48).half(), torch.ones(48).double()],
    )
    def test_rows_without_their_scales(self, tmp_path: Path, scale: torch.Tensor | None) -> None:
        path = saved(tmp_path / "c.safetensors", new_network(CONFIG), "int8")

        def change(tensors: dict[str, torch.Tensor], _: Any) -> None:
            del tensors[self.EMBED + ".scale"]
            if scale is not None:
                tensors[self.EMBED + ".scale"] = scale

        self.refused(rewritten(path, change), self.EMBED)

    def test_a_part_that_the_description_denies(self, path: Path) -> None:
        rewritten(path, lambda _, description: description.update(parts=["completion"]))
        self.refused(path, "readout.head.bias")


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("model", "head_width", 0, "head_width"),
        ("model", "head_width", 8, "head_width must be a multiple of 6"),
        ("model", "encoder_width", -48, "encoder_width"),
        ("model", "encoder_width", 48.5, "encoder_width"),
        ("model", "positions", "learned", "positions"),
        ("model", "completion_channels", [], "completion_channels"),
        ("model", "encoder_depht", 1, "unknown key 'encoder_depht'.*did you mean 'encoder_depth'"),
        ("preprocessing", "spacing_mm", 0.0, "spacing_mm"),
        ("preprocessing", "windows_hu", [[0.0, 0.0]], "windows_hu"),
        ("preprocessing", "windows_hu", [0.0, 1.0], "windows_hu"),
        ("preprocessing", "orientation", "RAS", "orientation 'RAS'"),
        (None, "format", "maesil-checkpoint/9", "format 'maesil-checkpoint/9'"),
        (None, "preprocessing", "none", "not a MAESIL checkpoint"),
        (None, "parts", ["refinement"], "parts"),
        (None, "parts", "readout", "parts"),
        (None, "parts", None, "not a MAESIL checkpoint"),
        (None, "library_version", 10**30, "not a MAESIL checkpoint"),
        ("training", "data", None, r"gives None as its training\.data"),
        ("training", "data", {"volumes": 3}, r"training\.data\.volumes"),
        ("training", "samples", -1, r"training\.samples"),
        ("training", "train", {"validation_share": 2}, r"training\.train\.validation_share"),
        ("training", "initialised_from", {"training": {"probe": []}}, r"training\.probe"),
    ],
)
def test_a_description_that_makes_no_sense_is_refused(
    written: tuple[Path, Network], section: str | None, key: str, value: Any, message: str
) -> None:
    def change(_: Any, description: dict[str, Any]) -> None:
        (description if section is None else description[section])[key] = value

    with pytest.raises(InputError, match=message):
        read_info(rewritten(written[0], change))


def test_a_network_larger_than_its_file_takes_no_memory(written: tuple[Path, Network]) -> None:
    """Its weights would be 400 GB."""
    largest = {"encoder_width": 16320, "encoder_depth": 64, "decoder_width": 16320, "decoder_depth": 64}
    rewritten(written[0], lambda _, description: description["model"].update(largest))
    with pytest.raises(InputError, match="state dict mismatch"):
        load_checkpoint(written[0])


def test_a_weight_that_is_no_number_is_refused(written: tuple[Path, Network]) -> None:
    rewritten(written[0], lambda tensors, _: tensors["core.encoder.norm.bias"].fill_(math.nan))
    with pytest.raises(InputError, match=r"core\.encoder\.norm\.bias' holds numbers that are not finite"):
        load_checkpoint(written[0])


@pytest.mark.parametrize(
    "tensor",
    [
        {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": ["1"], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]},
        {"dtype": "F32", "shape": [1]},
        {"dtype": [], "shape": [1], "data_offsets": [0, 4]},
        None,
    ],
)
def test_a_header_that_makes_no_sense_is_refused(tmp_path: Path, tensor: Any) -> None:
    header = json.dumps({"a": tensor}).encode()
    (tmp_path / "c.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(InputError, match="not a readable checkpoint"):
        parameter_counts(tmp_path / "c.safetensors")


@pytest.mark.parametrize(("section", "key"), [("model", "block_mix"), ("preprocessing", "windows_hu")])
def test_a_description_that_lacks_something_is_refused(written: tuple[Path, Network], section: str, key: str) -> None:
    with pytest.raises(InputError, match=f"lacks '{key}'"):
        read_info(rewritten(written[0], lambda _, description: description[section].pop(key)))


@pytest.mark.parametrize("dtype", ["fp32", "int8"])
def test_weights_are_counted_by_part(tmp_path: Path, dtype: str) -> None:
    """The scales of int8 rows are no weights."""
    model = new_network(CONFIG)
    path = saved(tmp_path / "c.safetensors", model, dtype)
    parts = {"encoder": model.core.encoder, "decoder": model.core.decoder}
    parts |= {"completion": model.completion, "readout": model.readout}
    expected = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    assert parameter_counts(path) == expected
