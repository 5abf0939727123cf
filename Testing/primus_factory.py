"""Primus (Wald et al. 2025, arXiv 2503.01835) as dynamic_network_architectures builds it, to compare with."""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType

import pytest
import torch

OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_LIBRARIES: list[torch.library.Library] = []
"""What is defined in one is defined for as long as it lives."""


def primus_module() -> ModuleType:
    """Return ``dynamic_network_architectures.architectures.primus``; a test skips without it, but fails in CI."""
    try:
        _import_torchvision()
        return importlib.import_module("dynamic_network_architectures.architectures.primus")
    except ImportError as error:
        reason = f"no {error.name}: pip install --no-deps -c constraints.txt as the Makefile does"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)


def _import_torchvision() -> None:
    """Import torchvision, which timm needs; its wheel for CUDA lacks its operators beside a torch for the CPU."""
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
