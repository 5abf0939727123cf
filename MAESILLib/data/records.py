"""The record of every source, and what follows from all of them: which copy of the same data counts, which patient.

A record says only what was found in its source. What depends on other sources is decided from all records in the
order of the sources, each time they are read: so it does not matter who prepared what, when, or how many at once.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

SAME_PLACE_MM = 0.05
"""Formats round positions."""
SALT = "maesil-patient:"
"""The same everywhere, so that a patient has one pseudonym in all caches, checkpoints and results."""


def hash_of_patient(name: str) -> str:
    """Return the 64-bit pseudonym of a patient: 16 hex digits. Whoever guesses the name can check the guess."""
    return hashlib.sha256((SALT + name).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class CacheEntry:
    """One volume of a cache."""

    name: str
    shape_dhw: tuple[int, int, int]
    patient: str
    """A pseudonym, :func:`hash_of_patient`. Volumes of one patient never lie on both sides of a split."""
    split: str
    """train, val or empty (not decided)."""
    source: str
    source_sha256: str
    foreground_share: float
    """Share of voxels above -500 HU."""
    dataset: str = ""
    licence: str = ""
    crc32: int = 0
    """Check sum (zlib.crc32) of the stored file's bytes."""
    labels: str = ""
    """Path of the source's label map, or of the folder of several, as a manifest or a layout says."""
    voxels_sha256: str = ""
    """Of the source's voxels in HU as it is read, int16 in canonical orientation; empty in older caches."""
    corners_lps: tuple[float, ...] = ()
    """In mm: its first voxel in canonical orientation, and the last ones along D, H and W."""
    is_patient_stated: bool = False
    """A manifest or a layout names the patient. Of two that it names the voxels may be the same."""


@dataclass(frozen=True)
class Record:
    """What became of one source.

    Attributes:
        source: absolute path, links as they are; of a series among others ``PATH#LABEL``.
        order: its place among all sources; of two with the same data, or of one patient, the first counts.
        stamp: size and time of the source when its volume was prepared; empty where it has to be read again.
        entry: the stored volume, if there is one.
        reason: why it was refused; a volume of an earlier state of the source may be stored all the same.
        warnings: what a user should know of the stored volume.
    """

    source: str
    order: int
    stamp: str = ""
    entry: CacheEntry | None = None
    reason: str = ""
    warnings: tuple[str, ...] = ()


def decide(records: Iterable[Record]) -> tuple[tuple[CacheEntry, ...], dict[str, str]]:
    """Return the volumes that make up the cache, by name, and why other sources were refused, in their order."""
    taken: list[CacheEntry] = []
    refused: dict[str, str] = {}
    volumes: dict[str, list[CacheEntry]] = {}
    patients: dict[str, CacheEntry] = {}
    for record in sorted(records, key=lambda r: (r.order, r.source)):
        conflict = _conflict(record.entry, volumes, patients) if record.entry is not None else ""
        if record.reason or conflict:
            refused[record.source] = record.reason or conflict
        if record.entry is not None and not conflict:
            taken.append(record.entry)
    return tuple(sorted(taken, key=lambda entry: entry.name)), refused


def by_hash(entries: Iterable[CacheEntry], volumes: dict[str, list[CacheEntry]]) -> dict[str, list[CacheEntry]]:
    """Enter volumes under the hashes of their voxels and of their sources."""
    for entry in entries:
        for key in filter(None, (entry.voxels_sha256, entry.source_sha256)):
            volumes.setdefault(key, []).append(entry)
    return volumes


def copy_of(entry: CacheEntry, volumes: Mapping[str, list[CacheEntry]]) -> str:
    """Return the reason to refuse a volume that is among ``volumes`` (:func:`by_hash`), or nothing."""
    near = [*volumes.get(entry.voxels_sha256, ()), *volumes.get(entry.source_sha256, ())]
    first = next((other.source for other in near if other.source != entry.source and _is_same(entry, other)), "")
    return f"the same data as {first}" if first else ""


def _is_same(one: CacheEntry, other: CacheEntry) -> bool:
    """Tell whether two volumes have the same voxels at the same places, whatever files they come from."""
    if one.is_patient_stated and other.is_patient_stated and one.patient != other.patient:
        return False
    if not (one.voxels_sha256 and other.voxels_sha256):
        # of an older cache
        return one.source_sha256 == other.source_sha256
    apart = np.abs(np.subtract(one.corners_lps, other.corners_lps)).max()
    return bool(one.voxels_sha256 == other.voxels_sha256 and apart <= SAME_PLACE_MM)


def _conflict(entry: CacheEntry, volumes: dict[str, list[CacheEntry]], patients: dict[str, CacheEntry]) -> str:
    """Return why a volume cannot be used beside the earlier ones, or nothing.

    Args:
        volumes: the earlier ones by hash; extended.
        patients: the first volume of each patient so far; extended.
    """
    if reason := copy_of(entry, volumes):
        return reason
    by_hash([entry], volumes)
    other = patients.setdefault(entry.patient, entry)
    # training takes what has no split
    here, there = entry.split or "train", other.split or "train"
    if here == there:
        return ""
    problem = f"its patient is in '{here}' here, but in '{there}' with {other.source}"
    return f"{problem}. give all volumes of a patient the same split"


def record_of(values: dict[str, Any]) -> Record:
    """Return the record of plain JSON values, as ``dataclasses.asdict`` makes them.

    Raises:
        KeyError, TypeError, ValueError: they are none.
    """
    entry = values["entry"]
    if entry is not None:
        d, h, w = (int(n) for n in entry["shape_dhw"])
        corners = tuple(float(c) for c in entry.get("corners_lps", ()))
        entry = CacheEntry(**{**entry, "shape_dhw": (d, h, w), "crc32": int(entry["crc32"]), "corners_lps": corners})
    warnings = tuple(values.get("warnings", ()))
    return Record(**{**values, "order": int(values["order"]), "entry": entry, "warnings": warnings})
