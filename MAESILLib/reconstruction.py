"""From a volume on the model's grid to its reconstruction, superpatch by superpatch.

Memory holds the volume, four blending volumes, the prior of one slab and the superpatches of one forward pass, however
many there are.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from MAESILLib.device import precision_context
from MAESILLib.first_release import FirstRelease
from MAESILLib.mae.model import patchify, take_tokens, unpatchify, windowed
from MAESILLib.mae.network import Network
from MAESILLib.masking import hidden_tokens
from MAESILLib.plan import Plan, VolumeMask, masks_of_volume, superpatch_masks
from MAESILLib.slab_prior import PriorOfSlabs
from MAESILLib.stopping import NEVER, StopRequest
from MAESILLib.superpatch import Blend, Shape, Superpatch, blending_weights, extract, partition, token_grid


@dataclass(frozen=True)
class Reconstruction:
    """What the model makes of a volume; arrays (D, H, W) on the model's grid.

    Attributes:
        prediction: float32 in [0, 1], the network's own output everywhere: hidden patches predicted
            unseen, in single coverage visible ones auto-encoded.
        hidden: bool, what the mask hid; with complete coverage, what its first mask hid.
        passes: number of masks of each superpatch, the most of any.
        hidden_share: share of hidden patches in one pass, padding included.
        masks: what each pass hid of the whole volume; none where superpatches overlap.
        superpatches: the boxes, in order.
    """

    prediction: np.ndarray
    hidden: np.ndarray
    passes: int
    hidden_share: float
    superpatches: tuple[Superpatch, ...]
    masks: tuple[VolumeMask, ...]


def reconstruct(
    model: Network | FirstRelease,
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
        CancelledError: a stop was asked for.
        InputError: a complete cover of a mask that hides nothing.
    """
    shape = (unit.shape[0], unit.shape[1], unit.shape[2])
    config = model.config
    boxes = partition(shape, config.superpatch_size, config.patch_size, plan.overlap)
    masks = [superpatch_masks(token_grid(box.size, config.patch_size), plan, name, box.index) for box in boxes]
    # with overlap a neighbour shows what this superpatch hides, so there is no mask of the whole volume
    whole = masks_of_volume(shape, boxes, masks, config.patch_size) if plan.overlap == 0 else ()
    prior = None
    if whole and plan.mask.strategy != "none":
        prior = PriorOfSlabs(unit, whole, config.patch_size, torch.device(device), stop)
    hidden_blend, visible_blend = Blend(shape), Blend(shape)
    hidden_once = np.zeros(shape, bool)
    done, total = 0, sum(len(of_box) for of_box in masks)
    for group, number in _in_order(boxes, masks, batch_size):
        stop.check()
        visible = torch.stack([masks[box.index][number] for box in group])
        filled = None if prior is None else torch.cat([prior.of_box(box, number) for box in group])
        predictions = _predict_boxes(
            model, unit, group, visible, filled, plan.coverage == "single", torch.device(device), bf16, completed
        )
        for box, (predicted, shown, hidden) in zip(group, predictions, strict=True):
            weights = blending_weights(box.size) if plan.overlap > 0 else np.ones(box.size, np.float32)
            hidden_blend.add(box, predicted, weights * hidden)
            if plan.coverage == "single":
                visible_blend.add(box, shown, weights * ~hidden)
            if number == 0:
                hidden_once[box.in_volume(shape)] |= hidden[box.in_box(shape)]
        done += len(group)
        if progress is not None:
            progress(done / total)
    tokens = sum(_tokens(box.size, config.patch_size) for box in boxes)
    visible_tokens = sum(one.shape[1] for one in masks)
    prediction = hidden_blend.mean(visible_blend.mean())
    passes = max(len(one) for one in masks)
    return Reconstruction(prediction, hidden_once, passes, 1 - visible_tokens / tokens, tuple(boxes), whole)


def _in_order(
    boxes: list[Superpatch], masks: list[torch.Tensor], batch_size: int
) -> Iterator[tuple[list[Superpatch], int]]:
    """Yield superpatches of one forward pass with the number of their mask, slab by slab and mask by mask.

    A slab's prior under one mask is then made once and need not be kept.
    """
    for _, group in itertools.groupby(boxes, key=lambda box: (box.start[0], box.size[0])):
        slab = list(group)
        for number in range(max(len(masks[box.index]) for box in slab)):
            alike: dict[tuple[Shape, int], list[Superpatch]] = {}
            for box in slab:
                if number < len(masks[box.index]):
                    alike.setdefault((box.size, masks[box.index].shape[1]), []).append(box)
            for same in alike.values():
                for first in range(0, len(same), batch_size):
                    yield same[first : first + batch_size], number


def _tokens(size: Shape, patch_size: Shape) -> int:
    d, h, w = token_grid(size, patch_size)
    return d * h * w


@torch.inference_mode()
def _predict_boxes(
    model: Network | FirstRelease,
    unit: np.ndarray,
    boxes: list[Superpatch],
    visible: torch.Tensor,
    filled: torch.Tensor | None,
    show: bool,
    device: torch.device,
    bf16: bool,
    completed: bool,
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return for each box (D, H, W) predictions of hidden patches, of visible ones if ``show``, and what is hidden.

    Args:
        boxes: of one size.
        visible: (B, n_visible) tokens.
        filled: (B, 1, D, H, W) the prior, if the model has one and it is not its own.
    """
    size = boxes[0].size
    patch_size = model.config.patch_size
    first = torch.from_numpy(np.stack([extract(unit, box) for box in boxes]))[:, None].to(device)
    low, high = model.windows_hu[0]
    image = first if len(model.windows_hu) == 1 else windowed(first * (high - low) + low, model.windows_hu)
    with precision_context(device, bf16):
        out = model.reconstruct(image, visible.to(device), filled, completed=completed)
    grid = token_grid(size, patch_size)
    predicted = _laid_out(out.hidden, out.hidden_patches, grid, patch_size)
    # without a read-out visible patches are those of the input
    visible_patches = out.visible_patches
    if visible_patches is None:
        visible_patches = take_tokens(patchify(first, patch_size), visible.to(device))
    shown = _laid_out(visible.to(device), visible_patches, grid, patch_size)
    hidden = [_hidden_voxels(one, size, patch_size) for one in visible]
    return list(zip(predicted, shown, hidden, strict=True))


def _laid_out(index: torch.Tensor, patches: torch.Tensor, grid: Shape, patch_size: Shape) -> np.ndarray:
    """Lay patches (B, N, P) of the tokens ``index`` into boxes (B, D, H, W), clipped to [0, 1]; the rest is 0."""
    tokens = patches.new_zeros(len(patches), grid[0] * grid[1] * grid[2], patches.shape[-1])
    index = index[..., None].expand(-1, -1, patches.shape[-1])
    boxes = unpatchify(tokens.scatter(1, index, patches.clamp(0, 1)), grid, patch_size)
    made: np.ndarray = boxes[:, 0].float().cpu().numpy()
    return made


def _hidden_voxels(visible: torch.Tensor, size: Shape, patch_size: Shape) -> np.ndarray:
    """Return the hidden voxels (D, H, W) of a superpatch of ``size`` under one mask (n_visible,)."""
    grid = token_grid(size, patch_size)
    return VolumeMask(hidden_tokens(visible[None], grid)[0].numpy(), size, patch_size).voxels()
