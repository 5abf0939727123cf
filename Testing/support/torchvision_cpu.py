"""torchvision, which timm imports, beside a torch for the CPU: its wheel is for CUDA and lacks its operators there."""

from __future__ import annotations

import importlib
import sys

import torch

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
