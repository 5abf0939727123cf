"""Block, rotary table and encoder against Primus on the same weights."""

from types import ModuleType
from typing import Any

import pytest
import torch
from export_factory import make_lively
from torch import nn
from torchvision_cpu import PRIMUS, imported

from MAESILLib.config import ModelConfig
from MAESILLib.export.nnunet import primus_weights
from MAESILLib.mae.blocks import Block, rotary_table
from MAESILLib.mae.model import Encoder, take_tokens

CPU = torch.device("cpu")
SHAPE, GRID = (16, 40, 24), (2, 5, 3)
CONFIG = ModelConfig(superpatch_size=(48, 48, 48), encoder_width=144, encoder_depth=3, head_width=48)
WITHIN = 1e-5


@pytest.fixture(scope="module")
def primus() -> ModuleType:
    return imported(PRIMUS)


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.shape == expected.shape
    assert expected.std(1).mean() > 0.1, "every token is the same"
    difference = float((found - expected).abs().max())
    print(f"{found.dtype}: largest difference {difference:.1e} of values up to {float(expected.abs().max()):.1f}")
    assert difference <= WITHIN


def primus_of(primus: ModuleType, encoder: Encoder) -> Any:
    """Return Primus with an encoder's weights; random ones in its decoder."""
    config = encoder.config
    net = primus.Primus(
        2,
        config.encoder_width,
        config.patch_size,
        3,
        config.encoder_depth,
        config.encoder_width // config.head_width,
        SHAPE,
        use_abs_pos_embed=False,
        init_values=None,
        scale_attn_inner=False,
        rope_kwargs={"temperature": 100.0},
    )
    missing, unexpected = net.load_state_dict(primus_weights(encoder), strict=False)
    assert not unexpected
    assert all(name.startswith("up_projection.") or name == "mask_token" for name in missing)
    return net.eval()


def image_of(batch: int) -> torch.Tensor:
    return torch.rand(batch, 2, *SHAPE, generator=torch.Generator().manual_seed(2))


def embedded(net: Any, image: torch.Tensor) -> torch.Tensor:
    """Return the tokens (B, tokens, width) of Primus before its blocks; it does not centre intensities itself."""
    tokens: torch.Tensor = net.down_projection(image * 2 - 1)
    return tokens.flatten(2).transpose(1, 2)


@pytest.mark.parametrize(("grid", "head_width"), [(GRID, 48), ((16, 16, 16), 48), ((7, 1, 3), 66)])
def test_rotary_table(primus: ModuleType, grid: tuple[int, int, int], head_width: int) -> None:
    rope = primus.Primus(
        1, head_width, (8, 8, 8), 2, 1, 1, tuple(8 * n for n in grid), rope_kwargs={"temperature": 100.0}
    ).eva.rope
    sines, cosines = rope.get_embed().chunk(2, -1)
    ours = rotary_table(grid, head_width, CPU)
    assert ours.shape == (len(sines), 2, head_width)
    assert (ours - torch.stack([cosines, sines], 1)).abs().max() <= WITHIN


@pytest.mark.parametrize("head_width", [48, 66])
def test_block(primus: ModuleType, head_width: int) -> None:
    width = 2 * head_width
    theirs = primus.Primus(
        *(1, width, (8, 8, 8), 2, 1, 2, SHAPE), scale_attn_inner=False, rope_kwargs={"temperature": 100.0}
    ).eva
    ours = make_lively(Block(width, head_width))
    theirs.blocks[0].load_state_dict(ours.state_dict(), strict=True)
    x = torch.randn(3, 30, width, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = theirs.blocks[0].eval()(x, rope=theirs.rope.get_embed())
        assert_same(ours(x, rotary=rotary_table(GRID, head_width, CPU)[None]), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_encoder(primus: ModuleType, dtype: torch.dtype) -> None:
    """After each block and the last norm, on a grid whose sides differ."""
    encoder = make_lively(Encoder(CONFIG, 2))
    net, encoder, image = primus_of(primus, encoder).to(dtype), encoder.to(dtype), image_of(2).to(dtype)
    after: list[torch.Tensor] = []
    for block in net.eva.blocks:
        block.register_forward_hook(lambda _module, _inputs, output: after.append(output))
    with torch.no_grad():
        last, _ = net.eva(embedded(net, image))
        ours = encoder(image, torch.arange(30).expand(2, -1))
    assert len(ours) == CONFIG.encoder_depth
    for found, expected in zip(ours, [*after[:-1], last], strict=True):
        assert_same(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_visible_tokens(primus: ModuleType, dtype: torch.dtype) -> None:
    """Primus's own way to drop tokens, with given instead of random ones; it takes one image at a time."""

    class Keep(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return take_tokens(x, visible), visible

    visible = torch.tensor([[0, 3, 4, 11, 12, 17, 22, 28, 29]])
    encoder = make_lively(Encoder(CONFIG, 2))
    net, encoder, image = primus_of(primus, encoder).to(dtype), encoder.to(dtype), image_of(1).to(dtype)
    net.eva.patch_drop = Keep()
    with torch.no_grad():
        expected, kept = net.eva(embedded(net, image))
        assert torch.equal(kept, visible)
        assert_same(encoder(image, visible)[-1], expected)
