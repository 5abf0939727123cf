"""The network: token order, what hidden voxels may reach, positions, attention over the right tokens."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from training_factory import awakened

from MAESILLib.config import HIDING_NAMES, SOFT_TISSUE, WIDE, ModelConfig, Window
from MAESILLib.mae.blocks import Attention, attend, rotary_table
from MAESILLib.mae.completion import Conv3x3x3, doubled, halved
from MAESILLib.mae.harmonic import harmonic_fill
from MAESILLib.mae.loss import mean_of_samples, patch_error
from MAESILLib.mae.masking import MaskSpec, draw_visible, generator_for, hidden_from_visible, hidden_tokens
from MAESILLib.mae.model import (
    MaskedAutoencoder,
    patchify,
    sincos_table,
    spread,
    take_tokens,
    unpatchify,
    valid_voxels,
    windowed,
)
from MAESILLib.mae.network import Network

WINDOWS: tuple[Window, ...] = (WIDE, SOFT_TISSUE)
CONFIG = ModelConfig(
    superpatch_size=(32, 24, 16),
    encoder_width=48,
    encoder_depth=3,
    head_width=24,
    decoder_width=24,
    decoder_depth=2,
    completion_channels=(4, 8),
)
GRID = (4, 3, 2)
SHAPE = (32, 24, 16)
PATCH = CONFIG.patch_size


def network(**changes: Any) -> Network:
    """A network in which nothing is at zero, as after training."""
    torch.manual_seed(0)
    return awakened(Network(dataclasses.replace(CONFIG, **changes), WINDOWS).eval())


def new_core(**changes: Any) -> MaskedAutoencoder:
    """A core as training starts it."""
    torch.manual_seed(0)
    return MaskedAutoencoder(dataclasses.replace(CONFIG, **changes), len(WINDOWS)).eval()


def masks(strategy: str, batch: int = 1, seed: int = 3) -> torch.Tensor:
    return draw_visible(GRID, MaskSpec(strategy), batch, generator_for(seed))


def hidden_voxels(visible: torch.Tensor) -> torch.Tensor:
    return spread(hidden_tokens(visible, GRID), PATCH)


def fill_of(image: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    return harmonic_fill(image[:, :1], ~hidden_voxels(visible))


def hu_of(batch: int, seed: int = 0) -> torch.Tensor:
    """HU inside both windows for the most part: a change of any voxel changes both channels."""
    return torch.rand(batch, 1, *SHAPE, generator=torch.Generator().manual_seed(seed)) * 360 - 140


@torch.no_grad()
def outputs(model: Network, hu: torch.Tensor, visible: torch.Tensor) -> dict[str, torch.Tensor]:
    """All that the network makes of HU: the core's prediction, the completion, the read-out."""
    image = windowed(hu, WINDOWS)
    filled = fill_of(image, visible)
    hidden = hidden_from_visible(visible, math.prod(GRID))
    prediction, completion, readout = model(image, visible, hidden, filled)
    return {"prediction": prediction.patches, "completion": completion, "read-out": readout}


class TestPatches:
    def test_order_on_a_grid_that_is_not_a_cube(self) -> None:
        """Distinct patch ids in each of two channels, on a grid and a patch with no two sides alike."""
        tokens = torch.arange(48).view(1, 2, *GRID)
        image = tokens.repeat_interleave(8, 2).repeat_interleave(4, 3).repeat_interleave(2, 4).float()
        patches = patchify(image, (8, 4, 2))
        assert patches.shape == (1, 24, 128)
        first, second = patches.split(64, 2)
        assert (first == torch.arange(24)[None, :, None]).all(), "patches are not in row-major token order"
        assert (second == torch.arange(24, 48)[None, :, None]).all(), "channels are not slowest"
        assert torch.equal(unpatchify(patches, GRID, (8, 4, 2)), image)
        noise = torch.rand(2, 2, 32, 12, 4)
        assert torch.equal(unpatchify(patchify(noise, (8, 4, 2)), GRID, (8, 4, 2)), noise)

    def test_voxel_order_inside_a_patch(self) -> None:
        image = torch.arange(2 * 16 * 8 * 8).view(1, 2, 16, 8, 8).float()
        assert torch.equal(patchify(image, PATCH)[0, 1], image[0, :, 8:].flatten())

    def test_padding_is_counted_in_voxels(self) -> None:
        valid = valid_voxels(torch.tensor([[3, 2, 1], [4, 4, 4]]), torch.Size((4, 4, 4)))
        assert valid.flatten(1).sum(1).tolist() == [6, 64]
        assert valid[0, 0, 2, 1, 0]
        assert not valid[0, 0, 3].any()

    def test_windows(self) -> None:
        hu = torch.tensor([-1200.0, -1000, 0, 40, 240, 3000]).view(1, 1, 1, 1, 6)
        wide, soft = windowed(hu, WINDOWS)[0, :, 0, 0]
        torch.testing.assert_close(wide, torch.tensor([0, 0, 0.5, 0.52, 0.62, 1]))
        torch.testing.assert_close(soft, torch.tensor([0, 0, 0.4, 0.5, 1, 1]))


