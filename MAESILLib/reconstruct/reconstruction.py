"""From a volume on the model's grid to its reconstruction, superpatch by superpatch.

Memory holds the volume, two or three blends of one and a half volumes, the fills of one pass (while they are solved,
about nine times a slab of ``FILL_PLANES``) and the superpatches of one forward pass, however many passes there are.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from MAESILLib.mae.harmonic import biharmonic_fill, harmonic_fill
from MAESILLib.mae.masking import hidden_tokens
from MAESILLib.mae.model import composite, spread, valid_voxels, windowed
from MAESILLib.mae.network import Network
from MAESILLib.mae.superpatch import Blend, Shape, Superpatch, blending_weights, extract, partition, token_grid
from MAESILLib.reconstruct.plan import Plan, masks_of_volume, superpatch_masks
from MAESILLib.runtime.device import precision_context
from MAESILLib.runtime.stopping import NEVER, StopRequest

FILL_PLANES, FILL_MARGIN = 192, 32
"""Planes of a volume that are filled at once at most, and beyond them those that take part: four patches away a fill
hardly depends on what is visible."""


@dataclass(frozen=True)
class Reconstruction:
    """What the model makes of a volume; arrays (D, H, W) on the model's grid.

    Attributes:
        prediction: float32 in [0, 1], the network's own output everywhere: hidden patches predicted
            unseen, in single coverage visible ones auto-encoded.
        hidden: bool, what the mask hid; with complete coverage, what its first mask hid.
        filled: float32, the harmonic fill of the same masks: where hidden, the mean over the passes that hid it, else
            the input; None for the mask ``none`` and where superpatches overlap.
        biharmonic: float32, the biharmonic fill of ``hidden``; None likewise, and without the completion.
        passes: number of masks of each superpatch, the most of any.
        mask_ratio: share of hidden patches in one pass, padding included.
        superpatches: the boxes, in order.
    """

    prediction: np.ndarray
    hidden: np.ndarray
    filled: np.ndarray | None
    biharmonic: np.ndarray | None
    passes: int
    mask_ratio: float
    superpatches: tuple[Superpatch, ...]


def reconstruct(
    model: Network,
    unit: np.ndarray,
    plan: Plan,
    *,
    name: str,
    device: torch.device | str = "cpu",
    bf16: bool = False,
    batch_size: int = 1,
    completed: bool = True,
    stop: StopRequest = NEVER,
    progress: Callable[[float], None] | None = None,
) -> Reconstruction:
    """Reconstruct a volume.

    Args:
        unit: (D, H, W) float32, the first HU window mapped to [0, 1], on the model's grid.
        name: of the volume; part of the masks' seed.
        batch_size: most superpatches of a forward pass, alike in size; it changes results by rounding only.
        completed: let the completion, if there is one, predict the hidden patches; else the decoder.
        progress: called with the share of superpatches done.

    Raises:
        InputError: a complete cover of a mask that hides nothing.
    """
    shape = unit.shape
    config = model.config
    completed = completed and model.completion is not None
    boxes = partition(shape, config.superpatch_size, config.patch_size, plan.overlap)
    masks = [superpatch_masks(token_grid(box.size, config.patch_size), plan, name, box.index) for box in boxes]
    passes = max(len(of_box) for of_box in masks)
    # with overlap a neighbour shows what this superpatch hides, so no mask and no fill is that of the whole volume
    is_filled = plan.overlap == 0 and plan.hides
    whole = masks_of_volume(shape, boxes, masks, config.patch_size)
    weight = np.float32 if plan.overlap > 0 else np.min_scalar_type(passes)
    hidden_blend, visible_blend, fill_blend = Blend(shape, weight), Blend(shape, weight), Blend(shape, weight)
    hidden_once, biharmonic = np.zeros(shape, bool), None
    done, total = 0, sum(len(of_box) for of_box in masks)
    for number in range(passes):
        fill = None
        if is_filled:
            fill = _fill(unit, next(whole), completed, fill_blend, torch.device(device), stop)
            biharmonic = fill if completed and number == 0 else biharmonic
        for group in _alike(boxes, masks, number, batch_size):
            stop.check()
            visible = torch.stack([masks[box.index][number] for box in group])
            predictions = _predict_boxes(
                model, unit, group, visible, fill, plan.coverage == "single", torch.device(device), bf16, completed
            )
            for box, (predicted, shown, hidden) in zip(group, predictions, strict=True):
                weights = blending_weights(box.size) if plan.overlap > 0 else np.ones(box.size, bool)
                hidden_blend.add(box, predicted, weights * hidden)
                if plan.coverage == "single":
                    visible_blend.add(box, shown, weights * ~hidden)
                if number == 0:
                    hidden_once[box.in_volume(shape)] |= hidden[box.in_box(shape)]
            done += len(group)
            if progress is not None:
                progress(done / total)
    tokens = sum(math.prod(token_grid(box.size, config.patch_size)) for box in boxes)
    visible_tokens = sum(one.shape[1] for one in masks)
    del fill
    prediction = hidden_blend.mean(visible_blend.mean())
    del hidden_blend, visible_blend
    filled = fill_blend.mean(unit) if is_filled else None
    return Reconstruction(
        prediction, hidden_once, filled, biharmonic, passes, 1 - visible_tokens / tokens, tuple(boxes)
    )


def _alike(
    boxes: list[Superpatch], masks: list[torch.Tensor], number: int, batch_size: int
) -> Iterator[list[Superpatch]]:
    """Yield the superpatches that have a mask ``number``, those of one forward pass at a time."""
    alike: dict[tuple[Shape, int], list[Superpatch]] = {}
    for box in boxes:
        if number < len(masks[box.index]):
            alike.setdefault((box.size, masks[box.index].shape[1]), []).append(box)
    for same in alike.values():
        for first in range(0, len(same), batch_size):
            yield same[first : first + batch_size]


def _fill(
    unit: np.ndarray,
    hidden: np.ndarray,
    completed: bool,
    harmonic_blend: Blend,
    device: torch.device,
    stop: StopRequest,
) -> np.ndarray:
    """Return the biharmonic fill (D, H, W) of a volume if it is ``completed``, else the harmonic one; blend the latter.

    Slab by slab: of the harmonic fill there is never more.
    """
    depth, height, width = unit.shape
    fill = np.empty_like(unit)
    planes = math.ceil(depth / math.ceil(depth / FILL_PLANES))
    for first in range(0, depth, planes):
        begin, last = max(first - FILL_MARGIN, 0), min(first + planes, depth)
        slab, own = slice(begin, last + FILL_MARGIN), slice(first - begin, last - begin)
        image, known = (torch.from_numpy(x)[None, None].to(device) for x in (unit[slab], ~hidden[slab]))
        found = harmonic_fill(image, known, stop=stop)
        box = Superpatch(0, (first, 0, 0), (last - first, height, width))
        harmonic_blend.add(box, found[0, 0, own].cpu().numpy(), hidden[first:last])
        if completed:
            found = biharmonic_fill(found, known, stop=stop)
        fill[first:last] = found[0, 0, own].cpu().numpy()
    return fill


@torch.inference_mode()
def _predict_boxes(
    model: Network,
    unit: np.ndarray,
    boxes: list[Superpatch],
    visible: torch.Tensor,
    fill: np.ndarray | None,
    show: bool,
    device: torch.device,
    bf16: bool,
    completed: bool,
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return for each box (D, H, W) predictions of hidden patches, of visible ones if ``show``, and what is hidden.

    Args:
        boxes: of one size.
        visible: (B, n_visible) tokens.
        fill: (D, H, W), what the completion starts from; None where there is none: then of each superpatch by itself.
    """
    size = boxes[0].size
    patch_size = model.config.patch_size
    grid = token_grid(size, patch_size)
    hidden = spread(hidden_tokens(visible, grid), patch_size)
    first = torch.from_numpy(np.stack([extract(unit, box) for box in boxes]))[:, None].to(device)
    low, high = model.windows_hu[0]
    image = first if len(model.windows_hu) == 1 else windowed(first * (high - low) + low, model.windows_hu)
    filled = None
    if fill is not None:
        filled = torch.from_numpy(np.stack([extract(fill, box) for box in boxes]))[:, None].to(device)
    elif hidden.any():
        valid = valid_voxels(torch.tensor([[s.stop for s in box.in_box(unit.shape)] for box in boxes]), first.shape[2:])
        known = (~hidden & valid).to(device)
        filled = harmonic_fill(first, known)
        filled = biharmonic_fill(filled, known) if completed else filled
    with precision_context(device, bf16):
        out = model.reconstruct(image, visible.to(device), filled, completed=completed)
    empty = torch.zeros_like(first)
    predicted = _clipped(composite(empty, out.hidden, out.hidden_patches, patch_size))
    shown = predicted
    if show:
        # without a read-out visible patches are those of the input
        made = first
        if out.visible_patches is not None:
            made = composite(empty, visible.to(device), out.visible_patches, patch_size)
        shown = _clipped(made)
    return list(zip(predicted, shown, hidden[:, 0].numpy(), strict=True))


def _clipped(image: torch.Tensor) -> np.ndarray:
    return image[:, 0].clamp(0, 1).float().cpu().numpy()
