"""Primus (Wald et al. 2025, arXiv 2503.01835) as dynamic_network_architectures builds it, to compare with."""

from types import ModuleType

from torchvision_cpu import imported


def primus_module() -> ModuleType:
    """Return ``dynamic_network_architectures.architectures.primus``; a test skips without it, but fails in CI."""
    return imported("dynamic_network_architectures.architectures.primus")
