"""The cache: checked, oriented, resampled CTs as int16 HU, readable crop by crop.

    CACHE/index.json            what is in it, and what was refused
    CACHE/volumes/NAME.npy      one volume (D, H, W) int16, canonical orientation, isotropic

A memory-mapped .npy file is what reads a crop fastest, and needs numpy alone.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from MAESILLib.errors import InputError
from MAESILLib.files import read_json, write_json

SCHEMA = "maesil-cache/1"
INDEX = "index.json"
VOLUMES = "volumes"


@dataclass(frozen=True)
class CacheEntry:
    """One volume of a cache."""

    name: str
    shape_dhw: tuple[int, int, int]
    patient: str
    """Volumes of one patient never lie on both sides of a split."""
    split: str
    """train, val or empty (not decided)."""
    source: str
    source_sha256: str
    foreground_share: float
    """Share of voxels above -500 HU."""
    dataset: str = ""
    licence: str = ""


@dataclass(frozen=True)
class Refusal:
    """An input that was not taken into the cache, and why."""

    source: str
    reason: str


@dataclass(frozen=True)
class Cache:
    """A folder of prepared volumes."""

    folder: Path
    spacing_mm: float
    entries: tuple[CacheEntry, ...]
    refused: tuple[Refusal, ...] = ()

    def open(self, entry: CacheEntry) -> np.ndarray:
        """Map a volume into memory: (D, H, W) int16 HU; nothing is read until it is sliced.

        Raises:
            InputError: the file is missing or does not hold what the index says.
        """
        path = self.folder / VOLUMES / f"{entry.name}.npy"
        try:
            volume = np.load(path, mmap_mode="r")
        except FileNotFoundError:
            raise InputError(f"{path} is missing from the cache", "run maesil prepare again") from None
        except (ValueError, EOFError) as error:
            raise InputError(f"{path} is damaged: {error}", "delete it and run maesil prepare again") from None
        if volume.shape != entry.shape_dhw or volume.dtype != np.int16:
            raise InputError(
                f"{path} holds {volume.dtype} {volume.shape}, the index says int16 {entry.shape_dhw}",
                "delete it and run maesil prepare again",
            )
        return volume

    def fingerprint(self) -> str:
        """Return a hash of what the cache holds; the same for the same data wherever it lies."""
        text = repr([self.spacing_mm, [(e.name, e.shape_dhw, e.source_sha256, e.split) for e in self.entries]])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def select(self, split: str, validation_share: float = 0.1) -> tuple[CacheEntry, ...]:
        """Return the entries of a split, ``train`` or ``val``.

        Where no entry names its split, whole patients are held out by a hash of their name: the choice
        does not change when other patients are added.
        """
        if any(e.split for e in self.entries):
            return tuple(e for e in self.entries if e.split == split)
        held_out = self._held_out_patients(validation_share)
        return tuple(e for e in self.entries if (e.patient in held_out) == (split == "val"))

    def _held_out_patients(self, share: float) -> set[str]:
        patients = sorted({e.patient for e in self.entries}, key=lambda p: hashlib.sha256(p.encode()).digest())
        count = max(1, round(share * len(patients))) if share > 0 and len(patients) > 1 else 0
        return set(patients[:count])


def read_cache(folder: Path | str) -> Cache:
    """Open a cache.

    Raises:
        InputError: the folder is no cache, or one of another version.
    """
    folder = Path(folder)
    if not (folder / INDEX).is_file():
        raise InputError(f"{folder} is not a cache: it has no {INDEX}", "make one with maesil prepare")
    index = read_json(folder / INDEX)
    if index.get("schema") != SCHEMA:
        raise InputError(
            f"{folder} has schema {index.get('schema')!r}, this version reads {SCHEMA!r}", "run maesil prepare again"
        )
    entries = tuple(CacheEntry(**{**e, "shape_dhw": tuple(e["shape_dhw"])}) for e in index["volumes"])
    if not entries:
        raise InputError(f"{folder} holds no volume", "see what maesil prepare refused")
    refused = tuple(Refusal(**r) for r in index["refused"])
    return Cache(folder, index["spacing_mm"], entries, refused)


def write_index(cache: Cache) -> None:
    """Write the cache's index, whole or not at all."""
    write_json(
        cache.folder / INDEX,
        {
            "schema": SCHEMA,
            "spacing_mm": cache.spacing_mm,
            "volumes": [asdict(e) for e in cache.entries],
            "refused": [asdict(r) for r in cache.refused],
        },
    )
