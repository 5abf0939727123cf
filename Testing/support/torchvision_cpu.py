"""torchvision, which timm and lpips import, beside a torch for the CPU: its wheel for CUDA lacks operators there."""

import importlib
import os
import sys
from types import ModuleType

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
