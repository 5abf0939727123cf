"""What a linear code of the same size reaches without learning anything: the reference of the comparison."""

from __future__ import annotations

import torch

from MAESILLib.comparison.peers import Peer
from MAESILLib.config import ModelConfig
from MAESILLib.cosines import cosines

COSINES = "cosines"


class LowestCosines(Peer):
    """Keeps the lowest cosines of each patch (DCT-II), as many as MAESIL has numbers for it.

    Where MAESIL has a direct head (``model.direct_head``), its auto-encoding starts there, so this says what its
    training added, or took away.
    """

    def __init__(self, model: ModelConfig) -> None:
        super().__init__(torch.nn.Identity())
        self.patch_size = model.patch_size
        basis, _ = cosines(model.patch_size)
        self.register_buffer("basis", basis[: model.encoder_width].float())

    def reconstructed(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the image with the higher cosines of each patch left out; sides are multiples of the patch's."""
        d, h, w = self.patch_size
        count = [n // p for n, p in zip(image.shape[2:], self.patch_size, strict=True)]
        grid = image.reshape(len(image), 1, count[0], d, count[1], h, count[2], w)
        patches = grid.permute(0, 1, 2, 4, 6, 3, 5, 7).flatten(5)
        basis = torch.as_tensor(self.basis)
        kept = (patches @ basis.T @ basis).unflatten(5, (d, h, w))
        return kept.permute(0, 1, 2, 5, 3, 6, 4, 7).reshape(image.shape), image.new_zeros(())
