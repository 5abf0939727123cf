"""The convolutional branch, the linear code auto-encoding starts at."""

from __future__ import annotations

import pytest
import torch
from training_factory import awakened, tiny_config

from MAESILLib.cosines import cosines, start_at_cosines
from MAESILLib.local_branch import OverlappingHead, doubled, halved
from MAESILLib.masking import MaskSpec, draw_visible, generator_for, hidden_from_visible
from MAESILLib.model import MaskedAutoencoder, patchify
from MAESILLib.training.loss import masked_loss

CONFIG = tiny_config().model
GRID = (4, 4, 4)


def test_halving_gathers_neighbours_and_doubling_puts_them_back() -> None:
    image = torch.rand(2, 1, 8, 4, 6)
    cells = halved(image)
    assert cells.shape == (2, 8, 4, 2, 3)
    assert torch.equal(cells[:, :, 3, 1, 2], image[:, 0, 6:8, 2:4, 4:6].flatten(1))
    assert torch.equal(doubled(cells), image)


def test_hidden_tokens_are_the_sorted_complement_of_the_visible() -> None:
    for strategy in ("dual", "uniform", "none"):
        visible = draw_visible((4, 3, 5), MaskSpec(strategy), 3, generator_for(2))
        hidden = hidden_from_visible(visible, 60)
        for row, seen in zip(hidden.tolist(), visible.tolist(), strict=True):
            assert row == sorted(set(range(60)) - set(seen))


def test_the_cosines_are_orthonormal_and_rise_in_frequency() -> None:
    basis, squares = cosines((8, 4, 2))
    torch.testing.assert_close(basis @ basis.T, torch.eye(64, dtype=torch.float64))
    assert (basis[0] - basis[0, 0]).abs().max() < 1e-12
    assert (squares.diff() >= 0).all()
    # the lowest frequency is that of the longest axis, which changes slowest
    assert basis[1].view(8, 4, 2)[:, 0, 0].diff().sign().unique().numel() == 1


@pytest.mark.parametrize("width", [64, 100])
def test_as_many_cosines_as_voxels_lose_nothing(width: int) -> None:
    embedding, head = torch.nn.Linear(64, width), torch.nn.Linear(width, 64)
    torch.nn.init.zeros_(embedding.bias)
    start_at_cosines(embedding, head, (4, 4, 4))
    patches = torch.rand(10, 64)
    torch.testing.assert_close(head(embedding(2 * patches - 1)), patches, atol=1e-5, rtol=0)


def test_a_new_network_auto_encodes_what_is_smooth() -> None:
    torch.manual_seed(0)
    model = MaskedAutoencoder(CONFIG).eval()
    ramp = torch.linspace(0.2, 0.8, 32)
    image = (ramp[:, None, None] * ramp[:, None]).expand(1, 1, 32, 32, 32)
    everything = torch.arange(64)[None]
    with torch.no_grad():
        shown = model(image, everything, queried=everything).visible_patches
    assert (shown - patchify(image, (8, 8, 8))).square().mean() < 1e-4


def test_the_branch_sees_across_a_border_and_not_further_than_it_reaches() -> None:
    torch.manual_seed(0)
    model = awakened(MaskedAutoencoder(CONFIG).eval())
    branch, decoder = model.decoder.local_encoder, model.decoder.local_decoder
    assert branch is not None
    assert decoder is not None
    is_visible = torch.ones(1, 8, 4, 4, dtype=torch.bool)
    image = torch.rand(1, 1, 64, 32, 32)
    changed = image.clone()
    changed[:, :, 7] += 0.5
    with torch.no_grad():
        tokens = torch.zeros(1, 128, CONFIG.decoder_width)
        first, second = (decoder(tokens, (8, 4, 4), branch(x, is_visible)[0]) for x in (image, changed))
    moved = (first - second).abs().amax((0, 1, 3, 4))
    assert moved[8] > 0
    assert moved[48:].max() == 0


def test_every_parameter_has_a_gradient_whatever_is_hidden() -> None:
    """Replicas that exchange gradients wait for each other's."""
    for strategy in ("dual", "none"):
        model = MaskedAutoencoder(CONFIG).train()
        visible = draw_visible(GRID, MaskSpec(strategy), 1, generator_for(1))
        image = torch.rand(1, 1, 32, 32, 32)
        out = model(image, visible, queried=torch.arange(4)[None])
        masked_loss(out, image, None, (8, 8, 8), visible_weight=0.1, gradient_weight=0.1).total.backward()
        assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_the_windows_of_the_overlapping_head_add_up_to_one() -> None:
    head = OverlappingHead(3, (8, 4, 8))
    torch.nn.init.zeros_(head.windows.bias)
    torch.nn.init.ones_(head.windows.weight)
    with torch.no_grad():
        image = doubled(head(torch.full((1, 3, 4, 4, 3), 1 / 3)))
    assert image.shape == (1, 1, 32, 16, 24)
    inside = image[..., 2:-2, 2:-2, 2:-2]
    torch.testing.assert_close(inside, torch.ones_like(inside))


def test_one_token_fades_out_over_the_border_of_its_patch() -> None:
    head = OverlappingHead(1, (8, 8, 8))
    torch.nn.init.zeros_(head.windows.bias)
    torch.nn.init.ones_(head.windows.weight)
    tokens = torch.zeros(1, 1, 3, 3, 3)
    tokens[..., 1, 1, 1] = 1
    with torch.no_grad():
        line = doubled(head(tokens))[0, 0, :, 12, 12]
    assert (line > 0).nonzero().flatten().tolist() == list(range(6, 18))
    assert torch.equal(line[10:14], torch.ones(4))
    torch.testing.assert_close(line[6:10] + line[14:18], torch.ones(4))
