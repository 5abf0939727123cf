"""The masked autoencoder together with what reads it, as a checkpoint holds them."""

import math
from dataclasses import dataclass

import torch
from torch import nn

from MAESILLib.config import ModelConfig, Triple, Window
from MAESILLib.mae.checkpoint_info import PARTS
from MAESILLib.mae.completion import Completion, ReadOut
from MAESILLib.mae.masking import hidden_tokens
from MAESILLib.mae.model import MaskedAutoencoder, Prediction, composite, patchify, take_tokens, token_grid


@dataclass(frozen=True)
class Reconstructed:
    """Patches of P voxels, intensities of the first window, not clipped.

    Attributes:
        hidden: (B, N) int64, sorted hidden tokens.
        hidden_patches: (B, N, P).
        visible_patches: (B, M, P), auto-encoded; None without a read-out.
    """

    hidden: torch.Tensor
    hidden_patches: torch.Tensor
    visible_patches: torch.Tensor | None


class Network(nn.Module):
    """Masked autoencoder, completion and read-out.

    Args:
        parts: which of :data:`MAESILLib.mae.checkpoint_info.PARTS` there are.
    """

    def __init__(self, config: ModelConfig, windows_hu: tuple[Window, ...], parts: tuple[str, ...] = PARTS) -> None:
        super().__init__()
        self.config, self.windows_hu = config, windows_hu
        # first, so that its weights for a seed do not depend on the rest
        self.core = MaskedAutoencoder(config, len(windows_hu))
        self.completion = Completion(config, len(windows_hu)) if "completion" in parts else None
        self.readout = ReadOut(config) if "readout" in parts else None

    def reconstruct(
        self, image: torch.Tensor, visible: torch.Tensor, filled: torch.Tensor | None, *, completed: bool = True
    ) -> Reconstructed:
        """Predict hidden patches and auto-encode visible ones.

        Args:
            image: (B, windows, D, H, W) in [0, 1]; every side a multiple of the patch.
            visible: (B, M) int64, sorted visible tokens.
            filled: (B, 1, D, H, W), visible voxels of the first window and the biharmonic fill of the hidden ones; None
                where nothing is hidden.
            completed: let the completion, if there is one, predict the hidden patches; else the decoder.
        """
        prediction = self.core(image, visible)
        patches = prediction.patches[..., : math.prod(self.config.patch_size)]
        if completed and self.completion is not None and filled is not None:
            whole = self.complete(image, visible, prediction, filled)
            patches = take_tokens(patchify(whole, self.config.patch_size), prediction.decoded)
        shown = None if self.readout is None else self.readout(prediction.encoded).float()
        return Reconstructed(prediction.decoded, patches, shown)

    def complete(
        self, image: torch.Tensor, visible: torch.Tensor, prediction: Prediction, filled: torch.Tensor
    ) -> torch.Tensor:
        """Return the completion (B, 1, D, H, W) of a prediction of all hidden tokens; its gradient ends here."""
        assert self.completion is not None
        patch_size = self.config.patch_size
        picture = composite(image, prediction.decoded, prediction.patches.detach().clamp(0, 1), patch_size)
        is_visible = ~hidden_tokens(visible, token_grid(image, patch_size))
        return self.completion(filled.detach(), picture, is_visible).float()

    def forward(
        self,
        image: torch.Tensor,
        visible: torch.Tensor,
        decoded: torch.Tensor,
        filled: torch.Tensor | None = None,
        crops: slice = slice(None),
        offset: Triple = (0, 0, 0),
    ) -> tuple[Prediction, torch.Tensor | None, torch.Tensor | None]:
        """Do what a training step needs.

        Args:
            decoded: (B, N) hidden tokens that the core decodes.
            filled: (b, 1, D, H, W) biharmonic fill of those images that are completed.
            crops: which ones.

        Returns:
            the core's prediction, the completion (b, 1, D, H, W), and the read-out (B, M, P); None for a part that is
            not there.
        """
        prediction = self.core(image, visible, decoded, offset)
        completion = None
        if self.completion is not None and filled is not None:
            grid = token_grid(image, self.config.patch_size)
            with torch.no_grad():
                whole = self.core.decode([x[crops] for x in prediction.encoded], visible[crops], grid, None, offset)
            completion = self.complete(image[crops], visible[crops], whole, filled)
        readout = None if self.readout is None else self.readout([x.detach() for x in prediction.encoded]).float()
        return prediction, completion, readout
