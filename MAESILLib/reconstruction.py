"""From a volume on the model's grid to its reconstruction, superpatch by superpatch.

Memory holds the volume, four blending volumes and one superpatch at a time, however many there are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from MAESILLib.device import precision_context
from MAESILLib.errors import InputError
from MAESILLib.masking import MaskSpec, complete_cover, draw_visible, generator_for, hidden_tokens, visible_count
from MAESILLib.model import MaskedAutoencoder, patchify, unpatchify, valid_voxels
from MAESILLib.prior import smooth_fill
from MAESILLib.stopping import StopRequest
from MAESILLib.superpatch import Blend, Shape, Superpatch, blending_weights, extract, partition

COVERAGES = ("single", "complete")
HALO = 2
"""Patches around a superpatch whose visible voxels its prior draws on."""


@dataclass(frozen=True)
class Plan:
    """How a volume is to be reconstructed.

    Attributes:
        coverage: ``single``, one mask a superpatch; or ``complete``, masks that hide every patch at least
            once, each patch predicted from the passes that hid it alone.
        overlap: share of a superpatch's length that neighbours have in common.
        seed: with the volume's name and the superpatch's number it decides every mask.
    """

    mask: MaskSpec = field(default_factory=MaskSpec)
    coverage: str = "single"
    overlap: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.coverage not in COVERAGES:
            raise InputError(f"unknown coverage '{self.coverage}'", f"choose one of {', '.join(COVERAGES)}")
        if self.coverage == "complete" and self.mask.strategy == "none":
            raise InputError("mask 'none' hides nothing, so it has no complete coverage", "choose coverage 'single'")


@dataclass(frozen=True)
class Reconstruction:
    """What the model makes of a volume; arrays (D, H, W) on the model's grid.

    Attributes:
        prediction: float32 in [0, 1], the network's own output everywhere: hidden patches predicted
            unseen, in single coverage visible ones auto-encoded.
        hidden: bool, what the mask hid; with complete coverage, what its first mask hid.
        passes: number of masks of each superpatch.
        hidden_share: share of hidden patches in one pass, padding included.
        superpatches: the boxes, in order.
    """

    prediction: np.ndarray
    hidden: np.ndarray
    passes: int
    hidden_share: float
    superpatches: tuple[Superpatch, ...]


def superpatch_masks(grid: Shape, plan: Plan, volume: str, index: int) -> torch.Tensor:
    """Return the masks (K, n_visible) of superpatch ``index``, one for each pass."""
    generator = generator_for(plan.seed, volume, index)
    if plan.coverage == "complete":
        return complete_cover(grid, plan.mask, generator)
    return draw_visible(grid, plan.mask, 1, generator)


def reconstruct(
    model: MaskedAutoencoder,
    unit: np.ndarray,
    plan: Plan,
    *,
    name: str,
    device: torch.device | str = "cpu",
    bf16: bool = False,
    stop: StopRequest | None = None,
    progress: Callable[[float], None] | None = None,
) -> Reconstruction:
    """Reconstruct a volume.

    Args:
        unit: (D, H, W) float32, the HU window mapped to [0, 1], on the model's grid.
        name: of the volume; part of the masks' seed.
        progress: called with the share of superpatches done.

    Raises:
        CancelledError: a stop was asked for.
        InputError: a complete cover of a mask that hides nothing.
    """
    shape = (unit.shape[0], unit.shape[1], unit.shape[2])
    config = model.config
    boxes = partition(shape, config.superpatch_size, config.patch_size, plan.overlap)
    hidden_blend, visible_blend = Blend(shape), Blend(shape)
    hidden_once = np.zeros(shape, bool)
    # with overlap a neighbour shows what this superpatch hides, so its voxels must not be drawn on
    whole = [] if plan.overlap > 0 else masks_of_volume(shape, config.superpatch_size, config.patch_size, plan, name)
    passes, hidden_tokens_count, tokens_count = 1, 0, 0
    for number, box in enumerate(boxes):
        if stop is not None:
            stop.check()
        masks = superpatch_masks(token_grid(box.size, config.patch_size), plan, name, box.index)
        predicted, shown, hidden = _predict_box(model, unit, box, masks, whole, torch.device(device), bf16)
        weights = blending_weights(box.size) if plan.overlap > 0 else np.ones(box.size, np.float32)
        for one_prediction, one_hidden in zip(predicted, hidden, strict=True):
            hidden_blend.add(box, one_prediction, weights * one_hidden)
        if plan.coverage == "single":
            visible_blend.add(box, shown[0], weights * ~hidden[0])
        hidden_once[box.in_volume(shape)] |= hidden[0][box.in_box(shape)]
        passes = max(passes, len(masks))
        tokens_count += _tokens(box.size, config.patch_size)
        hidden_tokens_count += _tokens(box.size, config.patch_size) - masks.shape[1]
        if progress is not None:
            progress((number + 1) / len(boxes))
    prediction = hidden_blend.mean(visible_blend.mean())
    return Reconstruction(prediction, hidden_once, passes, hidden_tokens_count / tokens_count, tuple(boxes))


def masks_of_volume(shape: Shape, superpatch_size: Shape, patch_size: Shape, plan: Plan, name: str) -> list[np.ndarray]:
    """Return the hidden voxels (D, H, W) of each pass over a volume, without overlap.

    The same masks :func:`reconstruct` uses, for the trivial fills that stand beside the model. Superpatches
    that need fewer passes repeat their first.
    """
    boxes = partition(shape, superpatch_size, patch_size)
    drawn = [superpatch_masks(token_grid(box.size, patch_size), plan, name, box.index) for box in boxes]
    volumes = []
    for number in range(max(len(masks) for masks in drawn)):
        volume = np.zeros(shape, bool)
        for box, masks in zip(boxes, drawn, strict=True):
            one = masks[number if number < len(masks) else 0][None]
            volume[box.in_volume(shape)] = _hidden_voxels(one, box, patch_size)[0][box.in_box(shape)]
        volumes.append(volume)
    return volumes


def token_grid(size: Shape, patch_size: Shape) -> Shape:
    """Return the token grid (D, H, W) of a box."""
    return size[0] // patch_size[0], size[1] // patch_size[1], size[2] // patch_size[2]


def expected_hidden_share(grid: Shape, mask: MaskSpec) -> float:
    """Return the share of a token grid that a mask hides."""
    return 1 - visible_count(grid, mask) / (grid[0] * grid[1] * grid[2])


def _tokens(size: Shape, patch_size: Shape) -> int:
    d, h, w = token_grid(size, patch_size)
    return d * h * w


@torch.inference_mode()
def _predict_box(
    model: MaskedAutoencoder,
    unit: np.ndarray,
    box: Superpatch,
    masks: torch.Tensor,
    whole: list[np.ndarray],
    device: torch.device,
    bf16: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (K, D, H, W) predictions of hidden patches, of visible ones, and which voxels are hidden."""
    shape = (unit.shape[0], unit.shape[1], unit.shape[2])
    patch_size = model.config.patch_size
    image = torch.from_numpy(extract(unit, box))[None, None].to(device)
    # a box that begins before the volume does not exist, so what is valid comes first
    valid_size = torch.tensor([[s.stop for s in box.in_box(shape)]])
    valid = valid_voxels(valid_size.to(device), image.shape[2:])
    grid = token_grid(box.size, patch_size)
    predicted, shown = [], []
    for number, visible in enumerate(masks.to(device)):
        filled = None
        if whole and model.config.prior:
            filled = _prior_with_halo(unit, whole[number], box, patch_size, device)
        queried = torch.arange(len(visible), device=device)[None] if len(masks) == 1 else None
        with precision_context(device, bf16):
            out = model(image, visible[None], valid=valid, queried=queried, filled=filled)
        patches = torch.zeros_like(patchify(image, patch_size))
        index = out.hidden[..., None].expand(-1, -1, patches.shape[-1])
        volume = unpatchify(patches.scatter(1, index, out.hidden_patches.clamp(0, 1)), grid, patch_size)
        predicted.append(volume[0, 0].cpu().numpy())
        index = out.visible[..., None].expand(-1, -1, patches.shape[-1])
        volume = unpatchify(patches.scatter(1, index, out.visible_patches.clamp(0, 1)), grid, patch_size)
        shown.append(volume[0, 0].cpu().numpy())
    return np.stack(predicted), np.stack(shown), _hidden_voxels(masks, box, patch_size)


