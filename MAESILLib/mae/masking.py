"""The dual mask and its alternatives: which tokens of a superpatch the encoder may see.

Tokens lie on a grid (D, H, W), D along the body axis, and are numbered in row-major order. A mask is
given by the *sorted* indices of the visible tokens; every sample of a batch has the same number of
them, so a batch is one rectangular tensor. Masks are always drawn on the CPU: one seed gives one mask
on every device.

Strategies (``plane_ratio`` p and ``axis_ratio`` a are shares that are hidden):

* ``dual``: keep ``round(H*W*(1-p))`` in-plane positions, the same at every depth (plane step); of these
  keep ``round(n_plane*(1-a))`` at each depth independently (axis step).
* ``uniform``: as many visible tokens as ``dual``, anywhere.
* ``product``: whole slices x whole columns, which imitates missing slices.
* ``tube``: the same in-plane positions at every depth, about as many as ``dual`` keeps.
* ``group``: like ``uniform``, but cubes of 2x2x2 tokens are hidden or visible together.
* ``block``: the same with cubes of 4x4x4 tokens.
* ``none``: everything is visible (auto-encoding).

The cubes of a grid that they do not divide are cut at its far faces; one cube is partly visible where
whole ones do not give the number of visible tokens.
"""

import hashlib
import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from MAESILLib.mae.mask_spec import Grid, MaskSpec, kept_count, visible_count
from MAESILLib.runtime.errors import InputError


def generator_for(seed: int, *labels: object) -> torch.Generator:
    """Return a CPU generator whose state depends on ``seed`` and ``labels`` and on nothing else."""
    digest = hashlib.blake2b(repr((int(seed), *map(str, labels))).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def draw_visible(grid: Grid, spec: MaskSpec, batch: int, generator: torch.Generator) -> torch.Tensor:
    """Draw one mask for each sample of a batch.

    Returns:
        (batch, n_visible) int64, each row sorted in ascending order.
    """
    unused = np.zeros(math.prod(grid), np.int64)
    masks = [STRATEGIES[spec.strategy](grid, spec, unused, generator) for _ in range(batch)]
    return torch.from_numpy(np.sort(masks))


def complete_cover(grid: Grid, spec: MaskSpec, generator: torch.Generator) -> torch.Tensor:
    """Draw the masks of a complete cover: every token is hidden in at least one of them.

    Each mask is drawn like any other of its strategy, but prefers the tokens that were visible least
    often so far. Where at least half of the tokens is hidden (of the plane or of the axis, for the
    structured strategies), the visible sets are therefore disjoint and two masks suffice.

    Returns:
        (n_masks, n_visible) int64, rows sorted.

    Raises:
        InputError: the mask hides nothing, so nothing can be covered.
        RuntimeError: a strategy did not hide what was visible most often; a bug, which would else never end.
    """
    tokens = math.prod(grid)
    if visible_count(grid, spec) == tokens:
        raise InputError(
            f"mask '{spec.strategy}' hides no token of a {grid} grid, so no complete cover exists",
            "choose larger ratios, or coverage 'single'",
        )
    uses = np.zeros(tokens, np.int64)
    masks: list[np.ndarray] = []
    while len(masks) < tokens:
        masks.append(STRATEGIES[spec.strategy](grid, spec, uses, generator))
        uses[masks[-1]] += 1
        if uses.max() < len(masks):
            return torch.from_numpy(np.sort(masks))
    raise RuntimeError(f"{tokens} masks by {spec} leave a token of a {grid} grid that none of them hides")


def hidden_from_visible(visible: torch.Tensor, tokens: int) -> torch.Tensor:
    """Return the complement of ``visible`` (B, N): sorted hidden indices (B, tokens - N)."""
    is_hidden = hidden_tokens(visible, (tokens, 1, 1)).flatten(1)
    # unlike nonzero this has a fixed shape, so no device has to report back how many there are
    return is_hidden.byte().argsort(dim=1, descending=True, stable=True)[:, : tokens - visible.shape[1]]


def hidden_tokens(visible: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Return a bool tensor (B, D, H, W) of the token grid, True where the token is hidden."""
    is_hidden = torch.ones(len(visible), math.prod(grid), dtype=torch.bool, device=visible.device)
    return is_hidden.scatter_(1, visible, False).view(-1, *grid)


def _least_used(uses: np.ndarray, count: int, generator: torch.Generator) -> np.ndarray:
    """Return ``count`` places of the last axis of ``uses``, integers: the lowest, at random among equals."""
    keys = uses + torch.rand(uses.shape, dtype=torch.float64, generator=generator).numpy()
    return keys.argpartition(count - 1)[..., :count]


def _dual(grid: Grid, spec: MaskSpec, uses: np.ndarray, generator: torch.Generator) -> np.ndarray:
    by_depth = uses.reshape(grid[0], -1)
    depth, plane = by_depth.shape
    kept = _least_used(by_depth.sum(0), kept_count(plane, spec.plane_ratio), generator)
    chosen = _least_used(by_depth[:, kept], kept_count(len(kept), spec.axis_ratio), generator)
    return (np.arange(depth)[:, None] * plane + kept[chosen]).reshape(-1)


def _uniform(grid: Grid, spec: MaskSpec, uses: np.ndarray, generator: torch.Generator) -> np.ndarray:
    return _least_used(uses, visible_count(grid, spec), generator)


def _product(grid: Grid, spec: MaskSpec, uses: np.ndarray, generator: torch.Generator) -> np.ndarray:
    by_depth = uses.reshape(grid[0], -1)
    depth, plane = by_depth.shape
    columns = _least_used(by_depth.sum(0), kept_count(plane, spec.plane_ratio), generator)
    slices = _least_used(by_depth.sum(1), kept_count(depth, spec.axis_ratio), generator)
    return (slices[:, None] * plane + columns).reshape(-1)


def _tube(grid: Grid, spec: MaskSpec, uses: np.ndarray, generator: torch.Generator) -> np.ndarray:
    by_depth = uses.reshape(grid[0], -1)
    depth, plane = by_depth.shape
    columns = _least_used(by_depth.sum(0), visible_count(grid, spec) // depth, generator)
    return (np.arange(depth)[:, None] * plane + columns).reshape(-1)


def _cubes(side: int, grid: Grid, spec: MaskSpec, uses: np.ndarray, generator: torch.Generator) -> np.ndarray:
    """Take whole cubes of ``side`` tokens in random order; of the last one, as many tokens as are missing."""
    places = np.indices(grid).reshape(3, -1) // side
    cube = np.ravel_multi_index(tuple(places), tuple(places.max(1) + 1))
    mean = np.bincount(cube, uses) / np.bincount(cube)
    rank = np.lexsort((torch.rand(len(mean), generator=generator).numpy(), mean)).argsort()
    return _least_used(rank[cube] * (uses.max() + 1) + uses, visible_count(grid, spec), generator)


def _none(grid: Grid, spec: MaskSpec, uses: np.ndarray, generator: torch.Generator) -> np.ndarray:
    return np.arange(math.prod(grid))


STRATEGIES: dict[str, Callable[[Grid, MaskSpec, np.ndarray, torch.Generator], np.ndarray]] = {
    "dual": _dual,
    "uniform": _uniform,
    "product": _product,
    "tube": _tube,
    "group": partial(_cubes, 2),
    "block": partial(_cubes, 4),
    "none": _none,
}
"""Each returns the visible tokens of one mask, in any order, those of few ``uses`` (tokens,) before others."""