class TestNoLeak:
    """What is hidden reaches nothing, bit for bit."""

    @pytest.mark.parametrize("strategy", HIDING_NAMES)
    @pytest.mark.parametrize("changes", [{}, {"positions": "sincos", "decoder": "self", "block_mix": False}], ids=str)
    def test_hidden_voxels_reach_no_output(self, strategy: str, changes: dict[str, Any]) -> None:
        model = network(**changes)
        visible = masks(strategy, 2)
        hidden, hu = hidden_voxels(visible), hu_of(2)
        before, after = (outputs(model, torch.where(hidden, x, hu), visible) for x in (hu, hu_of(2, 1)))
        for name, value in before.items():
            assert torch.equal(value, after[name]), name
            assert value.std() > 0.01, f"{name} is constant, so this would prove nothing"

    def test_not_even_when_they_are_not_finite(self) -> None:
        model, visible = network(), masks("dual", 2)
        image = windowed(hu_of(2), WINDOWS)
        broken = torch.where(hidden_voxels(visible), torch.nan, image)
        with torch.no_grad():
            filled = fill_of(image, visible)
            first, second = (vars(model.reconstruct(x, visible, filled)) for x in (image, broken))
        for name, value in first.items():
            assert torch.equal(value, second[name]), name

    def test_visible_voxels_reach_every_output(self) -> None:
        model, visible = network(), masks("dual")
        hidden, hu = hidden_voxels(visible), hu_of(1)
        before, after = (outputs(model, torch.where(hidden, hu, x), visible) for x in (hu, hu_of(1, 1)))
        for name, value in before.items():
            assert (value - after[name]).abs().mean() > 0.01, name

    def test_samples_of_a_batch_do_not_meet(self) -> None:
        model, visible = network(), masks("dual", 3)
        hu = hu_of(3)
        together = outputs(model, hu, visible)
        alone = [outputs(model, hu[i : i + 1], visible[i : i + 1]) for i in range(3)]
        for name, value in together.items():
            torch.testing.assert_close(value, torch.cat([one[name] for one in alone]), atol=1e-5, rtol=1e-5)


def test_the_read_out_is_trained_on_what_is_visible() -> None:
    """Padding is no voxel."""
    valid = valid_voxels(torch.tensor([[32, 20, 16]]), torch.Size(SHAPE))
    visible, target = masks("dual"), windowed(hu_of(1, 5), WINDOWS).requires_grad_()
    error, weight = patch_error(torch.rand(1, visible.shape[1], 512), visible, target[:, :1], valid, PATCH)
    mean_of_samples(error.square(), weight).backward()
    assert torch.equal(target.grad[:, :1] != 0, ~hidden_voxels(visible) & valid)
    assert not target.grad[:, 1:].any()


