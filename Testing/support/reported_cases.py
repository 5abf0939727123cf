"""Inputs that people have reported, which lie beside the repository, and the body that all of them show."""

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from volume_factory import SHARED_CT

from MAESILLib.ct.volume import CTVolume

CASES = SHARED_CT.parent / "cases"


def case_inputs() -> list[Path]:
    """Return the files and folders of all cases."""
    return sorted(CASES.glob("[0-9]*/in/*"))


def case_id(path: Path) -> str:
    """Return the number of an input's case, and its name."""
    return f"{path.parts[-3][:2]}/{path.name[:40]}"


def truth(volume: CTVolume) -> NDArray[np.float64]:
    """Return HU (D, H, W) by the body's own function of the place."""
    sys.path.insert(0, str(CASES))
    from common import hu

    k, j, i = np.meshgrid(*(np.arange(n) for n in volume.hu.shape), indexing="ij")
    places = np.stack([i, j, k, np.ones_like(i)], -1) @ volume.geometry.ijk_to_lps().T
    return hu(-places[..., 0], -places[..., 1], places[..., 2])
