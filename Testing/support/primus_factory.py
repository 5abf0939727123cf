"""Primus (Wald et al. 2025, arXiv 2503.01835) as dynamic_network_architectures builds it, to compare with."""

from __future__ import annotations

import importlib
import os
from types import ModuleType

import pytest
from torchvision_cpu import import_torchvision


def primus_module() -> ModuleType:
    """Return ``dynamic_network_architectures.architectures.primus``; a test skips without it, but fails in CI."""
    try:
        import_torchvision()
        return importlib.import_module("dynamic_network_architectures.architectures.primus")
    except ImportError as error:
        reason = f"no {error.name}: pip install --no-deps -c constraints.txt as the Makefile does"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
