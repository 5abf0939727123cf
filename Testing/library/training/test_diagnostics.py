"""What is logged of the encoder beside the loss."""

import pytest
import torch

from MAESILLib.config import ModelConfig
from MAESILLib.mae.blocks import rotary_table
from MAESILLib.mae.model import Encoder
from MAESILLib.training.validation import attention_shares, patch_r2

IMAGE = torch.rand((1, 2, 32, 40, 48), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder(ModelConfig(encoder_width=48, encoder_depth=3, head_width=24), 2).eval()


def silence(block: torch.nn.Module) -> None:
    """Let a block's attention add nothing."""
    for parameter in block.attn.proj.parameters():
        torch.nn.init.zeros_(parameter)


def test_attention_shares_are_those_of_each_block_by_hand(encoder: Encoder) -> None:
    shares = attention_shares(encoder, IMAGE)
    block = encoder.blocks[1]
    with torch.no_grad():
        outputs = encoder(IMAGE)
        rotary = rotary_table((4, 5, 6), 24, torch.device("cpu"))[None]
        added = block.attn(block.norm1(outputs[0]), rotary=rotary)
    assert len(shares) == 3
    assert shares[1] == pytest.approx(float((added.norm(dim=-1) / outputs[0].norm(dim=-1)).mean()), rel=1e-4)
    silence(encoder.blocks[2])
    shares = attention_shares(encoder, IMAGE)
    assert shares[2] == 0
    assert min(shares[:2]) > 0.01
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in encoder.modules())


def test_tokens_that_are_patches_tell_all_of_them_and_constant_tokens_nothing(encoder: Encoder) -> None:
    # 1,536 tokens, of 8 colors each: fewer dimensions than tokens that fit
    colors = torch.rand(1, 2, 8, 12, 16, generator=torch.Generator().manual_seed(1))
    image = colors.repeat_interleave(8, 2).repeat_interleave(8, 3).repeat_interleave(8, 4)
    valid = torch.ones(1, 1, *image.shape[2:], dtype=torch.bool)
    assert patch_r2(encoder, image, valid) > 0.95
    torch.nn.init.zeros_(encoder.norm.weight)
    assert patch_r2(encoder, image, valid) == pytest.approx(0, abs=0.02)


def test_padding_does_not_count(encoder: Encoder) -> None:
    valid = torch.zeros(1, 1, *IMAGE.shape[2:], dtype=torch.bool)
    valid[..., :40] = True
    # attention sees the padding, so a network without it is needed
    for block in encoder.blocks:
        silence(block)
    other = IMAGE * valid
    assert patch_r2(encoder, IMAGE, valid) == pytest.approx(patch_r2(encoder, other, valid), abs=1e-9)
