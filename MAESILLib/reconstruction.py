"""From a volume on the model's grid to its reconstruction, superpatch by superpatch.

Memory holds the volume, four blending volumes, the prior of one slab and one superpatch, however many
there are.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from MAESILLib.device import precision_context
from MAESILLib.errors import InputError
from MAESILLib.masking import MaskSpec, complete_cover, draw_visible, generator_for, hidden_tokens
from MAESILLib.model import MaskedAutoencoder, unpatchify, valid_voxels
from MAESILLib.prior import THOROUGH, smooth_fill
from MAESILLib.stopping import StopRequest
from MAESILLib.superpatch import Blend, Shape, Superpatch, blending_weights, extract, partition, token_grid

COVERAGES = ("single", "complete")
HALO = 2
"""Patches above and below a superpatch whose visible voxels its prior draws on."""


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
    prior = None
    # with overlap a neighbour shows what this superpatch hides, so its voxels must not be drawn on
    if config.prior and plan.overlap == 0 and plan.mask.strategy != "none":
        hidden_volumes = masks_of_volume(shape, config.superpatch_size, config.patch_size, plan, name)
        prior = PriorOfSlabs(unit, hidden_volumes, config.patch_size, torch.device(device))
    masks = [superpatch_masks(token_grid(box.size, config.patch_size), plan, name, box.index) for box in boxes]
    jobs = _in_order(boxes, masks)
    for done, (box, number) in enumerate(jobs, start=1):
        if stop is not None:
            stop.check()
        visible = masks[box.index][number]
        filled = None if prior is None else prior.of_box(box, number)
        predicted, shown, hidden = _predict_box(
            model, unit, box, visible, filled, plan.coverage == "single", torch.device(device), bf16
        )
        weights = blending_weights(box.size) if plan.overlap > 0 else np.ones(box.size, np.float32)
        hidden_blend.add(box, predicted, weights * hidden)
        if plan.coverage == "single":
            visible_blend.add(box, shown, weights * ~hidden)
        if number == 0:
            hidden_once[box.in_volume(shape)] |= hidden[box.in_box(shape)]
        if progress is not None:
            progress(done / len(jobs))
    tokens = sum(_tokens(box.size, config.patch_size) for box in boxes)
    visible_tokens = sum(one.shape[1] for one in masks)
    prediction = hidden_blend.mean(visible_blend.mean())
    passes = max(len(one) for one in masks)
    return Reconstruction(prediction, hidden_once, passes, 1 - visible_tokens / tokens, tuple(boxes))


def _in_order(boxes: list[Superpatch], masks: list[torch.Tensor]) -> list[tuple[Superpatch, int]]:
    """Return every superpatch with the number of every pass over it, slab by slab and pass by pass.

    A slab's prior under one pass is then made once and need not be kept.
    """
    jobs = []
    for _, group in itertools.groupby(boxes, key=lambda box: (box.start[0], box.size[0])):
        slab = list(group)
        passes = max(len(masks[box.index]) for box in slab)
        jobs += [(box, n) for n in range(passes) for box in slab if n < len(masks[box.index])]
    return jobs


@dataclass(frozen=True)
class VolumeMask:
    """Which patches of a whole volume one pass hides, kept as one bool a patch.

    Attributes:
        tokens: (D, H, W) bool of the volume's patch grid, True where hidden.
        shape: of the volume.
    """

    tokens: np.ndarray
    shape: Shape
    patch_size: Shape

    def voxels(self, first: int = 0, last: int | None = None) -> np.ndarray:
        """Return the hidden voxels (D, H, W) of the planes ``first`` to ``last`` - 1; of all by default."""
        last = self.shape[0] if last is None else min(last, self.shape[0])
        d, h, w = (np.arange(n) // p for n, p in zip(self.shape, self.patch_size, strict=True))
        return self.tokens[np.ix_(d[first:last], h, w)]


def masks_of_volume(shape: Shape, superpatch_size: Shape, patch_size: Shape, plan: Plan, name: str) -> list[VolumeMask]:
    """Return what each pass over a volume hides, without overlap.

    The same masks :func:`reconstruct` uses, for the prior and for the trivial fills that stand beside the
    model. Superpatches that need fewer passes repeat their first.
    """
    boxes = partition(shape, superpatch_size, patch_size)
    drawn = [superpatch_masks(token_grid(box.size, patch_size), plan, name, box.index) for box in boxes]
    d, h, w = (-(-n // p) for n, p in zip(shape, patch_size, strict=True))
    masks = []
    for number in range(max(len(masks) for masks in drawn)):
        tokens = np.zeros((d, h, w), bool)
        for box, box_masks in zip(boxes, drawn, strict=True):
            one = box_masks[number if number < len(box_masks) else 0][None]
            begin = token_grid(box.start, patch_size)
            grid = token_grid(box.size, patch_size)
            place = tuple(slice(b, b + n) for b, n in zip(begin, grid, strict=True))
            tokens[place] = hidden_tokens(one, grid)[0].numpy()
        masks.append(VolumeMask(tokens, shape, patch_size))
    return masks


def _tokens(size: Shape, patch_size: Shape) -> int:
    d, h, w = token_grid(size, patch_size)
    return d * h * w


@torch.inference_mode()
def _predict_box(
    model: MaskedAutoencoder,
    unit: np.ndarray,
    box: Superpatch,
    visible: torch.Tensor,
    filled: torch.Tensor | None,
    show: bool,
    device: torch.device,
    bf16: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (D, H, W) predictions of hidden patches, of visible ones if ``show``, and which voxels are hidden."""
    shape = (unit.shape[0], unit.shape[1], unit.shape[2])
    patch_size = model.config.patch_size
    image = torch.from_numpy(extract(unit, box))[None, None].to(device)
    # no box begins before the volume, so what is valid comes first
    valid_size = torch.tensor([[s.stop for s in box.in_box(shape)]])
    valid = valid_voxels(valid_size.to(device), image.shape[2:])
    queried = torch.arange(len(visible), device=device)[None] if show else None
    with precision_context(device, bf16):
        out = model(image, visible[None].to(device), valid=valid, queried=queried, filled=filled)
    grid = token_grid(box.size, patch_size)
    predicted = _laid_out(out.hidden, out.hidden_patches, grid, patch_size)
    shown = _laid_out(out.visible, out.visible_patches, grid, patch_size)
    return predicted, shown, _hidden_voxels(visible[None], box, patch_size)[0]


