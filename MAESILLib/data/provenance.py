"""What a model was trained on: written by training into its checkpoint, read where it is measured."""

import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from MAESILLib.data.cache import Cache, CacheEntry
from MAESILLib.data.records import hash_of_patient


def describe_data(cache: Cache, entries: tuple[CacheEntry, ...]) -> dict[str, Any]:
    """Return what a checkpoint says of its training volumes."""
    return {
        "fingerprint": cache.fingerprint(),
        "volumes": [e.name for e in entries],
        "sources_sha256": [e.source_sha256 for e in entries],
        "voxels_sha256": sorted({e.voxels_sha256 for e in entries if e.voxels_sha256}),
        "patients_sha256": sorted({e.patient for e in entries}),
        "licences": sorted({e.licence for e in entries if e.licence}),
    }


def trained_on(training: dict[str, Any], entries: tuple[CacheEntry, ...]) -> list[str]:
    """Name the volumes that a checkpoint, or one it was initialised from, was trained on, or their patients.

    Args:
        training: of the checkpoint's description.
    """
    sources, voxels, patients = (_told(training, f"{key}_sha256") for key in ("sources", "voxels", "patients"))
    return [e.name for e in entries if e.source_sha256 in sources or e.voxels_sha256 in voxels or e.patient in patients]


def patients_trained_on(training: dict[str, Any], patients: Iterable[str]) -> list[str] | None:
    """Name the patients whose images a checkpoint was trained on; None where it does not state its patients.

    Args:
        patients: names or pseudonyms.
    """
    known = _told(training, "patients_sha256")
    return [name for name in patients if known & {name, hash_of_patient(name)}] if known else None


def _told(training: dict[str, Any], key: str) -> set[str]:
    """Collect what a checkpoint, and those it was initialised from, state of their data."""
    found: set[str] = set()
    stage: dict[str, Any] | None = training
    while stage:
        found |= set(stage.get("data", {}).get(key, ()))
        stage = stage.get("initialised_from", {}).get("training")
    return found


def source_commit() -> str | None:
    """Return the commit this library is run from, ``+`` where files differ from it; None outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        commit, changes = (
            subprocess.run(
                ["git", "-C", str(root), *command], capture_output=True, text=True, check=True
            ).stdout.strip()
            for command in (["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}+" if changes else commit
