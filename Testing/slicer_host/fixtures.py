"""pytest fixtures: `from slicer_host.fixtures import host`."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from . import Host, boot
from .probe import write_module


@pytest.fixture
def host() -> Iterator[Host]:
    """A fresh host; the test fails if anything was collected in host.errors that it did not clear."""
    booted = boot()
    yield booted
    booted.process_events()
    collected = list(booted.errors)
    booted.reset()
    if collected:
        pytest.fail("collected by the host:\n" + "\n".join(collected))


@pytest.fixture
def qt(host: Host) -> Any:
    """Slicer's module, which is there when the host is."""
    return importlib.import_module("qt")


@pytest.fixture
def probe(host: Host, tmp_path: Path) -> Any:
    """The widget of a small module that is open in the host."""
    write_module(tmp_path / "Probe")
    host.add_module_path(tmp_path / "Probe")
    host.load_module("Probe")
    return host.open_module("Probe")