def _laid_out(index: torch.Tensor, patches: torch.Tensor, grid: Shape, patch_size: Shape) -> np.ndarray:
    """Lay patches (1, N, P) of the tokens ``index`` into a box (D, H, W), clipped to [0, 1]; the rest is 0."""
    tokens = patches.new_zeros(1, grid[0] * grid[1] * grid[2], patches.shape[-1])
    index = index[..., None].expand(-1, -1, patches.shape[-1])
    box = unpatchify(tokens.scatter(1, index, patches.clamp(0, 1)), grid, patch_size)
    return box[0, 0].float().cpu().numpy()


class PriorOfSlabs:
    """The prior of a volume, made slab by slab: a slab is as thick as a superpatch and as wide as the volume.

    A superpatch alone would be filled as if nothing lay beyond its faces, and its borders would show. The
    slab's prior draws on the visible voxels of a few patches above and below it, too.

    Args:
        unit: (D, H, W) intensities.
        masks: what each pass hides.
    """

    def __init__(self, unit: np.ndarray, masks: list[VolumeMask], patch_size: Shape, device: torch.device) -> None:
        self.unit, self.masks, self.patch_size, self.device = unit, masks, patch_size, device
        self.latest: tuple[tuple[int, int, int], torch.Tensor] | None = None

    def of_box(self, box: Superpatch, number: int) -> torch.Tensor:
        """Return the prior (1, 1, D, H, W) of a superpatch under pass ``number``."""
        key = (box.start[0], box.size[0], number)
        if self.latest is None or self.latest[0] != key:
            self.latest = (key, self._fill(box, self.masks[number]))
        first = box.start[0] - self._margin(box)
        d, h, w = (slice(s, s + n) for s, n in zip(box.start, box.size, strict=True))
        return self.latest[1][:, :, d.start - first : d.stop - first, h, w].contiguous()

    def _margin(self, box: Superpatch) -> int:
        return min(HALO * self.patch_size[0], box.start[0])

    def _fill(self, box: Superpatch, mask: VolumeMask) -> torch.Tensor:
        depth, height, width = self.unit.shape
        rounded = [-(-n // p) * p for n, p in zip((depth, height, width), self.patch_size, strict=True)]
        first = box.start[0] - self._margin(box)
        last = min(box.start[0] + box.size[0] + HALO * self.patch_size[0], rounded[0])
        slab = Superpatch(0, (first, 0, 0), (last - first, rounded[1], rounded[2]))
        known = np.zeros(slab.size, bool)
        known[slab.in_box((depth, height, width))] = ~mask.voxels(first, last)
        image = torch.from_numpy(extract(self.unit, slab))[None, None].to(self.device)
        return smooth_fill(image, torch.from_numpy(known)[None, None].to(self.device), self.patch_size, THOROUGH)


def _hidden_voxels(masks: torch.Tensor, box: Superpatch, patch_size: Shape) -> np.ndarray:
    """Return (K, D, H, W) bool, True in the voxels of hidden patches."""
    hidden = hidden_tokens(masks.cpu(), token_grid(box.size, patch_size)).numpy()
    for axis, p in enumerate(patch_size, start=1):
        hidden = hidden.repeat(p, axis)
    return hidden
