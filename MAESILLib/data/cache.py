"""The cache: checked, oriented, resampled CTs as int16 HU, readable crop by crop.

    CACHE/index.json            what is in it, and what was refused
    CACHE/volumes/NAME.npy      one volume (D, H, W) int16, canonical orientation, isotropic

A memory-mapped .npy file is what reads a crop fastest, and needs numpy alone.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Any

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
            # not np.load, which opens a zip archive too
            volume = np.lib.format.open_memmap(path, mode="r")
        except FileNotFoundError:
            raise InputError(f"{path} is missing from the cache", "run maesil prepare again") from None
        except (ValueError, EOFError, TokenError, OverflowError) as error:
            raise InputError(f"{path} is damaged: {error}", "delete it and run maesil prepare again") from None
        if volume.shape != entry.shape_dhw or volume.dtype != np.int16:
            raise InputError(
                f"{path} holds {volume.dtype} {volume.shape}, the index says int16 {entry.shape_dhw}",
                "delete it and run maesil prepare again",
            )
        return volume

    def fingerprint(self) -> str:
        """Return a hash of what the cache holds; the same for the same data wherever it lies."""
        text = repr(
            [self.spacing_mm, [(e.name, e.shape_dhw, e.source_sha256, e.split, e.patient) for e in self.entries]]
        )
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def select(self, split: str, validation_share: float = 0.1) -> tuple[CacheEntry, ...]:
        """Return the entries of a split, ``train`` or ``val``.

        Where no entry names its split, whole patients are held out by a hash of their name: the choice depends
        on the set of patients and on nothing else, and a larger share holds out the same ones and more.
        """
        if any(e.split for e in self.entries):
            # what nobody decided on is trained on, but never a patient who validates
            validating = {e.patient for e in self.entries if e.split == "val"}
            if split == "val":
                return tuple(e for e in self.entries if e.split == "val")
            return tuple(e for e in self.entries if e.split != "val" and e.patient not in validating)
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
    cache = read_index(Path(folder))
    if not cache.entries:
        raise InputError(f"{folder} holds no volume", "see what maesil prepare refused")
    return cache


def read_index(folder: Path) -> Cache:
    """Read a cache's index; unlike :func:`read_cache`, an empty cache is no error.

    Raises:
        InputError: the folder is no cache, or one of another version.
    """
    if not (folder / INDEX).is_file():
        raise InputError(f"{folder} is not a cache: it has no {INDEX}", "make one with maesil prepare")
    index = read_json(folder / INDEX)
    schema = index.get("schema") if isinstance(index, dict) else None
    if schema != SCHEMA:
        raise InputError(
            f"{folder / INDEX} has schema {schema!r}, this version reads {SCHEMA!r}", "choose another folder"
        )
    try:
        entries = tuple(_entry(values) for values in index["volumes"])
        refused = tuple(Refusal(**values) for values in index["refused"])
        return Cache(folder, float(index["spacing_mm"]), entries, refused)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{folder / INDEX} is damaged: {error}", "prepare the data again in another folder") from None


def _entry(values: dict[str, Any]) -> CacheEntry:
    d, h, w = (int(n) for n in values["shape_dhw"])
    return CacheEntry(**{**values, "shape_dhw": (d, h, w)})


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
