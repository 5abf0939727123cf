"""Where MAESILLib lies, in a packaged extension and in a checkout."""

from __future__ import annotations

from pathlib import Path

MODULE_FOLDER = Path(__file__).resolve().parents[2]
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
