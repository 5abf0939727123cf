"""Primus and LPIPS. Their packages import torchvision, whose CUDA wheel lacks operators beside a torch for the CPU."""

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

PRIMUS = "dynamic_network_architectures.architectures.primus"
"""Primus (Wald et al. 2025, arXiv 2503.01835) as it is built there, to compare with."""
OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_LIBRARIES: list[torch.library.Library] = []
"""An operator exists as long as its library."""


def import_torchvision() -> None:
    """Import torchvision; where its operators are missing, declare those that the import needs.

    Raises:
        ImportError: it is not installed.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for operator in OPERATORS:
            library.define(operator)
        _LIBRARIES.append(library)
        importlib.import_module("torchvision")


def imported(name: str) -> ModuleType:
    """Return a module that imports torchvision; a test skips without it, but fails in CI."""
    import pytest

    try:
        import_torchvision()
        return importlib.import_module(name)
    except ImportError as error:
        reason = f"no {error.name}: pip install --no-deps -c constraints.txt as the Makefile does"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)


def write_lpips_weights(folder: Path) -> nn.Sequential:
    """Write a file for the features of AlexNet (Krizhevsky 2014) and return them; a test skips without lpips."""
    imported("lpips")
    torch.manual_seed(0)
    # without the classifier, whose 55 million weights take a while to draw
    with torch.device("meta"):
        trunk = imported("torchvision.models").alexnet(weights=None).features
    for layer in trunk.to_empty(device="cpu"):
        if isinstance(layer, nn.Conv2d):
            layer.reset_parameters()
    torch.save(
        {f"features.{key}": value for key, value in trunk.state_dict().items()}, folder / "alexnet-owt-7be5be79.pth"
    )
    return trunk
