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
* ``block``: like ``uniform``, but hidden and visible tokens come in blocks of 2x2x2.
* ``none``: everything is visible (auto-encoding).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch

from MAESILLib.errors import InputError
from MAESILLib.mask_spec import MAX_RATIO, Grid, MaskSpec, kept_count, visible_count

__all__ = [
    "MAX_RATIO",
    "STRATEGIES",
    "MaskSpec",
    "complete_cover",
    "draw_visible",
    "generator_for",
    "hidden_from_visible",
    "hidden_tokens",
    "visible_count",
]

BLOCK = 2
RANDOM_BITS = 16


def generator_for(seed: int, *labels: object) -> torch.Generator:
    """Return a CPU generator whose state depends on ``seed`` and ``labels`` and on nothing else."""
    digest = hashlib.blake2b(repr((int(seed), *map(str, labels))).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def draw_visible(grid: Grid, spec: MaskSpec, batch: int, generator: torch.Generator) -> torch.Tensor:
    """Draw one mask for each sample of a batch.

    Returns:
        (batch, n_visible) int64, each row sorted in ascending order.
    """
    return torch.from_numpy(STRATEGIES[spec.strategy](grid, spec, batch, generator, None))


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
    tokens = grid[0] * grid[1] * grid[2]
    if visible_count(grid, spec) == tokens:
        raise InputError(
            f"mask '{spec.strategy}' hides no token of a {grid} grid, so no complete cover exists",
            "choose larger ratios, or coverage 'single'",
        )
    draw = STRATEGIES[spec.strategy]
    uses = np.zeros((1, tokens), np.int64)
    masks: list[np.ndarray] = []
    while not masks or uses.max() == len(masks):
        if len(masks) == tokens:
            raise RuntimeError(f"{tokens} masks by {spec} leave a token of a {grid} grid that none of them hides")
        masks.append(draw(grid, spec, 1, generator, uses))
        uses[0, masks[-1][0]] += 1
    return torch.from_numpy(np.concatenate(masks))


def hidden_from_visible(visible: torch.Tensor, tokens: int) -> torch.Tensor:
    """Return the complement of ``visible`` (B, N): sorted hidden indices (B, tokens - N)."""
    is_hidden = torch.ones(visible.shape[0], tokens, dtype=torch.bool, device=visible.device)
    is_hidden.scatter_(1, visible, False)
    # the n-th hidden token goes to place n, every visible one to a place that is cut off: unlike nonzero
    # this has a fixed shape, so no device has to report back how many there are
    count = tokens - visible.shape[1]
    places = torch.where(is_hidden, is_hidden.cumsum(1) - 1, count)
    numbers = torch.arange(tokens, device=visible.device).expand_as(places)
    return visible.new_empty(visible.shape[0], count + 1).scatter_(1, places, numbers)[:, :count]


def hidden_tokens(visible: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Return a bool tensor (B, D, H, W) of the token grid, True where the token is hidden."""
    is_hidden = torch.ones(visible.shape[0], grid[0] * grid[1] * grid[2], dtype=torch.bool, device=visible.device)
    is_hidden.scatter_(1, visible, False)
    return is_hidden.view(-1, *grid)


def _random_subset(
    shape: tuple[int, ...], count: int, generator: torch.Generator, priority: np.ndarray | None = None
) -> np.ndarray:
    """Choose ``count`` of the ``shape[-1]`` places of each row at random; return them sorted, as int64.

    Every place gets a key whose high bits are random and whose low bits are the place itself; the
    smallest keys win. Keys are unique, so the choice needs no argsort and no tie rule, and sorting plain
    integers is what numpy does fastest. Random 16-bit keys leave a bias of at most n/65536 to a row.

    Args:
        priority: integers broadcastable to ``shape``; lower ones are chosen first, at random among equals.
    """
    places = shape[-1]
    index_bits = _bits(places)
    keys = _random_keys(shape, generator, wide=priority is not None)
    if priority is not None:
        keys += priority << np.int64(index_bits + RANDOM_BITS)
    keys.partition(min(count, places - 1), axis=-1)
    chosen = keys[..., :count] & keys.dtype.type((1 << index_bits) - 1)
    chosen.sort(axis=-1)
    return chosen.astype(np.int64, copy=False)


def _random_keys(shape: tuple[int, ...], generator: torch.Generator, *, wide: bool = False) -> np.ndarray:
    """Return integers that differ within each row: 16 random bits above the place's own number."""
    index_bits = _bits(shape[-1])
    draws = int(np.prod(shape))
    # one 64-bit draw serves four places: drawing is the dearest step
    words = torch.empty((draws + 3) // 4, dtype=torch.int64).random_(-(2**63), None, generator=generator)
    random = words.numpy().view(np.uint16)[:draws].reshape(shape)
    dtype = np.int64 if wide or index_bits + RANDOM_BITS > 31 else np.int32
    keys = np.multiply(random, 1 << index_bits, dtype=dtype)
    keys |= np.arange(shape[-1], dtype=dtype)
    return keys


def _bits(count: int) -> int:
    return max(1, (count - 1).bit_length())


def _dual(grid: Grid, spec: MaskSpec, batch: int, generator: torch.Generator, uses: np.ndarray | None) -> np.ndarray:
    depth, plane = grid[0], grid[1] * grid[2]
    by_depth = None if uses is None else uses.reshape(batch, depth, plane)
    n_plane = kept_count(plane, spec.plane_ratio)
    kept = _random_subset((batch, plane), n_plane, generator, None if by_depth is None else by_depth.sum(1))
    axis_uses = None if by_depth is None else np.take_along_axis(by_depth, kept[:, None].repeat(depth, 1), 2)
    n_axis = kept_count(n_plane, spec.axis_ratio)
    chosen = _random_subset((batch, depth, n_plane), n_axis, generator, axis_uses)
    rows = np.arange(batch).reshape(-1, 1, 1) * n_plane
    tokens = kept.reshape(-1).take(chosen + rows)
    tokens += np.arange(depth).reshape(1, -1, 1) * plane
    return tokens.reshape(batch, depth * n_axis)


def _uniform(grid: Grid, spec: MaskSpec, batch: int, generator: torch.Generator, uses: np.ndarray | None) -> np.ndarray:
    tokens = grid[0] * grid[1] * grid[2]
    return _random_subset((batch, tokens), visible_count(grid, spec), generator, uses)


def _product(grid: Grid, spec: MaskSpec, batch: int, generator: torch.Generator, uses: np.ndarray | None) -> np.ndarray:
    depth, plane = grid[0], grid[1] * grid[2]
    by_depth = None if uses is None else uses.reshape(batch, depth, plane)
    columns = _random_subset(
        (batch, plane), kept_count(plane, spec.plane_ratio), generator, None if by_depth is None else by_depth.sum(1)
    )
    slices = _random_subset(
        (batch, depth), kept_count(depth, spec.axis_ratio), generator, None if by_depth is None else by_depth.sum(2)
    )
    return (slices[:, :, None] * plane + columns[:, None, :]).reshape(batch, -1)


def _tube(grid: Grid, spec: MaskSpec, batch: int, generator: torch.Generator, uses: np.ndarray | None) -> np.ndarray:
    depth, plane = grid[0], grid[1] * grid[2]
    columns = _random_subset(
        (batch, plane),
        visible_count(grid, spec) // depth,
        generator,
        None if uses is None else uses.reshape(batch, depth, plane).sum(1),
    )
    return (np.arange(depth).reshape(1, -1, 1) * plane + columns[:, None, :]).reshape(batch, -1)


def _block(grid: Grid, spec: MaskSpec, batch: int, generator: torch.Generator, uses: np.ndarray | None) -> np.ndarray:
    """Take whole blocks in random order; of the last one, as many tokens as are still missing."""
    tokens_of_block, block_of_token = _blocks(grid)
    n_blocks, tokens = len(tokens_of_block), len(block_of_token)
    count = visible_count(grid, spec)
    keys = _random_keys((batch, n_blocks), generator, wide=uses is not None)
    if uses is not None:
        # a cover is drawn one mask at a time: blocks by their most used token, in a block the least used first
        padded = np.append(uses[0], 0)[tokens_of_block]
        keys += padded.max(1) << np.int64(_bits(n_blocks) + RANDOM_BITS)
        tokens_of_block = np.take_along_axis(tokens_of_block, padded.argsort(1, kind="stable"), 1)
    keys.sort(axis=-1)
    order = keys & keys.dtype.type((1 << _bits(n_blocks)) - 1)
    # every block begins at a random one of its tokens, so that the last one is not always cut alike
    size = tokens_of_block.shape[1]
    turn = np.zeros((1, 1), np.int64)
    if uses is None:
        turn = torch.randint(size, (batch, 1), generator=generator).numpy()
    sizes = (tokens_of_block < tokens).sum(1)
    needed = int((sizes.take(order).cumsum(axis=1) < count).sum(1).max()) + 1
    columns = (np.arange(size) + turn)[:, None, :] % size
    drawn = tokens_of_block.reshape(-1).take(order[:, :needed, None] * size + columns).reshape(batch, -1)
    if sizes.min() == size:
        drawn = drawn[:, :count]
    else:
        surplus = (drawn < tokens).cumsum(axis=1, dtype=np.int32) > count
        drawn[surplus] = tokens
    drawn.sort(axis=-1)
    return drawn[:, :count].astype(np.int64)


@lru_cache(maxsize=16)
def _blocks(grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens of every block (blocks, BLOCK^3) int32, and the block of every token (tokens,).

    Blocks at the far border can be smaller; the number of tokens stands for those they lack.
    """
    blocks = tuple(-(-n // BLOCK) for n in grid)
    numbers = np.arange(blocks[0] * blocks[1] * blocks[2]).reshape(blocks)
    d, h, w = np.ix_(*(np.arange(n) // BLOCK for n in grid))
    block_of_token = numbers[d, h, w].reshape(-1)
    tokens_of_block = np.full((numbers.size, BLOCK**3), block_of_token.size, np.int32)
    filled = np.zeros(numbers.size, np.int64)
    for token, block in enumerate(block_of_token):
        tokens_of_block[block, filled[block]] = token
        filled[block] += 1
    return tokens_of_block, block_of_token


def _none(grid: Grid, spec: MaskSpec, batch: int, generator: torch.Generator, uses: np.ndarray | None) -> np.ndarray:
    return np.tile(np.arange(grid[0] * grid[1] * grid[2]), (batch, 1))


STRATEGIES: dict[str, Callable[[Grid, MaskSpec, int, torch.Generator, np.ndarray | None], np.ndarray]] = {
    "dual": _dual,
    "uniform": _uniform,
    "product": _product,
    "tube": _tube,
    "block": _block,
    "none": _none,
}
