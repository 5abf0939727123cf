"""The leak-free prior: a smooth guess of the hidden voxels from the visible voxels alone.

The network predicts the residual over this guess, so its capacity goes into what interpolation cannot
know. The guess approaches the harmonic fill (Laplace's equation in the hidden voxels, visible ones as
boundary values) by a cascade of grids: the coarsest is solved first, each finer one starts from the
enlarged coarser one, and on each a few Jacobi sweeps, accelerated by Chebyshev's semi-iteration
(Golub & Varga 1961), smooth the hidden cells. Everything is linear in the visible voxels, local, and
without data-dependent steps: a sample's prior does not depend on its batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F

from MAESILLib.stopping import NEVER, StopRequest

Relax = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Sweeps:
    """How often each grid is smoothed, from the finest to the coarsest, and Jacobi's assumed spectral radius."""

    counts: tuple[int, ...]
    radii: tuple[float, ...]


QUICK = Sweeps((6, 12, 10, 10), (0.98, 0.96, 0.9, 0.8))
"""For training: with patches of 8^3 within .3 dB of the converged fill at a tenth of its cost."""
THOROUGH = Sweeps((24, 24, 16, 16), (0.99, 0.98, 0.95, 0.9))
"""For reconstruction: all but converged."""


def smooth_fill(
    image: torch.Tensor,
    known: torch.Tensor,
    patch_size: tuple[int, int, int],
    sweeps: Sweeps = QUICK,
    stop: StopRequest = NEVER,
    relax: Relax | None = None,
) -> torch.Tensor:
    """Fill the unknown voxels of ``image`` smoothly from its known ones.

    Args:
        image: (B, 1, D, H, W) intensities; unknown voxels are not read.
        known: (B, 1, D, H, W) bool; constant within patches, but for padding.
        patch_size: voxels of a patch (D, H, W); decides how many coarser grids there are.
        relax: does one sweep; :func:`relaxed`, or that compiled.

    Returns:
        (B, 1, D, H, W) float32: ``image`` where known, the fill elsewhere; 0.5 where nothing is known.

    Raises:
        CancelledError: a stop was asked for.
    """
    weight = known.float()
    # where, not a product: an unknown NaN or infinity must not get through either
    relax = relaxed if relax is None else relax
    grids = [(torch.where(known, image.float(), 0.0), weight)]
    for pool in _poolings(patch_size):
        value, weight = grids[-1]
        grids.append((F.avg_pool3d(value, pool), F.avg_pool3d(weight, pool)))
    value, weight = grids[-1]
    axes = (1, 2, 3, 4)
    known_share = weight.sum(axes, keepdim=True)
    mean = value.sum(axes, keepdim=True) / known_share.clamp_min(1e-6)
    filled = torch.where(known_share > 0, mean, 0.5).expand_as(value)
    for level in range(len(grids) - 1, -1, -1):
        value, weight = grids[level]
        if filled.shape != value.shape:
            filled = F.interpolate(filled, size=value.shape[2:], mode="trilinear")
        unknown = weight == 0
        means = value if level == 0 else value / weight.clamp_min(1e-6)
        filled = torch.where(unknown, filled, means)
        row = min(level, len(sweeps.counts) - 1)
        filled = _sweep(filled, unknown.float(), sweeps.counts[row], sweeps.radii[row], stop, relax)
    return filled


def _poolings(patch_size: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    """Halve each axis as often as whole patches allow."""
    sides, poolings = list(patch_size), []
    while any(side % 2 == 0 for side in sides):
        pool = [2 if side % 2 == 0 else 1 for side in sides]
        sides = [side // p for side, p in zip(sides, pool, strict=True)]
        poolings.append((pool[0], pool[1], pool[2]))
    return poolings


def _sweep(
    x: torch.Tensor, unknown: torch.Tensor, sweeps: int, radius: float, stop: StopRequest, relax: Relax
) -> torch.Tensor:
    """Relax the unknown cells towards the mean of their six neighbours; no flux through the border."""
    previous = x
    for omega in _omegas(sweeps, radius, x.device):
        stop.check()
        previous, x = x, relax(x, previous, unknown, omega)
    return x


@lru_cache(maxsize=64)
def _omegas(sweeps: int, radius: float, device: torch.device) -> tuple[torch.Tensor, ...]:
    """Return Chebyshev's factors, on the device: a number would be compiled into what uses it."""
    factors = [1.0]
    for sweep in range(1, sweeps):
        factors.append(1 / (1 - radius**2 / 2) if sweep == 1 else 1 / (1 - radius**2 * factors[-1] / 4))
    with torch.inference_mode(False):
        return torch.tensor(factors, dtype=torch.float32, device=device).unbind()


def relaxed(x: torch.Tensor, previous: torch.Tensor, unknown: torch.Tensor, omega: torch.Tensor) -> torch.Tensor:
    """Do one sweep: x and the sweep before it, unknown (1 or 0), all (B, 1, D, H, W), and the factor omega ()."""
    # lerp passes known cells on exactly, and over memory once
    towards_mean = torch.lerp(x, _neighbour_sum(x).mul_(1 / 6), unknown)
    return torch.lerp(previous, towards_mean, omega)


def _neighbour_sum(x: torch.Tensor) -> torch.Tensor:
    p = F.pad(x, (1,) * 6, mode="replicate")
    total = p[..., 2:, 1:-1, 1:-1] + p[..., :-2, 1:-1, 1:-1]
    total += p[..., 1:-1, 2:, 1:-1]
    total += p[..., 1:-1, :-2, 1:-1]
    total += p[..., 1:-1, 1:-1, 2:]
    total += p[..., 1:-1, 1:-1, :-2]
    return total
