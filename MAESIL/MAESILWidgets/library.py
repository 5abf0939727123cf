"""Where MAESILLib and its resources lie, in a packaged extension and in a checkout."""

from __future__ import annotations

import sys
from pathlib import Path

MODULE_FOLDER = Path(__file__).resolve().parent.parent
"""The folder of MAESIL.py."""


def library_parent() -> Path:
    """Return the folder that holds MAESILLib: what PYTHONPATH of a worker needs.

    Raises:
        FileNotFoundError: the installation is incomplete.
    """
    for folder in (MODULE_FOLDER, MODULE_FOLDER.parent):
        if (folder / "MAESILLib" / "__init__.py").is_file():
            return folder
    raise FileNotFoundError(f"MAESILLib is missing beside {MODULE_FOLDER}: install the MAESIL extension again")


def make_importable() -> None:
    """Let ``import MAESILLib`` work in Slicer's process."""
    folder = str(library_parent())
    if folder not in sys.path:
        sys.path.append(folder)


def resource(relative: str) -> str:
    """Return the path of a file in Resources."""
    make_importable()
    from MAESILLib.resources import resource_path

    return str(resource_path(relative))
