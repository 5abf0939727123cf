"""From a volume to a peer's reconstruction, superpatch by superpatch, on the superpatches of MAESIL."""

from __future__ import annotations

import numpy as np
import torch

from MAESILLib.comparison.peers import Peer
from MAESILLib.config import ModelConfig
from MAESILLib.stopping import NEVER, StopRequest
from MAESILLib.superpatch import Blend, extract, partition


@torch.inference_mode()
def reconstruct_by_peer(
    peer: Peer,
    unit: np.ndarray,
    model: ModelConfig,
    *,
    device: torch.device | str = "cpu",
    stop: StopRequest = NEVER,
) -> np.ndarray:
    """Return what a peer makes of a volume (D, H, W) of intensities on the model's grid, clipped to [0, 1].

    Args:
        model: whose superpatches the volume is cut into.

    Raises:
        CancelledError: a stop was asked for.
    """
    shape = (unit.shape[0], unit.shape[1], unit.shape[2])
    device = torch.device(device)
    blend = Blend(shape)
    for box in partition(shape, model.superpatch_size, model.patch_size):
        stop.check()
        image = torch.from_numpy(extract(unit, box))[None, None].to(device)
        made = peer(image).image
        blend.add(box, made[0, 0].float().clamp(0, 1).cpu().numpy(), np.ones(box.size, np.float32))
    return blend.mean()
