"""The prior of a whole volume, for its superpatches one after the other."""

from __future__ import annotations

import numpy as np
import torch

from MAESILLib.plan import VolumeMask
from MAESILLib.prior import THOROUGH, smooth_fill
from MAESILLib.stopping import NEVER, StopRequest
from MAESILLib.superpatch import Shape, Superpatch, extract

HALO = 2
"""Patches above and below a superpatch whose visible voxels its prior draws on."""


class PriorOfSlabs:
    """The prior of a volume, made slab by slab: a slab is as thick as a superpatch and as wide as the volume.

    A superpatch alone would be filled as if nothing lay beyond its faces, and its borders would show. The
    slab's prior draws on the visible voxels of a few patches above and below it, too.

    Args:
        unit: (D, H, W) intensities.
        masks: what each pass hides.
    """

    def __init__(
        self,
        unit: np.ndarray,
        masks: tuple[VolumeMask, ...],
        patch_size: Shape,
        device: torch.device,
        stop: StopRequest = NEVER,
    ) -> None:
        self.unit, self.masks, self.patch_size, self.device, self.stop = unit, masks, patch_size, device, stop
        self.latest: tuple[tuple[int, int, int], torch.Tensor] | None = None

    def of_box(self, box: Superpatch, number: int) -> torch.Tensor:
        """Return the prior (1, 1, D, H, W) of a superpatch under pass ``number``.

        Raises:
            CancelledError: a stop was asked for.
        """
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
        seen = torch.from_numpy(known)[None, None].to(self.device)
        return smooth_fill(image, seen, self.patch_size, THOROUGH, self.stop)