class TestDecoder:
    @pytest.mark.parametrize("positions", ["rotary", "sincos"])
    def test_a_hidden_token_does_not_depend_on_which_others_are_decoded(self, positions: str) -> None:
        core, visible = network(positions=positions).core, masks("dual")
        image = windowed(hu_of(1), WINDOWS)
        with torch.no_grad():
            whole = core(image, visible)
            for count in (1, 5, 11):
                order = torch.randperm(whole.decoded.shape[1], generator=generator_for(count))
                chosen = order[:count].sort()[0]
                part = core(image, visible, whole.decoded[:, chosen])
                assert torch.equal(part.decoded, whole.decoded[:, chosen])
                torch.testing.assert_close(part.patches, whole.patches[:, chosen], atol=1e-5, rtol=0)
                torch.testing.assert_close(part.tokens, whole.tokens[:, chosen], atol=1e-5, rtol=0)

    @pytest.mark.parametrize(("decoder", "seen", "remembered"), [("self", 24, None), ("cross", 16, 8)])
    def test_what_attends_to_what(self, decoder: str, seen: int, remembered: int | None) -> None:
        """self: all tokens to all. cross: hidden ones alone, to the encoded visible ones."""
        core, calls = network(decoder=decoder).core, []
        for block in core.decoder.blocks:
            block.attn.register_forward_pre_hook(lambda _module, args: calls.append(args))
        with torch.no_grad():
            core(windowed(hu_of(1), WINDOWS), masks("dual"))
        assert [x.shape[1] for x, *_ in calls] == [seen] * CONFIG.decoder_depth
        for _, memory, *_ in calls:
            assert (None if memory is None else memory.shape[1]) == remembered
            assert memory is None or torch.equal(memory, calls[0][1])

    def test_self_attention_is_over_all_tokens(self) -> None:
        """A hidden token does depend on the other hidden ones, which cross-attention excludes."""
        core, visible = network(decoder="self").core, masks("dual")
        image = windowed(hu_of(1), WINDOWS)
        last: list[torch.Tensor] = []
        core.decoder.blocks[-1].register_forward_hook(lambda _module, _args, output: last.append(output))
        with torch.no_grad():
            whole = core(image, visible)
            part = core(image, visible, whole.decoded[:, :9])
            # visible ones first, then hidden ones
            assert torch.equal(whole.tokens, core.decoder.norm(last[0])[:, 8:])
        assert (part.patches - whole.patches[:, :9]).abs().max() > 1e-3

    def test_every_block_of_the_encoder_reaches_the_decoder_if_mixed(self) -> None:
        visible, image = masks("dual"), windowed(hu_of(1), WINDOWS)
        for mixed in (True, False):
            core = network(block_mix=mixed).core
            with torch.no_grad():
                encoded = core.encoder(image, visible)
            leaves = [x.clone().requires_grad_() for x in encoded]
            core.decode(leaves, visible, GRID).patches.square().mean().backward()
            assert [x.grad is not None and bool(x.grad.any()) for x in leaves] == [mixed, mixed, True]


class TestEncoder:
    def test_it_is_given_the_visible_patches_centred(self) -> None:
        core, visible, image = network().core, masks("uniform", 2), windowed(hu_of(2), WINDOWS)
        given: list[torch.Tensor] = []
        core.encoder.embed.register_forward_pre_hook(lambda _module, args: given.append(args[0]))
        with torch.no_grad():
            encoded = core.encoder(image, visible)
        for sample, tokens in enumerate(visible.tolist()):
            for n, token in enumerate(tokens):
                d, h, w = (8 * int(i) for i in np.unravel_index(token, GRID))
                patch = image[sample, :, d : d + 8, h : h + 8, w : w + 8].flatten() * 2 - 1
                assert torch.equal(given[0][sample, n], patch)
        assert [x.shape for x in encoded] == [(2, 8, 48)] * CONFIG.encoder_depth


