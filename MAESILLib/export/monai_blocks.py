"""The encoder's weights and blocks in the terms of MONAI's ViT, exactly.

Three things differ. MONAI's attention does not normalise queries and keys; :class:`QueryKeyNorm` takes the
place of the module that splits them into heads. Its MLP computes the GELU by the error function, ours by tanh. And
it has no place for the centring 2x - 1 of intensities, which the convolution that embeds patches takes in:
W (2x - 1) + b = 2W x + (b - sum W).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from MAESILLib.export.layout import VitLayout
from MAESILLib.model import Attention, Block, Encoder, sincos_positions

CHANGES = (
    "blocks[i].attn.input_rearrange = MAESILLib.export.monai_blocks.QueryKeyNorm(num_heads, head_width)",
    "blocks[i].attn.use_flash_attention = True (same result, less memory)",
    "blocks[i].mlp.fn = torch.nn.GELU(approximate='tanh')",
    "patch_embedding.position_embeddings are fixed (requires_grad False)",
)
"""What :func:`adapt` changes, for the description of an exported file."""
UNUSED = ".cross_attn."
"""Part of the names of weights that older versions of MONAI make and never use; exports leave them out."""


class QueryKeyNorm(nn.Module):
    """Split queries, keys and values into heads and normalise queries and keys (RMSNorm over each head).

    Takes the place of ``SABlock.input_rearrange``.
    """

    def __init__(self, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_norm = nn.RMSNorm(head_width, eps=1e-6)
        self.key_norm = nn.RMSNorm(head_width, eps=1e-6)

    def forward(self, qkv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Turn (B, tokens, 3 * heads * head_width) into three (B, heads, tokens, head_width)."""
        query, key, value = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        # under autocast the norms compute in fp32
        return self.query_norm(query.float()).to(value.dtype), self.key_norm(key.float()).to(value.dtype), value


def adapt(vit: Any, layout: VitLayout) -> None:
    """Make a MONAI ViT of ``layout.arguments`` compute what the encoder computes, but for the weights.

    Its blocks are spread over ``layout.layers`` places; the others pass their input on.
    """
    for block in vit.blocks:
        block.attn.input_rearrange = QueryKeyNorm(block.attn.num_heads, layout.model.head_width)
        block.attn.use_flash_attention = True
        block.mlp.fn = nn.GELU(approximate="tanh")
    at_place = dict(zip(layout.places, vit.blocks, strict=True))
    vit.blocks = nn.ModuleList(at_place.get(i, nn.Identity()) for i in range(layout.layers))
    positions = sincos_positions(layout.grid, layout.model.encoder_width)[None]
    vit.patch_embedding.position_embeddings = nn.Parameter(positions, requires_grad=False)


@torch.no_grad()
def vit_weights(encoder: Encoder, layout: VitLayout) -> dict[str, torch.Tensor]:
    """Return the encoder's weights under the names of an adapted ViT."""
    weights = {
        "patch_embedding.position_embeddings": sincos_positions(layout.grid, encoder.width)[None],
        **_patch_embedding(encoder, layout),
        **_named("norm", encoder.norm),
    }
    for place, block in zip(layout.places, encoder.blocks, strict=True):
        assert isinstance(block, Block)
        name = f"blocks.{place}"
        weights |= _named(f"{name}.norm1", block.attention_norm) | _named(f"{name}.norm2", block.mlp_norm)
        weights |= _named(f"{name}.mlp.linear1", block.mlp[0]) | _named(f"{name}.mlp.linear2", block.mlp[2])
        weights |= _attention(f"{name}.attn", block.attention)
        # MONAI makes this norm in every block and uses it in those with cross-attention
        weights |= _named(f"{name}.norm_cross_attn", nn.LayerNorm(encoder.width))
    return weights


def _patch_embedding(encoder: Encoder, layout: VitLayout) -> dict[str, torch.Tensor]:
    linear, factor = encoder.patch_embedding, layout.factor
    kernel = linear.weight.reshape(-1, 1, *layout.model.patch_size)
    bias = linear.bias - kernel.double().sum((1, 2, 3, 4)).float()
    for axis in (2, 3, 4):
        # each voxel of the encoder is the mean of factor^3 finer ones
        kernel = kernel.repeat_interleave(factor, axis) / factor
    return {
        "patch_embedding.patch_embeddings.weight": 2 * kernel,
        "patch_embedding.patch_embeddings.bias": bias,
    }


def _attention(name: str, attention: Attention) -> dict[str, torch.Tensor]:
    query, key_value = attention.query, attention.key_value
    return {
        f"{name}.qkv.weight": torch.cat([query.weight, key_value.weight]),
        f"{name}.qkv.bias": torch.cat([query.bias, key_value.bias]),
        **_named(f"{name}.out_proj", attention.out),
        **_named(f"{name}.input_rearrange.query_norm", attention.query_norm),
        **_named(f"{name}.input_rearrange.key_norm", attention.key_norm),
    }


def _named(name: str, module: nn.Module) -> dict[str, torch.Tensor]:
    return {f"{name}.{key}": value.detach() for key, value in module.state_dict().items()}
