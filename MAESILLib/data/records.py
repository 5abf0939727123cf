"""What became of every source, and what follows for the cache: which copy of the same data counts, which patient.

A record says only what was found in its own source. What depends on other sources is decided from all records in
the order of the sources, each time they are read: so it does not matter who prepared what, when, or how many at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

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


@dataclass(frozen=True)
class Refusal:
    """An input that was not taken into the cache, and why."""

    source: str
    reason: str


@dataclass(frozen=True)
class Record:
    """What became of one source.

    Attributes:
        source: absolute path.
        order: its place among all sources; of two with the same data the first counts.
        stamp: size and time of the source when it was looked at; empty where it has to be looked at again.
        sha256: of the source where it was read but not stored, because the same data are in the cache already.
        entry: the stored volume, if there is one.
        reason: why it was refused; a volume of an earlier state of the source may be there all the same.
    """

    source: str
    order: int
    stamp: str = ""
    sha256: str = ""
    entry: CacheEntry | None = None
    reason: str = ""


@dataclass(frozen=True)
class Decision:
    """What follows from all records together.

    Attributes:
        taken: the cache's volumes, in the order of their names.
        set_aside: stored volumes whose patient lies on the other side of the split.
        duplicates: stored volumes of data that an earlier source has too.
        refused: sources and why, in the order of the sources.
    """

    taken: list[Record] = field(default_factory=list)
    set_aside: list[Record] = field(default_factory=list)
    duplicates: list[Record] = field(default_factory=list)
    refused: list[tuple[Record, str]] = field(default_factory=list)


def decide(records: Iterable[Record]) -> Decision:
    """Decide which volumes make up the cache.

    Duplicates are settled before patients: then what a part of the records decides about duplicates holds for the
    whole too, and a duplicate's file may go.
    """
    ordered = sorted(records, key=lambda r: (r.order, r.source))
    first: dict[str, Record] = {}
    for record in ordered:
        if record.entry is not None:
            first.setdefault(record.entry.source_sha256, record)
    sides: dict[str, CacheEntry] = {}
    decision = Decision()
    for record in ordered:
        _decide_one(record, first, sides, decision)
    decision.taken.sort(key=lambda r: r.entry.name if r.entry else "")
    return decision


def _decide_one(record: Record, first: dict[str, Record], sides: dict[str, CacheEntry], decision: Decision) -> None:
    entry = record.entry
    if record.reason:
        decision.refused.append((record, record.reason))
    if entry is None:
        if not record.reason:
            decision.refused.append((record, _same_data(first.get(record.sha256))))
        return
    if first[entry.source_sha256] is not record:
        decision.duplicates.append(record)
        decision.refused.append((record, _same_data(first[entry.source_sha256])))
        return
    other = sides.setdefault(entry.patient, entry)
    # what has no split is trained on
    here, there = entry.split or "train", other.split or "train"
    if here == there:
        decision.taken.append(record)
        return
    decision.set_aside.append(record)
    problem = f"its patient is in '{here}' here, but in '{there}' with {other.source}"
    decision.refused.append((record, f"{problem}. give all volumes of a patient the same split"))


def _same_data(winner: Record | None) -> str:
    if winner is None:
        return "its data came from another source, which has changed. run maesil prepare again"
    return f"the same data as {winner.source}"


def without_volume(record: Record) -> Record:
    """Return the record of a duplicate whose stored volume goes."""
    assert record.entry is not None
    return replace(record, sha256=record.entry.source_sha256, entry=None)


def to_json(record: Record) -> dict[str, Any]:
    """Return a record as plain JSON values."""
    return asdict(record)


def from_json(values: dict[str, Any]) -> Record:
    """Return the record of :func:`to_json`.

    Raises:
        KeyError, TypeError, ValueError: it is none.
    """
    entry = values["entry"]
    return Record(**{**values, "order": int(values["order"]), "entry": None if entry is None else entry_of(entry)})


def entry_of(values: dict[str, Any]) -> CacheEntry:
    """Return the entry of plain JSON values.

    Raises:
        KeyError, TypeError, ValueError: they are none.
    """
    d, h, w = (int(n) for n in values["shape_dhw"])
    return CacheEntry(**{**values, "shape_dhw": (d, h, w), "crc32": int(values["crc32"])})