class TestPositions:
    LARGE = (6, 5, 4)
    SHIFT = (2, 1, 2)

    def moved(self, index: torch.Tensor) -> torch.Tensor:
        """Tokens of GRID as tokens of LARGE, SHIFT away from its corner."""
        places = np.unravel_index(index.numpy(), GRID)
        return torch.from_numpy(
            np.ravel_multi_index(tuple(p + s for p, s in zip(places, self.SHIFT, strict=True)), self.LARGE)
        )

    def test_attention_depends_on_relative_positions_alone(self) -> None:
        attention = Attention(48, 24)
        x = torch.randn(1, 24, 48)
        index = torch.arange(24)[None]
        with torch.no_grad():
            here = attention(x, None, rotary_table(GRID, 24, x.device)[index])
            there = attention(x, None, rotary_table(self.LARGE, 24, x.device)[self.moved(index)])
            elsewhere = attention(x, None, rotary_table(GRID, 24, x.device)[index.flip(1).roll(5, 1)])
        torch.testing.assert_close(here, there, atol=1e-5, rtol=0)
        assert (here - elsewhere).abs().max() > 1e-3

    @pytest.mark.parametrize("decoder", ["cross", "self"])
    @pytest.mark.parametrize("positions", ["rotary", "sincos"])
    def test_a_shift_of_the_grid(self, positions: str, decoder: str) -> None:
        """The same tokens elsewhere in a larger image: all the same to rotary positions, an offset to fixed ones."""
        core, visible = network(positions=positions, decoder=decoder).core, masks("dual")
        image = windowed(hu_of(1), WINDOWS)
        d, h, w = (8 * s for s in self.SHIFT)
        large = torch.rand(1, 2, *(8 * n for n in self.LARGE))
        large[:, :, d : d + 32, h : h + 24, w : w + 16] = image
        hidden = hidden_from_visible(visible, math.prod(GRID))
        with torch.no_grad():
            here = core(image, visible, hidden).patches
            offset = core(image, visible, hidden, self.SHIFT).patches
            there = core(large, self.moved(visible), self.moved(hidden)).patches
        torch.testing.assert_close(offset, there, atol=1e-5, rtol=0)
        assert torch.equal(here, offset) == (positions == "rotary")

    def test_sincos_table(self) -> None:
        cpu = torch.device("cpu")
        table = sincos_table((3, 4, 5), 60, (0, 0, 0), cpu)
        assert table.shape == (60, 60)
        assert torch.pdist(table).min() > 0.1
        whole = sincos_table((5, 5, 5), 60, (0, 0, 0), cpu).view(5, 5, 5, 60)
        part = sincos_table((2, 3, 4), 60, (3, 2, 1), cpu).view(2, 3, 4, 60)
        assert torch.equal(part, whole[3:5, 2:5, 1:5])
        # d of token (2, 0, 0): sin(2), at the axis's first frequency 1
        assert table.view(3, 4, 5, 60)[2, 0, 0, 0] == pytest.approx(np.sin(2.0))

    @pytest.mark.parametrize("make", [rotary_table, lambda *a: sincos_table(*a[:2], (0, 1, 0), a[2])])
    def test_a_table_made_in_inference_serves_training(self, make: Any) -> None:
        with torch.inference_mode():
            table = make((2, 3, 7), 12, torch.device("cpu"))
        (table * torch.ones((), requires_grad=True)).sum().backward()


class TestStart:
    """What training starts from."""

    @pytest.mark.parametrize("changes", [{}, {"positions": "sincos", "decoder": "self", "block_mix": False}], ids=str)
    def test_the_core_starts_as_xavier(self, changes: dict[str, Any]) -> None:
        core = new_core(**changes)
        for module in core.modules():
            if isinstance(module, nn.Linear):
                bound = (6 / (module.in_features + module.out_features)) ** 0.5
                assert module.weight.abs().max() <= bound
                # uniform: its deviation is the bound over the root of 3
                assert float(module.weight.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.05)

    def test_nothing_of_the_core_starts_at_zero_but_what_may(self) -> None:
        core = new_core()
        zero = {name for name, p in core.named_parameters() if not p.any()}
        allowed = {name for name, _ in core.named_parameters() if name.endswith(".bias")}
        assert zero <= allowed | {"decoder.mask_token", "decoder.mix.weight"}
        gains = [p for name, p in core.named_parameters() if "norm" in name and name.endswith("weight")]
        assert all((gain == 1).all() for gain in gains)
        assert len(gains) == 3 * 3 + 2 * 3 + 2

    def test_the_completion_starts_as_the_fill(self) -> None:
        torch.manual_seed(0)
        model, visible = Network(CONFIG, WINDOWS).eval(), masks("dual", 2)
        image = windowed(hu_of(2), WINDOWS)
        filled = fill_of(image, visible)
        with torch.no_grad():
            completed, plain = (model.reconstruct(image, visible, filled, completed=c) for c in (True, False))
            core = model.core(image, visible).patches[..., :512]
        assert torch.equal(plain.hidden_patches, core)
        assert torch.equal(completed.hidden_patches, take_tokens(patchify(filled, PATCH), completed.hidden))


