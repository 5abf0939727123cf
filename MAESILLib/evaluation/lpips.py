"""LPIPS (Zhang et al. 2018) of axial slices, by the ``lpips`` package.

The package holds the channel weights. AlexNet's are the user's: torchvision's file ``alexnet-owt-7be5be79.pth`` (keys
features.0.weight, ...). Nothing is downloaded.
"""

import pickle
import warnings
from pathlib import Path

import numpy as np
import torch

from MAESILLib.runtime.errors import InputError

TRUNK = "alexnet-owt-7be5be79.pth"
SLICES = 16
"""Slices at once."""


class PerceptualDistance:
    """LPIPS with AlexNet.

    Raises:
        InputError: they are missing or another file, or the package cannot be imported.
    """

    def __init__(self, folder: Path | str, device: torch.device | str = "cpu") -> None:
        path = Path(folder) / TRUNK
        if not path.is_file():
            raise InputError(
                f"no LPIPS weights: {path} is not there", "leave out --lpips, or give the folder that holds them"
            )
        try:
            import lpips
        except (ImportError, RuntimeError) as error:
            # a torchvision for another torch raises RuntimeError
            raise InputError(f"the lpips package cannot be imported ({error})", "pip install 'maesil[lpips]'") from None
        with warnings.catch_warnings():
            # of torchvision, about how the package calls it
            warnings.simplefilter("ignore")
            # AlexNet would be downloaded, unless it is random
            network = lpips.LPIPS(pnet_rand=True, verbose=False)
        try:
            trunk = torch.load(path, map_location="cpu", weights_only=True)
            # features.0.weight is slice1.0.weight here
            names = {name: f"features.{name.partition('.')[2]}" for name in network.net.state_dict()}
            network.net.load_state_dict({name: trunk[key] for name, key in names.items()})
        except (KeyError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
            # torch's own words advise to read it unsafely
            is_unsafe = isinstance(error, pickle.UnpicklingError)
            reason = "it holds more than numbers" if is_unsafe else str(error).splitlines()[0]
            raise InputError(f"{path} is not a file of AlexNet's weights ({reason})", "get it again") from None
        self.device, self.network = device, network.to(device)

    @torch.inference_mode()
    def of_slices(self, reference: np.ndarray, prediction: np.ndarray) -> float:
        """Return the mean distance of the axial slices of two volumes (D, H, W) of intensities in [0, 1]."""
        distances = []
        for first in range(0, len(reference), SLICES):
            pair = (_as_pictures(volume[first : first + SLICES]) for volume in (reference, prediction))
            distances.append(self.network(*(pictures.to(self.device) for pictures in pair)).flatten())
        return float(torch.cat(distances).mean())


def _as_pictures(slices: np.ndarray) -> torch.Tensor:
    """Turn slices (N, H, W) in [0, 1] into grey pictures (N, 3, H, W) in [-1, 1], edges repeated to 32 pixels."""
    short = [max(0, 32 - n) for n in slices.shape[1:]]
    padded = np.pad(np.clip(slices, 0, 1), ((0, 0), (0, short[0]), (0, short[1])), mode="edge")
    return torch.from_numpy(padded.astype(np.float32) * 2 - 1)[:, None].expand(-1, 3, -1, -1)
