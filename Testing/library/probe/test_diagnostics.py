"""What is logged of the encoder beside the loss."""

from __future__ import annotations

import pytest
import torch

from MAESILLib.config import ModelConfig
from MAESILLib.mae.model import Encoder
from MAESILLib.training.diagnostics import attention_shares, patch_r2

SHAPE = (1, 2, 32, 40, 48)


def encoder_of(**values: int) -> Encoder:
    torch.manual_seed(0)
    shape = {"encoder_width": 48, "encoder_depth": 3, "head_width": 24} | values
    return Encoder(ModelConfig(**shape), 2).eval()  # type: ignore[arg-type]


def image_of(seed: int = 0) -> torch.Tensor:
    return torch.rand(SHAPE, generator=torch.Generator().manual_seed(seed))


def test_attention_shares_are_those_of_each_block_by_hand() -> None:
    encoder, image = encoder_of(), image_of()
    shares = attention_shares(encoder, image)
    block = encoder.blocks[1]
    with torch.no_grad():
        outputs = encoder(image)
        from MAESILLib.mae.blocks import rotary_table

        rotary = rotary_table((4, 5, 6), 24, torch.device("cpu"))[None]
        added = block.attn(block.norm1(outputs[0]), rotary=rotary)  # type: ignore[operator,union-attr]
    assert len(shares) == 3
    assert shares[1] == pytest.approx(float((added.norm(dim=-1) / outputs[0].norm(dim=-1)).mean()), rel=1e-4)


def test_a_block_whose_attention_adds_nothing_has_no_share() -> None:
    encoder = encoder_of()
    with torch.no_grad():
        for parameter in encoder.blocks[2].attn.proj.parameters():  # type: ignore[union-attr]
            parameter.zero_()
    shares = attention_shares(encoder, image_of())
    assert shares[2] == 0
    assert min(shares[:2]) > 0.01
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in encoder.modules())


def test_tokens_that_are_patches_tell_all_of_them_and_constant_tokens_nothing() -> None:
    # 1,536 tokens, of 8 colors each: fewer dimensions than tokens that fit
    colors = torch.rand(1, 2, 8, 12, 16, generator=torch.Generator().manual_seed(1))
    image = colors.repeat_interleave(8, 2).repeat_interleave(8, 3).repeat_interleave(8, 4)
    valid = torch.ones(1, 1, *image.shape[2:], dtype=torch.bool)
    encoder = encoder_of()
    assert patch_r2(encoder, image, valid) > 0.95
    with torch.no_grad():
        encoder.norm.weight.zero_()
    assert patch_r2(encoder, image, valid) == pytest.approx(0, abs=0.02)


def test_padding_does_not_count() -> None:
    encoder, image = encoder_of(), image_of()
    valid = torch.zeros(1, 1, *SHAPE[2:], dtype=torch.bool)
    valid[..., :40] = True
    # attention sees the padding, so a network without it is needed
    with torch.no_grad():
        for block in encoder.blocks:
            for parameter in block.attn.proj.parameters():  # type: ignore[union-attr]
                parameter.zero_()
    other = image.clone()
    other[..., 40:] = 0
    assert patch_r2(encoder, image, valid) == pytest.approx(patch_r2(encoder, other, valid), abs=1e-9)
