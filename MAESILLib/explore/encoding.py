"""Encoding a whole volume: the frozen encoder's tokens on one grid, from windows that overlap.

Where cells are smaller than a patch, the volume is encoded several times, shifted by a stride, so that the centre of
each cell is the centre of a patch.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from MAESILLib.ct.body import body_mask
from MAESILLib.ct.volume import CTVolume, model_grid
from MAESILLib.explore.features import Features, Origin
from MAESILLib.export.encoder import PretrainedEncoder
from MAESILLib.mae.superpatch import Shape, blending_weights
from MAESILLib.runtime.errors import InputError
from MAESILLib.runtime.stopping import NEVER, StopRequest

WINDOW, OVERLAP = 8, 2
"""Tokens on a side of a window, and of those that neighbours share."""


def dense_features(
    encoder: PretrainedEncoder,
    volume: CTVolume,
    *,
    block: int = 0,
    stride: int = 8,
    window: int = WINDOW,
    stop: StopRequest = NEVER,
    progress: Callable[[float], None] | None = None,
) -> Features:
    """Encode a whole volume.

    Args:
        block: whose output, from 1; 0: the last one's.
        stride: voxels of the model's grid from one cell to the next; a patch or half or a quarter of it.
        window: tokens on a side of what is encoded at once.
        progress: called with the share that is done.

    Raises:
        InputError: no such block or stride.
        CancelledError: a stop was asked for.
    """
    depth, (patch, *others) = len(encoder.encoder.blocks), encoder.patch_size
    if not 0 <= block <= depth:
        raise InputError(f"block {block} is not there", f"choose 1 to {depth}")
    if patch % stride or any(other != patch for other in others):
        raise InputError(f"stride {stride} does not divide the patch {encoder.patch_size}", "choose another stride")
    block = block or depth
    grid = model_grid(volume.geometry, encoder.spacing_mm)
    hu = grid.to_model(volume.hu)
    passes, before = patch // stride, (patch - stride) // 2
    size = tuple(-(-n // stride) for n in hu.shape)
    tokens = (-(-size[0] // passes), -(-size[1] // passes), -(-size[2] // passes))
    pads = [(before, t * patch + patch - stride - before - n) for t, n in zip(tokens, hu.shape, strict=True)]
    padded = np.pad(hu, pads, mode="edge")
    values = np.empty((encoder.width, *(passes * t for t in tokens)), np.float16)
    shifts = list(itertools.product(range(passes), repeat=3))
    for number, shift in enumerate(shifts):
        part = padded[tuple(slice(s * stride, s * stride + t * patch) for s, t in zip(shift, tokens, strict=True))]
        tell = partial(_tell, progress, number, len(shifts))
        encoded = _encode(encoder, part, tokens, block, window, stop, tell)
        values[(slice(None), *(slice(s, None, passes) for s in shift))] = encoded
    origin = Origin(encoder.info.source["sha256"], block, stride)
    return Features(values[(slice(None), *map(slice, size))], body_mask(hu), grid, origin)


def _tell(progress: Callable[[float], None] | None, done: int, total: int, share: float) -> None:
    if progress is not None:
        progress((done + share) / total)


def _encode(
    encoder: PretrainedEncoder,
    hu: NDArray[np.float32],
    tokens: Shape,
    block: int,
    window: int,
    stop: StopRequest,
    tell: Callable[[float], None],
) -> NDArray[np.float32]:
    """Return the tokens (C, D, H, W) of HU, blended from windows that overlap."""
    device, patch = next(encoder.parameters()).device, encoder.patch_size[0]
    total, weight = np.zeros((encoder.width, *tokens), np.float32), np.zeros(tokens, np.float32)
    side = tuple(min(window, n) for n in tokens)
    weights = blending_weights((side[0], side[1], side[2]))
    starts = list(itertools.product(*(_starts(n, s) for n, s in zip(tokens, side, strict=True))))

    @torch.inference_mode()
    def encoded(start: tuple[int, ...]) -> NDArray[np.float32]:
        voxels = hu[tuple(slice(a * patch, (a + s) * patch) for a, s in zip(start, side, strict=True))]
        image = encoder.intensities(np.ascontiguousarray(voxels)).to(device)
        found: NDArray[np.float32] = encoder.feature_maps(image[None])[block - 1][0].float().cpu().numpy()
        return found

    with _threads_of_one(device) as threads:
        for number, (start, found) in enumerate(zip(starts, threads.map(encoded, starts), strict=True)):
            stop.check()
            tell(number / len(starts))
            place = tuple(slice(a, a + s) for a, s in zip(start, side, strict=True))
            total[(slice(None), *place)] += found * weights
            weight[place] += weights
    return total / weight


@contextmanager
def _threads_of_one(device: torch.device) -> Iterator[ThreadPoolExecutor]:
    """Let each of torch's threads encode windows of its own: a window is too small to be shared out."""
    count = torch.get_num_threads()
    threads = ThreadPoolExecutor(count if device.type == "cpu" else 1)
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        threads.shutdown(cancel_futures=True)
        torch.set_num_threads(count)


def _starts(length: int, side: int) -> list[int]:
    """Return where windows begin that cover ``length`` and overlap by ``OVERLAP`` or more."""
    count = math.ceil((length - side) / max(1, side - OVERLAP)) + 1
    return [round(start) for start in np.linspace(0, length - side, count)]