def test_attention_written_out_in_bf16_is_torchs() -> None:
    """Values and gradients; without gradients it is PyTorch's own."""
    generator = torch.Generator().manual_seed(0)
    query, key, value, given = (torch.randn(2, 3, n, 24, generator=generator) for n in (20, 30, 30, 20))
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        inputs = [x.to(dtype, copy=True).requires_grad_() for x in (query, key, value)]
        made = attend(*inputs)
        found.append([made, *torch.autograd.grad(made, inputs, given.to(dtype))])
    for exact, rounded in zip(*found, strict=True):
        assert rounded.dtype == torch.bfloat16
        torch.testing.assert_close(rounded.float(), exact, atol=0.03, rtol=0.03)
    halves = [x.bfloat16() for x in (query, key, value)]
    with torch.no_grad():
        assert torch.equal(attend(*halves), F.scaled_dot_product_attention(*halves))


class TestCompletion:
    def test_halving_gathers_neighbours_and_doubling_puts_them_back(self) -> None:
        image = torch.rand(2, 2, 8, 4, 6)
        cells = halved(image)
        assert cells.shape == (2, 16, 4, 2, 3)
        for channel in (0, 1):
            own = cells[:, 8 * channel : 8 * channel + 8]
            assert torch.equal(own[..., 3, 1, 2], image[:, channel, 6:8, 2:4, 4:6].flatten(1))
            assert torch.equal(doubled(own), image[:, channel : channel + 1])

    def test_the_convolution_is_torchs(self) -> None:
        layer, x = Conv3x3x3(3, 5), torch.randn(2, 3, 4, 6, 5)
        torch.testing.assert_close(layer(x), F.conv3d(x, layer.weight, layer.bias, padding=1), atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("channels", [(4,), (4, 8), (4, 6, 8)])
    def test_it_sees_across_a_border_and_not_further_than_it_reaches(self, channels: tuple[int, ...]) -> None:
        completion = network(completion_channels=channels).completion
        visible = torch.ones(1, 12, 3, 3, dtype=torch.bool)
        fill, picture = torch.rand(1, 1, 96, 24, 24), torch.rand(1, 2, 96, 24, 24)
        with torch.no_grad():
            first = completion(fill, picture, visible)
            for changed in (fill, picture[:, :1], picture[:, 1:]):
                before = changed[:, :, 7].clone()
                changed[:, :, 7] += 0.5
                moved = (first - completion(fill, picture, visible)).abs().amax((0, 1, 3, 4))
                changed[:, :, 7] = before
                assert moved[8] > 0
                assert moved[80:].max() == 0

    def test_a_training_step_completes_what_inference_does(self) -> None:
        """Of some images alone, and of all their hidden tokens, whichever the step decodes."""
        model, visible = network(), masks("dual", 3)
        image = windowed(hu_of(3), WINDOWS)
        filled = fill_of(image, visible)
        decoded = hidden_from_visible(visible, math.prod(GRID))[:, ::2]
        with torch.no_grad():
            _, completion, readout = model(image, visible, decoded, filled[::2], slice(0, 3, 2))
            expected = model.reconstruct(image, visible, filled)
        patches = take_tokens(patchify(completion, PATCH), expected.hidden[::2])
        torch.testing.assert_close(patches, expected.hidden_patches[::2], atol=1e-5, rtol=0)
        torch.testing.assert_close(readout, expected.visible_patches)

    def test_parts_that_are_not_there(self) -> None:
        torch.manual_seed(0)
        model, visible = awakened(Network(CONFIG, WINDOWS, ()).eval()), masks("dual")
        image = windowed(hu_of(1), WINDOWS)
        filled = fill_of(image, visible)
        with torch.no_grad():
            prediction, completion, readout = model(image, visible, hidden_from_visible(visible, 24), filled)
            out = model.reconstruct(image, visible, filled)
        assert completion is readout is out.visible_patches is None
        assert torch.equal(out.hidden_patches, prediction.patches[..., :512])

    @pytest.mark.parametrize("decoder", ["cross", "self"])
    def test_where_nothing_is_hidden(self, decoder: str) -> None:
        model, image = network(decoder=decoder), windowed(hu_of(2), WINDOWS)
        with torch.no_grad():
            out = model.reconstruct(image, torch.arange(24).expand(2, -1), None)
        assert out.hidden_patches.shape == (2, 0, 512)
        assert out.visible_patches.shape == (2, 24, 512)
        assert out.visible_patches.isfinite().all()
