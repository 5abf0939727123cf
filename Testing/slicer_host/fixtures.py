"""pytest fixtures: `from slicer_host.fixtures import host`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from . import Host, boot


@pytest.fixture
def host() -> Iterator[Host]:
    """A fresh host; the test fails if anything was collected in host.errors that it did not clear."""
    booted = boot()
    booted.reset()
    yield booted
    booted.process_events()
    collected = list(booted.errors)
    booted.reset()
    if collected:
        pytest.fail("collected by the host:\n" + "\n".join(collected))
