"""The panel in the host."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import slicer
from gui_factory import REPOSITORY


@pytest.fixture
def panel(host: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warm_python: list[str]) -> Iterator[Any]:
    """The opened panel, with workers on one thread and a temporary folder of its own."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    launchers = tmp_path / "launchers"
    launchers.mkdir()
    worker = " ".join(f'"{part}"' for part in warm_python)
    host.install_python_slicer(launchers, f'[ "$3" = MAESILLib ] && shift 3 && exec {worker} "$@"')
    temporary = tmp_path / "temporary files"
    temporary.mkdir()
    was = slicer.app.temporaryPath
    slicer.app.temporaryPath = str(temporary)
    host.add_module_path(REPOSITORY / "MAESIL")
    host.load_module("MAESIL")
    widget = host.open_module("MAESIL").panel
    widget.temporary = temporary
    # asking torch for its devices takes two seconds; tests that need them ask again
    widget.system.stop()
    yield widget
    widget.stop_jobs()
    slicer.app.temporaryPath = was
