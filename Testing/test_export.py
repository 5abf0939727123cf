"""The exported encoder: alone and in MONAI's networks it computes what the masked autoencoder's encoder computes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from export_factory import SIZE, TRAINING, smooth_image, states_of, write_lively_checkpoint
from safetensors.torch import load_file, save_file
from torch import nn

from MAESILLib.checkpoint import load_checkpoint
from MAESILLib.errors import InputError
from MAESILLib.export.description import read_encoder_info
from MAESILLib.export.encoder import load_encoder
from MAESILLib.export.layout import VitLayout, vit_layout
from MAESILLib.export.monai_nets import monai_unetr, monai_vit
from MAESILLib.export.write import export_encoder
from MAESILLib.files import sha256_of
from MAESILLib.resources import embedded_checkpoint
from MAESILLib.volume import hu_to_unit


@pytest.fixture(params=["random weights", "the embedded checkpoint"])
def source(request: pytest.FixtureRequest, lively: Path) -> Path:
    return lively if request.param == "random weights" else embedded_checkpoint()


def as_tokens(maps: torch.Tensor) -> torch.Tensor:
    return maps.flatten(2).transpose(1, 2)


def assert_same(found: torch.Tensor, expected: torch.Tensor, within: float = 1e-5) -> None:
    """Agree to ``within``, or that share of the largest value where it is above one; and say something at all."""
    assert found.shape == expected.shape
    assert expected.std() > 0.1
    assert expected.std(1).mean() > 0.05, "every token is the same"
    assert (found - expected).abs().max() <= within * max(1.0, float(expected.abs().max()))


class TestEncoder:
    """load_encoder."""

    def test_it_computes_what_the_autoencoder_computes(self, source: Path) -> None:
        image = smooth_image(SIZE, batch=2)
        *states, last = states_of(load_checkpoint(source)[0], image)
        encoder = load_encoder(source)
        with torch.no_grad():
            tokens, maps = encoder(image), encoder.feature_maps(image)
        assert_same(tokens, last, 1e-6)
        assert len(maps) == len(states)
        for found, expected in zip(maps, [*states[:-1], last], strict=True):
            assert found.shape == (2, encoder.width, 2, 4, 3)
            assert_same(as_tokens(found), expected, 1e-6)

    def test_the_exported_file_gives_the_same_tokens(self, source: Path, tmp_path: Path) -> None:
        export_encoder(source, "torch", tmp_path / "encoder.safetensors")
        image = smooth_image(SIZE)
        with torch.no_grad():
            assert torch.equal(load_encoder(tmp_path / "encoder.safetensors")(image), load_encoder(source)(image))

    def test_it_says_what_it_expects(self, lively: Path, tmp_path: Path) -> None:
        export_encoder(lively, "torch", tmp_path / "encoder.safetensors")
        for path in (lively, tmp_path / "encoder.safetensors"):
            encoder = load_encoder(path)
            assert (encoder.spacing_mm, encoder.window_hu, encoder.orientation) == (1.5, (-900.0, 700.0), "LPS")
            assert (encoder.patch_size, encoder.trained_size, encoder.width) == ((8, 8, 8), (48, 48, 48), 48)
            assert encoder.info.source == {"name": "lively.safetensors", "sha256": sha256_of(lively)}
            assert encoder.info.training == TRAINING

    @pytest.mark.parametrize("dtype", [np.int16, np.float32])
    def test_intensities_are_those_of_the_library(self, lively: Path, dtype: type) -> None:
        hu = np.arange(-1100, 1100, 37).astype(dtype).reshape(2, 3, 10)
        encoder = load_encoder(lively)
        expected = hu_to_unit(hu, (-900.0, 700.0))
        assert (expected.min(), expected.max()) == (0, 1)
        for given in (hu, torch.from_numpy(hu)):
            np.testing.assert_allclose(encoder.intensities(given).numpy(), expected, atol=1e-6)

    @pytest.mark.parametrize("shape", [(1, 1, 16, 16, 20), (1, 2, 16, 16, 16), (1, 16, 16, 16), (1, 1, 0, 16, 16)])
    def test_another_shape_is_refused(self, lively: Path, shape: tuple[int, ...]) -> None:
        for call in (load_encoder(lively), load_encoder(lively).feature_maps):
            with pytest.raises(InputError, match="the image has"):
                call(torch.zeros(shape))

    def test_it_trains(self, lively: Path) -> None:
        encoder = load_encoder(lively)
        encoder(smooth_image(SIZE)).square().mean().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())


class TestMonai:
    """monai_vit and monai_unetr."""

    def test_vit_computes_what_the_autoencoder_computes(self, source: Path, tmp_path: Path) -> None:
        image = smooth_image(SIZE, batch=2)
        *states, last = states_of(load_checkpoint(source)[0], image)
        export_encoder(source, "vit", tmp_path / "vit.safetensors", SIZE)
        for vit in (monai_vit(source, SIZE), monai_vit(tmp_path / "vit.safetensors")):
            with torch.no_grad():
                tokens, hidden = vit(image)
            assert_same(tokens, last)
            for found, expected in zip(hidden, states, strict=True):
                assert_same(found, expected)

    def test_unetr_computes_what_the_autoencoder_computes(self, tmp_path: Path) -> None:
        source, image = embedded_checkpoint(), smooth_image(SIZE)
        *states, last = states_of(load_checkpoint(source)[0], image)
        export_encoder(source, "unetr", tmp_path / "unetr.safetensors", SIZE)
        net = monai_unetr(tmp_path / "unetr.safetensors", 3, feature_size=4)
        with torch.no_grad():
            tokens, hidden = net.vit(image)
            out = net(image)
        assert_same(tokens, last)
        # MONAI's UNETR reads these three: after 3, 5 and 7 of 8 blocks
        assert len(hidden) == 12
        for number, block in ((3, 3), (6, 5), (9, 7)):
            assert_same(hidden[number], states[block - 1])
        assert out.shape == (1, 3, *SIZE)
        assert out.std() > 0

    @pytest.mark.filterwarnings("ignore:Mismatch dtype")
    def test_in_double_precision_both_agree_to_rounding(self, lively: Path) -> None:
        image = smooth_image(SIZE).double()
        with torch.no_grad():
            expected = load_encoder(lively).double()(image)
            found, _ = monai_vit(lively, SIZE).double()(image)
        assert (found - expected).abs().max() < 1e-6

    @pytest.mark.parametrize("undo", ["norms", "gains", "gelu", "centring", "positions", "queries"])
    def test_every_exchange_matters(self, lively: Path, undo: str) -> None:
        """Undone, each shows: the comparison above can fail."""
        vit, image = monai_vit(lively, SIZE), smooth_image(SIZE)
        embedding = vit.patch_embedding
        with torch.no_grad():
            expected, _ = vit(image)
            for block in vit.blocks:
                split = block.attn.input_rearrange
                if undo == "norms":
                    split.query_norm, split.key_norm = nn.Identity(), nn.Identity()
                if undo == "gains":
                    split.query_norm.weight.fill_(1)
                if undo == "gelu":
                    block.mlp.fn = nn.GELU()
                if undo == "queries":
                    block.attn.qkv.weight[:48] = block.attn.qkv.weight[48:96].clone()
            if undo == "centring":
                embedding.patch_embeddings.weight.mul_(0.5)
            if undo == "positions":
                embedding.position_embeddings.copy_(embedding.position_embeddings.flip(1))
            changed, _ = vit(image)
        assert (changed - expected).abs().max() > (1e-4 if undo == "gelu" else 1e-2)

    def test_patches_of_16_see_the_mean_of_finer_voxels(self, lively: Path, tmp_path: Path) -> None:
        size = (32, 64, 48)
        image = smooth_image(size)
        *states, last = states_of(load_checkpoint(lively)[0], F.avg_pool3d(image, 2))
        export_encoder(lively, "unetr", tmp_path / "unetr.safetensors", size, patch_size=16)
        assert read_encoder_info(tmp_path / "unetr.safetensors").preprocessing.spacing_mm == 0.75
        for net in (monai_unetr(lively, 2, size, 4, patch_size=16), monai_unetr(tmp_path / "unetr.safetensors", 2)):
            with torch.no_grad():
                tokens, hidden = net.vit(image)
            assert_same(tokens, last)
            assert_same(hidden[6], states[2])
        with torch.no_grad():
            assert net(image).shape == (1, 2, *size)

    def test_a_unetr_of_the_users_own_takes_the_vit(self, lively: Path) -> None:
        from monai.networks.nets import UNETR

        size, image = (16, 32, 16), smooth_image((16, 32, 16))
        torch.manual_seed(0)
        ours = monai_unetr(lively, 2, size, patch_size=16)
        own = UNETR(1, 2, size, hidden_size=48, num_heads=3, mlp_dim=96)
        own.vit = monai_vit(lively, size, patch_size=16, layers=12)
        own.load_state_dict(ours.state_dict())
        with torch.no_grad():
            assert torch.equal(own(image), ours(image))

    def test_without_pretraining_only_the_encoder_differs(self, lively: Path) -> None:
        nets = []
        for pretrained in (True, False):
            torch.manual_seed(3)
            nets.append(monai_unetr(lively, 2, SIZE, 4, pretrained=pretrained).state_dict())
        differ = {key for key in nets[0] if not torch.equal(nets[0][key], nets[1][key])}
        assert differ
        assert all(key.startswith("vit.") for key in differ)
        assert "vit.blocks.10.attn.qkv.weight" in differ
        assert "vit.patch_embedding.position_embeddings" not in differ

    @pytest.mark.parametrize(("net_of", "patch"), [(monai_vit, None), (monai_unetr, 8), (monai_unetr, 16)])
    def test_it_trains_and_its_state_comes_back(
        self, lively: Path, tmp_path: Path, net_of: Callable[..., nn.Module], patch: int | None
    ) -> None:
        size = (16, 32, 32)

        def build() -> nn.Module:
            return net_of(lively, size) if net_of is monai_vit else net_of(lively, 2, size, 4, patch_size=patch)

        def output(net: nn.Module) -> torch.Tensor:
            result = net(image)
            return result[0] if isinstance(result, tuple) else result

        net, image = build(), smooth_image(size)
        before = output(net).detach()
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        output(net).square().mean().backward()
        for name, parameter in net.named_parameters():
            is_fixed = name.endswith("position_embeddings")
            assert parameter.requires_grad is not is_fixed, name
            if not is_fixed and "norm_cross_attn" not in name:
                assert parameter.grad is not None, name
                assert parameter.grad.isfinite().all(), name
        for block in (m for m in net.modules() if type(m).__name__ == "QueryKeyNorm"):
            assert block.query_norm.weight.grad.abs().max() > 0
        optimizer.step()
        tuned = output(net).detach()
        assert (tuned - before).abs().max() > 1e-4
        save_file(net.state_dict(), tmp_path / "tuned.safetensors")
        again = build()
        again.load_state_dict(load_file(tmp_path / "tuned.safetensors"), strict=True)
        assert torch.equal(output(again).detach(), tuned)

    def test_monai_that_makes_unused_weights_takes_the_same_file(
        self, lively: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As older versions do, in every block."""
        from monai.networks import nets

        class Older(nets.ViT):
            def __init__(self, **arguments: object) -> None:
                super().__init__(**arguments)
                for block in self.blocks:
                    block.cross_attn = nn.Linear(3, 3)

        export_encoder(lively, "vit", tmp_path / "here.safetensors", SIZE)
        monkeypatch.setattr(nets, "ViT", Older)
        export_encoder(lively, "vit", tmp_path / "there.safetensors", SIZE)
        here, there = (load_file(tmp_path / f"{name}.safetensors") for name in ("here", "there"))
        assert here.keys() == there.keys()
        image = smooth_image(SIZE)
        with torch.no_grad():
            assert_same(monai_vit(tmp_path / "here.safetensors")(image)[0], load_encoder(lively)(image))


