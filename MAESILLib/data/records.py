"""The record of every source, and what follows from all of them: which copy of the same data counts, which patient.

A record says only what was found in its source. What depends on other sources is decided from all records in the
order of the sources, each time they are read: so it does not matter who prepared what, when, or how many at once.
No record has a path: sources are known by a hash, volumes by a number or by what a manifest calls them.
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

SAME_PLACE_MM = 0.05
"""Formats round positions."""
PART = r"[^\s:;,'\")\\/]"
PATH = re.compile(
    # from its root, or below what has become "it"; of a name with blanks a later part has a slash again
    rf"(?:(?<!\w)(?:[\\/]+\?\\)?(?:[A-Za-z]:)?|\bit)(?:[\\/]+{PART}+)+"
    rf"(?:(?: {PART}+)? {PART}*(?:[\\/]+{PART}+)+)*[\\/]?"
    r"|(?<![\w.-])[\w.-]+\.(?:dcm|ima|nii(?:\.gz)?|nrrd|nhdr|mha|mhd|hdr|img|z?raw(?:\.gz)?)\b",
    re.IGNORECASE,
)
UID = re.compile(r"\b\d+(?:\.\d+){4,}\b")


def hash_of(kind: str, text: str) -> str:
    """Return a salted hash of 64 bits as 16 hex digits. Whoever guesses the text can check the guess."""
    # the same everywhere, so that a patient has one pseudonym in all caches, checkpoints and results
    return hashlib.sha256(f"maesil-{kind}:{text}".encode("utf-8", "surrogateescape")).hexdigest()[:16]


def hash_of_patient(name: str) -> str:
    """Return the pseudonym of a patient."""
    return hash_of("patient", name)


@dataclass(frozen=True)
class CacheEntry:
    """One volume of a cache."""

    name: str
    shape_dhw: tuple[int, int, int]
    patient: str
    """A pseudonym, :func:`hash_of_patient`. Volumes of one patient never lie on both sides of a split."""
    split: str
    """train, val or empty (not decided)."""
    source_sha256: str
    foreground_share: float
    """Share of voxels above -500 HU."""
    dataset: str = ""
    licence: str = ""
    crc32: int = 0
    """Check sum (zlib.crc32) of the stored file's bytes."""
    voxels_sha256: str = ""
    """Of the source's voxels in HU as it is read, int16 in canonical orientation."""
    corners_lps: tuple[float, ...] = ()
    """In mm: its first voxel in canonical orientation, and the last ones along D, H and W."""
    patient_name: str = ""
    """As a manifest or a layout gives it; else empty. Of two patients with names the voxels may be the same."""
    labels: tuple[str, ...] = ()
    """Structures of the values 1, 2, ... of the stored label map; empty where there is none."""
    labels_crc32: int = 0
    labels_stamp: str = ""
    """Of the label map that was read; it is read again where this has changed."""

    @property
    def patient_label(self) -> str:
        """What people read: the name as a manifest or a layout gives it, else the pseudonym."""
        return self.patient_name or self.patient


@dataclass(frozen=True)
class Record:
    """What became of one source.

    Attributes:
        source: hash of its absolute path, links as they are; of a series among others of ``PATH#LABEL``.
        order: its place among all sources; of two with the same data, or of one patient, the first counts.
        name: of its volume, stored or not: what a manifest or a layout calls it, else a number.
        stamp: size and time of the source when its volume was prepared; empty where it has to be read again.
        entry: the stored volume, if there is one.
        reason: why it was refused; a volume of an earlier state of the source may be stored all the same.
        warnings: what a user should know of the stored volume.
    """

    source: str
    order: int
    name: str
    stamp: str = ""
    entry: CacheEntry | None = None
    reason: str = ""
    warnings: tuple[str, ...] = ()


def without_paths(text: str, *paths: str) -> str:
    """Return what is said of a source without the paths, file names and UIDs in it.

    Args:
        paths: of the source; they become ``it``, others ``a file``.
    """
    for path in sorted(filter(None, paths), key=len, reverse=True):
        # not the beginning of another path
        text = re.sub(re.escape(path) + r"(?![\w-]|\.\w)", "it", text)
    return UID.sub("a UID", PATH.sub("a file", text))


def decide(records: Iterable[Record]) -> tuple[tuple[CacheEntry, ...], dict[str, str]]:
    """Return the volumes that make up the cache, and why other sources were refused, both by name."""
    taken: list[CacheEntry] = []
    refused: dict[str, str] = {}
    volumes: dict[str, list[CacheEntry]] = {}
    patients: dict[str, CacheEntry] = {}
    for record in sorted(records, key=lambda r: (r.order, r.source)):
        conflict = _conflict(record.entry, volumes, patients) if record.entry is not None else ""
        if record.reason or conflict:
            refused[record.name] = record.reason or conflict
        if record.entry is not None and not conflict:
            taken.append(record.entry)
    return tuple(sorted(taken, key=lambda entry: entry.name)), refused


def _conflict(entry: CacheEntry, volumes: dict[str, list[CacheEntry]], patients: dict[str, CacheEntry]) -> str:
    """Return why a volume cannot be used beside the earlier ones, or nothing.

    Args:
        volumes: the earlier ones by the hash of their voxels; extended.
        patients: the first volume of each patient so far; extended.
    """
    alike = volumes.setdefault(entry.voxels_sha256, [])
    if entry.voxels_sha256 and (copy := next((one for one in alike if _is_copy(entry, one)), None)):
        return f"the same data as {copy.name}"
    alike.append(entry)
    other = patients.setdefault(entry.patient, entry)
    # training takes what has no split
    here, there = entry.split or "train", other.split or "train"
    if here == there:
        return ""
    problem = f"its patient is in '{here}' here, but in '{there}' with {other.name}"
    return f"{problem}. give all volumes of a patient the same split"


def _is_copy(one: CacheEntry, other: CacheEntry) -> bool:
    """Tell whether two volumes with the same voxels lie at the same place, whatever files they come from."""
    if one.patient_name and other.patient_name and one.patient != other.patient:
        return False
    return bool(np.abs(np.subtract(one.corners_lps, other.corners_lps)).max() <= SAME_PLACE_MM)


def record_of(values: dict[str, Any]) -> Record:
    """Return the record of plain JSON values, as ``dataclasses.asdict`` makes them.

    Raises:
        KeyError, TypeError, ValueError: they are none.
    """
    entry = values["entry"]
    if entry is not None:
        d, h, w = (int(n) for n in entry["shape_dhw"])
        corners = tuple(float(c) for c in entry["corners_lps"])
        labels = tuple(map(str, entry["labels"]))
        entry = CacheEntry(**{**entry, "shape_dhw": (d, h, w), "corners_lps": corners, "labels": labels})
        if len(corners) != (12 if entry.voxels_sha256 else 0):
            raise ValueError(f"it has {len(corners)} numbers for four corners")
    record = Record(**{**values, "entry": entry, "warnings": tuple(map(str, values["warnings"]))})
    for one in (record, entry) if entry else (record,):
        for field in fields(one):
            value = getattr(one, field.name)
            kinds = (float, int) if field.type is float else (field.type,)
            if field.type in (str, int, float) and type(value) not in kinds:
                raise ValueError(f"{field.name} is {value!r}")
        # it becomes a file's name
        if not re.fullmatch(r"[\w-][\w.-]*", one.name):
            raise ValueError(f"'{one.name}' is no name of a volume")
    return record
