"""The Extensions Index refuses an extension whose full clone exceeds 100 MiB."""

import subprocess
from pathlib import Path

from cli_factory import REPOSITORY

MOST_MIB = 92
"""Leaves room for one more checkpoint, twice: in the work tree and in the history."""


def test_a_full_clone_is_small(tmp_path: Path) -> None:
    """Every file counts, ``.git`` included."""
    git = ["git", "-C", str(REPOSITORY)]
    shallow = subprocess.run([*git, "rev-parse", "--is-shallow-repository"], capture_output=True, text=True, check=True)
    assert shallow.stdout.strip() == "false", "the history is missing: fetch it with git fetch --unshallow"
    subprocess.run(["git", "clone", "-q", "--no-local", str(REPOSITORY), str(tmp_path / "clone")], check=True)
    size = sum(path.lstat().st_size for path in (tmp_path / "clone").rglob("*") if not path.is_dir())
    assert size <= MOST_MIB * 2**20, f"{size / 2**20:.1f} MiB"
