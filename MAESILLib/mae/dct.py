"""The cosine transform of a patch."""

from __future__ import annotations

import math

import torch


def dct_matrix(length: int) -> torch.Tensor:
    """Return the orthonormal DCT-II (Ahmed, Natarajan & Rao 1974), a row for each frequency, float64."""
    k = torch.arange(length, dtype=torch.float64)
    matrix = (2 / length) ** 0.5 * torch.cos(math.pi / length * k[:, None] * (k + 0.5))
    matrix[0] *= 0.5**0.5
    return matrix
