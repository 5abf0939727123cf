"""What a patch is described by: tokens of an encoder, pretrained or random, its intensities, or its place."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from MAESILLib.export.encoder import PretrainedEncoder
from MAESILLib.model import positions_on
from MAESILLib.probe.patches import Indices
from MAESILLib.stopping import NEVER, StopRequest
from MAESILLib.superpatch import Shape, Superpatch, extract, partition, token_grid

Features = NDArray[np.float32]


def with_random_weights(encoder: PretrainedEncoder, seed: int) -> PretrainedEncoder:
    """Return the same architecture with every weight drawn anew: Glorot's uniform matrices, gains 1, biases 0."""
    generator = torch.Generator().manual_seed(seed)
    fresh = copy.deepcopy(encoder)
    for module in fresh.encoder.modules():
        for name, parameter in module.named_parameters(recurse=False):
            with torch.no_grad():
                if parameter.ndim == 2:
                    drawn = nn.init.xavier_uniform_(torch.empty(parameter.shape), generator=generator)
                    parameter.copy_(drawn)
                elif name == "weight":
                    parameter.fill_(1)
                else:
                    parameter.fill_(0)
    return fresh


@torch.inference_mode()
def tokens_of(
    encoder: PretrainedEncoder,
    unit: np.ndarray,
    patches: Indices,
    blocks: Sequence[int],
    *,
    device: torch.device | str = "cpu",
    stop: StopRequest = NEVER,
) -> dict[int, Features]:
    """Return the tokens of patches after each of some blocks, all patches visible, superpatch by superpatch.

    Args:
        unit: (D, H, W) float32, the HU window mapped to [0, 1], on the model's grid.
        patches: (N,) numbers on the volume's patch grid.
        blocks: counted from 1; the tokens after the last one are normalised.

    Returns:
        for each block (N, width).

    Raises:
        CancelledError: a stop was asked for.
    """
    shape = (unit.shape[0], unit.shape[1], unit.shape[2])
    row_of = np.full(np.prod(patch_grid(shape, encoder.patch_size)), -1)
    row_of[patches] = np.arange(len(patches))
    found = {block: np.zeros((len(patches), encoder.width), np.float32) for block in blocks}
    for box in partition(shape, encoder.trained_size, encoder.patch_size):
        stop.check()
        rows = row_of[_patches_of(box, shape, encoder.patch_size)]
        if (rows < 0).all():
            continue
        image = torch.from_numpy(extract(unit, box))[None, None].to(device)
        maps = encoder.feature_maps(image)
        for block, tokens in found.items():
            of_box = maps[block - 1][0].flatten(1).T.float().cpu().numpy()
            tokens[rows[rows >= 0]] = of_box[rows >= 0]
    return found


def positions_of(encoder: PretrainedEncoder, shape: Shape, patches: Indices) -> Features:
    """Return the fixed positions (N, width) that the encoder adds to patches: where they lie in their superpatch.

    Args:
        shape: of the volume, voxels (D, H, W).
        patches: (N,) numbers on the volume's patch grid.
    """
    width, reach = encoder.width, token_grid(encoder.trained_size, encoder.patch_size)
    every = np.zeros((int(np.prod(patch_grid(shape, encoder.patch_size))), width), np.float32)
    for box in partition(shape, encoder.trained_size, encoder.patch_size):
        grid = token_grid(box.size, encoder.patch_size)
        positions = positions_on(torch.device("cpu"), grid, width, (0, 0, 0), reach)
        every[_patches_of(box, shape, encoder.patch_size)] = positions.numpy()
    chosen: Features = every[patches]
    return chosen


def intensities_of(unit: np.ndarray, patches: Indices, patch_size: Shape) -> Features:
    """Return the intensities (N, P) of patches, edges repeated in padding as the encoder gets them.

    Args:
        unit: (D, H, W) in [0, 1].
        patches: (N,) numbers on the volume's patch grid.
    """
    d, h, w = patch_grid((unit.shape[0], unit.shape[1], unit.shape[2]), patch_size)
    whole = extract(unit, Superpatch(0, (0, 0, 0), (d * patch_size[0], h * patch_size[1], w * patch_size[2])))
    blocks = whole.reshape(d, patch_size[0], h, patch_size[1], w, patch_size[2]).transpose(0, 2, 4, 1, 3, 5)
    chosen: Features = blocks[np.unravel_index(patches, (d, h, w))].reshape(len(patches), -1)
    return chosen


def patch_grid(shape: Shape, patch_size: Shape) -> Shape:
    """Return the patch grid of a volume, its last patches padded."""
    d, h, w = (-(-n // p) for n, p in zip(shape, patch_size, strict=True))
    return d, h, w


def _patches_of(box: Superpatch, shape: Shape, patch_size: Shape) -> Indices:
    """Return the numbers on the volume's patch grid of a superpatch's tokens, in their order."""
    grid = patch_grid(shape, patch_size)
    starts, lengths = token_grid(box.start, patch_size), token_grid(box.size, patch_size)
    axes = (np.arange(start, start + length) for start, length in zip(starts, lengths, strict=True))
    numbers: Indices = np.arange(np.prod(grid)).reshape(grid)[np.ix_(*axes)].ravel()
    return numbers
