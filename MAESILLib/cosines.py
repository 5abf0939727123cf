"""The lowest cosines of a patch: where the embedding and its inverse start.

CT patches have nearly all of their energy in low frequencies: their 3D cosine transform (DCT-II; Ahmed,
Natarajan & Rao 1974), of which the lowest coefficients are kept, is close to the best linear code there is.
Learning it from random weights takes an auto-encoder most of its training.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from MAESILLib.config import Triple

GAIN = 2.0
"""Of the lowest coefficient; with it an embedded patch is about as large as a position."""
SLOPE = 1.5
"""The coefficients of a CT fall about with the frequency to this power, which the embedding evens out."""


def cosines(patch_size: Triple) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the orthonormal DCT-II basis of a patch, lowest frequencies first.

    Returns:
        basis (P, P), a row for each coefficient over the voxels in row-major order, and the square of each
        coefficient's frequency (P,), in half periods per 8 voxels; both float64.
    """
    axes, squares = [], torch.zeros((), dtype=torch.float64)
    for n in patch_size:
        k = torch.arange(n, dtype=torch.float64)
        axis = (2 / n) ** 0.5 * torch.cos(math.pi / n * k[:, None] * (k + 0.5))
        axis[0] *= 0.5**0.5
        axes.append(axis)
        squares = squares[..., None] + (k * 8 / n) ** 2
    voxels = math.prod(patch_size)
    basis = torch.einsum("ad,bh,cw->abcdhw", *axes).reshape(voxels, voxels)
    order = squares.flatten().argsort(stable=True)
    return basis[order], squares.flatten()[order]


@torch.no_grad()
def start_at_cosines(embedding: nn.Linear, head: nn.Linear, patch_size: Triple) -> None:
    """Let ``embedding`` take the lowest cosines of a patch 2x - 1, and ``head`` make x of them again.

    Where the embedding is wider than a patch, the rest of it stays as it is, and the head does not read it.
    """
    basis, squares = cosines(patch_size)
    count = min(len(basis), embedding.out_features)
    gain = GAIN * (1 + squares[:count, None]) ** (SLOPE / 2)
    embedding.weight[:count] = (basis[:count] * gain).to(embedding.weight)
    nn.init.zeros_(head.weight)
    head.weight[:, :count] = (basis[:count] / gain).T.to(head.weight) / 2
    nn.init.constant_(head.bias, 0.5)