def _prior_with_halo(
    unit: np.ndarray, hidden: np.ndarray, box: Superpatch, patch_size: Shape, device: torch.device
) -> torch.Tensor:
    """Return the prior (1, 1, D, H, W) of a box, made from the visible voxels around it too.

    A superpatch alone would be filled as if nothing lay beyond its faces, and its borders would show.
    """
    shape = (unit.shape[0], unit.shape[1], unit.shape[2])
    margins = [min(HALO * p, start) for p, start in zip(patch_size, box.start, strict=True)]
    start = [s - m for s, m in zip(box.start, margins, strict=True)]
    ends = [
        min(s + n + HALO * p, -(-length // p) * p)
        for s, n, p, length in zip(box.start, box.size, patch_size, shape, strict=True)
    ]
    size = [end - s for s, end in zip(start, ends, strict=True)]
    wide = Superpatch(box.index, (start[0], start[1], start[2]), (size[0], size[1], size[2]))
    known = np.zeros(wide.size, bool)
    known[wide.in_box(shape)] = ~hidden[wide.in_volume(shape)]
    image = torch.from_numpy(extract(unit, wide))[None, None].to(device)
    filled = smooth_fill(image, torch.from_numpy(known)[None, None].to(device), patch_size)
    d, h, w = (slice(m, m + n) for m, n in zip(margins, box.size, strict=True))
    return filled[:, :, d, h, w].contiguous()


def _hidden_voxels(masks: torch.Tensor, box: Superpatch, patch_size: Shape) -> np.ndarray:
    """Return (K, D, H, W) bool, True in the voxels of hidden patches."""
    hidden = hidden_tokens(masks.cpu(), token_grid(box.size, patch_size)).numpy()
    for axis, p in enumerate(patch_size, start=1):
        hidden = hidden.repeat(p, axis)
    return hidden
