"""What is hidden where in a volume: a plan, the masks of its superpatches, and those of the whole volume."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from MAESILLib.config import COVERAGE_NAMES
from MAESILLib.mae.masking import MaskSpec, complete_cover, draw_visible, generator_for, hidden_tokens
from MAESILLib.mae.superpatch import Shape, Superpatch, token_grid
from MAESILLib.runtime.errors import InputError


@dataclass(frozen=True)
class Plan:
    """How a volume is to be reconstructed.

    Attributes:
        coverage: ``single``, one mask a superpatch; or ``complete``, masks that hide every patch at least
            once, each patch predicted from the passes that hid it alone.
        overlap: share of a superpatch's length that neighbours have in common.
        seed: with the volume's name and the superpatch's number it decides every mask.
        masks: of each volume, its superpatches' masks (passes, n_visible), in place of those of the seed.
        painted: name of the label map whose tokens ``masks`` hides too, see :mod:`MAESILLib.reconstruct.painted`.
    """

    mask: MaskSpec = field(default_factory=MaskSpec)
    coverage: str = "single"
    overlap: float = 0.0
    seed: int = 0
    masks: Mapping[str, list[torch.Tensor]] | None = field(default=None, repr=False, compare=False)
    painted: str = ""

    def __post_init__(self) -> None:
        if self.coverage not in COVERAGE_NAMES:
            raise InputError(f"unknown coverage '{self.coverage}'", f"choose one of {', '.join(COVERAGE_NAMES)}")
        if self.coverage == "complete" and self.mask.strategy == "none":
            raise InputError("mask 'none' hides nothing, so it has no complete coverage", "choose coverage 'single'")

    @property
    def hides(self) -> bool:
        """Whether anything is hidden at all: by the strategy, or because it was painted."""
        return self.mask.strategy != "none" or bool(self.painted)


def superpatch_masks(grid: Shape, plan: Plan, volume: str, index: int) -> torch.Tensor:
    """Return the masks (K, n_visible) of superpatch ``index``, one for each pass."""
    if plan.masks is not None:
        return plan.masks[volume][index]
    generator = generator_for(plan.seed, volume, index)
    if plan.coverage == "complete":
        return complete_cover(grid, plan.mask, generator)
    return draw_visible(grid, plan.mask, 1, generator)


def masks_of_volume(
    shape: Shape, boxes: list[Superpatch], masks: list[torch.Tensor], patch_size: Shape
) -> Iterator[np.ndarray]:
    """Yield the voxels (D, H, W) that each pass over a volume hides, bool; for superpatches that do not overlap.

    Args:
        boxes: the superpatches of a volume of ``shape``.
        masks: of each box (K, n_visible), one row for each pass. Boxes that need fewer passes repeat their first.
    """
    patches = np.ix_(*(np.arange(n) // p for n, p in zip(shape, patch_size, strict=True)))
    for number in range(max(len(of_box) for of_box in masks)):
        tokens = np.zeros([-(-n // p) for n, p in zip(shape, patch_size, strict=True)], bool)
        for box, of_box in zip(boxes, masks, strict=True):
            one = of_box[number if number < len(of_box) else 0][None]
            begin, grid = token_grid(box.start, patch_size), token_grid(box.size, patch_size)
            place = tuple(slice(b, b + n) for b, n in zip(begin, grid, strict=True))
            tokens[place] = hidden_tokens(one, grid)[0].numpy()
        yield tokens[patches]
