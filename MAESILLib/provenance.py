"""What a model was trained on: written by training into its checkpoint, read where it is measured."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from MAESILLib.data.cache import Cache, CacheEntry

SALT = "maesil-patient:"
"""The same everywhere, so that a patient has one hash in all checkpoints and results."""


def describe_data(cache: Cache, entries: tuple[CacheEntry, ...]) -> dict[str, Any]:
    """Return what a checkpoint says of its training volumes; patients only as hashes."""
    return {
        "fingerprint": cache.fingerprint(),
        "volumes": [e.name for e in entries],
        "sources_sha256": [e.source_sha256 for e in entries],
        "patients_sha256": sorted({hash_of_patient(e) for e in entries}),
        "licences": sorted({e.licence for e in entries if e.licence}),
    }


def hash_of_patient(entry: CacheEntry) -> str:
    """Return the 64-bit pseudonym of a patient: 16 hex digits. Whoever guesses the name can check the guess."""
    return _hash(SALT + entry.patient)


def trained_on(training: dict[str, Any], entries: tuple[CacheEntry, ...]) -> list[str]:
    """Name the volumes that a checkpoint, or one it was initialised from, was trained on, or their patients.

    Args:
        training: of the checkpoint's description.
    """
    sources, patients = _told(training, "sources_sha256"), _told(training, "patients_sha256")
    return [e.name for e in entries if e.source_sha256 in sources or not patients.isdisjoint(_hashes(e.patient))]


def patients_trained_on(training: dict[str, Any], patients: Iterable[str]) -> list[str] | None:
    """Name the patients whose images a checkpoint was trained on; None where it does not state its patients."""
    known = _told(training, "patients_sha256")
    return [name for name in patients if not known.isdisjoint(_hashes(name))] if known else None


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _hashes(patient: str) -> set[str]:
    """Return what checkpoints may call a patient; the first release had no salt."""
    return {_hash(SALT + patient), _hash(patient)}


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
    root = Path(__file__).resolve().parents[1]
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
