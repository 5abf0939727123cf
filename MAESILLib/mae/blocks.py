"""The transformer block of Primus (Wald et al. 2025, arXiv 2503.01835), for self- and cross-attention.

Pre-norm, separate projections (biased for queries and values, not for keys), SwiGLU with an inner norm, and 3D
axial rotary positions (Su et al. 2021, arXiv 2104.09864). Parameters are named as in timm's ``EvaBlock``, so that
weights move between the two by renaming alone.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import nn

from MAESILLib.config import Triple

ROTARY_BASE = 100.0
"""On 16 tokens an axis, a table with the usual base of 10,000 is constant in 79 % of its entries."""
EPS = 1e-5


@lru_cache(maxsize=32)
def rotary_table(grid: Triple, head_width: int, device: torch.device) -> torch.Tensor:
    """Return the rotary positions of a token grid, (tokens, 2, head_width): cosines, then sines.

    A third of the pairs of channels for each axis, in the order D, H, W; pair i of an axis turns by
    ``index * ROTARY_BASE ** (-i / pairs)``. Both channels of a pair, which are neighbours, have the same entries.
    """
    pairs = head_width // 6
    # inference mode would leave its mark on a table that training uses later
    with torch.inference_mode(False):
        frequency = ROTARY_BASE ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
        index = torch.stack(torch.meshgrid(*(torch.arange(n) for n in grid), indexing="ij"), -1).view(-1, 3, 1)
        angle = (index * frequency).flatten(1).repeat_interleave(2, 1)
        return torch.stack([angle.cos(), angle.sin()], 1).float().to(device)


def rotate(x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Turn the pairs of channels of x (B, heads, N, head_width) by a table (B or 1, N, 2, head_width)."""
    cos, sin = table[:, None].to(x.dtype).unbind(3)
    turned = torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)
    return x * cos + turned * sin


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Return the scaled dot-product attention of tokens (B, heads, N, head_width)."""
    if torch.is_grad_enabled() and query.device.type == "cpu" and query.dtype == torch.bfloat16:
        # PyTorch's own backward pass takes four times as long there; without one its forward pass needs less memory
        return (query * query.shape[-1] ** -0.5 @ key.transpose(-1, -2)).softmax(-1) @ value
    return F.scaled_dot_product_attention(query, key, value)


class Attention(nn.Module):
    """Multi-head attention of tokens (B, N, width) to a memory (B, M, width), by default to themselves."""

    def __init__(self, width: int, head_width: int) -> None:
        super().__init__()
        self.head_width = head_width
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)

    def forward(
        self,
        x: torch.Tensor,
        memory: torch.Tensor | None = None,
        rotary: torch.Tensor | None = None,
        memory_rotary: torch.Tensor | None = None,
    ) -> torch.Tensor:
        memory, memory_rotary = (x, rotary) if memory is None else (memory, memory_rotary)
        query, key, value = (
            projected.unflatten(-1, (-1, self.head_width)).transpose(1, 2)
            for projected in (self.q_proj(x), self.k_proj(memory), self.v_proj(memory))
        )
        if rotary is not None and memory_rotary is not None:
            query, key = rotate(query, rotary), rotate(key, memory_rotary)
        return self.proj(attend(query, key, value).transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    """Gated MLP (Shazeer 2020, arXiv 2002.05202) with a norm before its last layer; 8/3 as wide inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = int(width * 8 / 3)
        self.fc1_g = nn.Linear(width, inner)
        self.fc1_x = nn.Linear(width, inner)
        self.norm = nn.LayerNorm(inner, eps=EPS)
        self.fc2 = nn.Linear(inner, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.norm(F.silu(self.fc1_g(x)) * self.fc1_x(x)))


class Block(nn.Module):
    """Pre-norm transformer block; a memory, if there is one, is attended to as it is."""

    def __init__(self, width: int, head_width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=EPS)
        self.attn = Attention(width, head_width)
        self.norm2 = nn.LayerNorm(width, eps=EPS)
        self.mlp = SwiGLU(width)

    def forward(
        self,
        x: torch.Tensor,
        memory: torch.Tensor | None = None,
        rotary: torch.Tensor | None = None,
        memory_rotary: torch.Tensor | None = None,
    ) -> torch.Tensor:
        x = x + self.attn(self.norm1(x), memory, rotary, memory_rotary)
        return x + self.mlp(self.norm2(x))