class TestLayout:
    """Where blocks stand, and which sizes there are."""

    @pytest.mark.parametrize(
        ("depth", "layers", "places"),
        [
            (8, 12, (0, 2, 3, 5, 6, 8, 9, 11)),
            (6, 12, (0, 2, 4, 6, 8, 10)),
            (2, 12, (2, 8)),
            (12, 12, tuple(range(12))),
            (8, 8, tuple(range(8))),
        ],
    )
    def test_places(self, lively: Path, depth: int, layers: int, places: tuple[int, ...]) -> None:
        model = dataclasses.replace(read_encoder_info(lively).model, encoder_depth=depth)
        assert VitLayout(model, (96, 96, 96), (8, 8, 8), layers).places == places

    def test_the_usual_size(self, lively: Path) -> None:
        assert vit_layout(read_encoder_info(embedded_checkpoint()), None, None, None).image_size == (96, 96, 96)
        assert vit_layout(read_encoder_info(lively), None, None, None).image_size == (48, 48, 48)
        assert vit_layout(read_encoder_info(lively), None, 16, None).image_size == (96, 96, 96)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"img_size": (16, 20, 16)}, r"\(16, 20, 16\) is no multiple of the patch"),
            ({"img_size": 0}, "no multiple"),
            ({"img_size": (16, 16)}, "2 sides"),
            ({"img_size": 48, "patch_size": 12}, "no multiple of the encoder's"),
            ({"img_size": 48, "layers": 4}, "5 blocks"),
        ],
    )
    def test_sizes_that_do_not_fit_are_refused(self, lively: Path, arguments: dict, message: str) -> None:
        with pytest.raises(InputError, match=message):
            monai_vit(lively, **arguments)

    def test_a_unetr_that_has_no_room_is_refused(self, tmp_path: Path) -> None:
        deep = write_lively_checkpoint(tmp_path / "deep.safetensors", encoder_depth=13)
        with pytest.raises(InputError, match="13 blocks, which 12 cannot hold"):
            monai_unetr(deep, 2, 32)
        flat = write_lively_checkpoint(tmp_path / "flat.safetensors", patch_size=(4, 8, 8))
        with pytest.raises(InputError, match="cannot climb"):
            monai_unetr(flat, 2, 32)
        with pytest.raises(InputError, match="starts at 16"):
            monai_unetr(embedded_checkpoint(), 2, (8, 16, 16))
