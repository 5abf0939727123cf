"""LPIPS (Zhang et al. 2018) of axial slices, where its weights are at hand; they do not ship with the library.

The distance of two pictures is read from the features of AlexNet: each feature vector is divided by its length, and
the squared difference is weighted by channel and averaged over places and summed over layers. Weights are two files:

    alexnet-owt-7be5be79.pth   torchvision's AlexNet (keys features.0.weight, ...)
    alex.pth                   the channel weights of LPIPS 0.1 (keys lin0.model.1.weight, ...)
"""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from MAESILLib.runtime.errors import InputError

TRUNK, LINEAR = "alexnet-owt-7be5be79.pth", "alex.pth"
LAYERS = ((0, 4, 2), (3, 1, 2), (6, 1, 1), (8, 1, 1), (10, 1, 1))
"""Place among AlexNet's features, stride and padding of each convolution; the second and third follow a pooling."""
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
"""What LPIPS makes of an image in [-1, 1] before AlexNet sees it."""
SLICES = 16
"""Slices at once."""


class PerceptualDistance:
    """LPIPS with AlexNet.

    Args:
        folder: holds the two files.

    Raises:
        InputError: one is missing or another file.
    """

    def __init__(self, folder: Path | str, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        trunk, linear = (_weights(Path(folder) / name, self.device) for name in (TRUNK, LINEAR))
        try:
            self.convolutions = [
                (trunk[f"features.{n}.weight"], trunk[f"features.{n}.bias"], stride, padding)
                for n, stride, padding in LAYERS
            ]
            self.channel_weights = [linear[f"lin{n}.model.1.weight"] for n in range(len(LAYERS))]
        except KeyError as error:
            raise InputError(f"{folder} holds other weights than LPIPS needs: no {error}", f"see {__name__}") from None

    def of_slices(self, reference: np.ndarray, prediction: np.ndarray) -> float:
        """Return the mean distance of the axial slices of two volumes (D, H, W) of intensities in [0, 1]."""
        distances = [
            self.of_images(
                _as_pictures(reference[first : first + SLICES]), _as_pictures(prediction[first : first + SLICES])
            )
            for first in range(0, len(reference), SLICES)
        ]
        return float(torch.cat(distances).mean())

    @torch.inference_mode()
    def of_images(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """Return the distances (N,) of images (N, 3, H, W) in [-1, 1]; each side has 31 pixels at least."""
        total = torch.zeros(len(first))
        pairs = zip(self._features(first), self._features(second), self.channel_weights, strict=True)
        for a, b, weight in pairs:
            total += F.conv2d((_normalised(a) - _normalised(b)).square(), weight).mean((1, 2, 3)).cpu()
        return total

    def _features(self, images: torch.Tensor) -> list[torch.Tensor]:
        shift, scale = (torch.tensor(v, device=self.device)[:, None, None] for v in (SHIFT, SCALE))
        x = (images.to(self.device) - shift) / scale
        found = []
        for number, (weight, bias, stride, padding) in enumerate(self.convolutions):
            if number in (1, 2):
                x = F.max_pool2d(x, 3, 2)
            x = F.relu(F.conv2d(x, weight, bias, stride, padding))
            found.append(x)
        return found


def _normalised(features: torch.Tensor) -> torch.Tensor:
    return features / (features.square().sum(1, keepdim=True).sqrt() + 1e-10)


def _as_pictures(slices: np.ndarray) -> torch.Tensor:
    """Turn slices (N, H, W) in [0, 1] into grey pictures (N, 3, H, W) in [-1, 1], edges repeated to 32 pixels."""
    short = [max(0, 32 - n) for n in slices.shape[1:]]
    padded = np.pad(np.clip(slices, 0, 1), ((0, 0), (0, short[0]), (0, short[1])), mode="edge")
    return torch.from_numpy(padded.astype(np.float32) * 2 - 1)[:, None].expand(-1, 3, -1, -1)


def _weights(path: Path, device: torch.device) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise InputError(
            f"no LPIPS weights: {path} is not there", "leave out --lpips, or give the folder that holds them"
        )
    try:
        found = torch.load(path, map_location=device, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise InputError(f"{path} is not a file of weights ({str(error).splitlines()[0]})", "get it again") from None
    return {key: value.float() for key, value in found.items()}
