"""Preparing one source: read it, check it, bring it onto the model's grid, store it, or say why not.

What is found depends on nothing but the source, so any process can do it in any order.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from MAESILLib.ct.dicom import LARGEST
from MAESILLib.ct.scan import NOTHING, Given
from MAESILLib.data.cache import Cache, store_volume
from MAESILLib.data.foreground import FOREGROUND_HU
from MAESILLib.data.records import CacheEntry, Record, hash_of_patient, same_data
from MAESILLib.data.sources import Source, is_dicom
from MAESILLib.runtime.errors import CancelledError, DiskFullError, InputError
from MAESILLib.runtime.files import check_name, sha256_of

LOW_HU, HIGH_HU = -1024, 3071


@dataclass(frozen=True)
class Task:
    """A source to prepare.

    Attributes:
        name: of its volume.
        order: its place among all sources.
        stored: the volume that an earlier run stored, with what a manifest says of it now.
        stamp: of the source when that was stored; empty where the source has to be read again.
    """

    source: Source
    name: str
    order: int
    stored: CacheEntry | None = None
    stamp: str = ""


@dataclass(frozen=True)
class Setup:
    """What is the same for every source.

    Attributes:
        verify: read what is stored to the end, to find damage that its length does not show.
        held: source by SHA-256 of the volumes whose sources are not in the list of this run.
    """

    folder: Path
    spacing_mm: float
    verify: bool
    held: dict[str, str]
    given: Given = NOTHING


@dataclass(frozen=True)
class Outcome:
    """What became of a source.

    Attributes:
        source_bytes: read of the source to prepare it; 0 if it was not prepared.
    """

    record: Record
    source_bytes: int = 0
    warnings: tuple[str, ...] = ()


def prepare_source(setup: Setup, task: Task, check_stop: Callable[[], None] = lambda: None) -> Outcome:
    """Prepare one source; whatever is wrong with it is its outcome.

    Args:
        check_stop: called between steps; may raise.

    Raises:
        DiskFullError: the disk is full.
    """
    path, source = task.source.path, os.path.abspath(task.source.path)
    try:
        check_name(path)
        size, stamp = stamp_of(path)
        if task.stored is not None and task.stamp == stamp and _is_stored(setup, task.stored):
            return Outcome(Record(source, task.order, stamp, task.stored))
        check_stop()
        sha256 = hash_of(path)
        if task.stored is not None and task.stored.source_sha256 == sha256 and _is_stored(setup, task.stored):
            # touched or copied, but the same
            return Outcome(Record(source, task.order, stamp, task.stored))
        if sha256 in setup.held:
            # nor is an earlier state of it needed
            return refused(replace(task, stored=None), same_data(setup.held[sha256]))
        entry, warnings = _prepared(setup, task, sha256, check_stop)
        return Outcome(Record(source, task.order, stamp, entry), size, warnings)
    except (DiskFullError, CancelledError):
        raise
    except PermissionError:
        return refused(task, "no permission to read it")
    except OSError as error:
        return refused(task, f"it cannot be prepared: {error.strerror or error}")
    except MemoryError:
        return refused(task, "there is too little memory for it. use fewer --workers, or 1, which has no limit")
    except InputError as error:
        return refused(task, str(error))
    except Exception as error:
        # one file that nobody thought of must not stop a hundred thousand others
        return refused(task, f"{type(error).__name__}: {' '.join(str(error).split())}")


def refused(task: Task, reason: str) -> Outcome:
    """Return the outcome of a source that cannot be used; the next run reads it again.

    What was stored of an earlier state of it stays.
    """
    return Outcome(Record(os.path.abspath(task.source.path), task.order, entry=task.stored, reason=reason))


def files_of(path: Path) -> list[Path]:
    """Return a file, or the files of a folder in the order of their names.

    Raises:
        FileNotFoundError: there is neither.
    """
    if path.is_dir():
        return sorted(child for child in path.iterdir() if child.is_file())
    if not path.is_file():
        raise FileNotFoundError(0, f"no such file: {path}")
    return [path]


def stamp_of(path: Path) -> tuple[int, str]:
    """Return the size of a source in bytes, and a text that changes when its files do.

    Raises:
        OSError: there is no such file, or it cannot be looked at.
    """
    found = [file.stat() for file in files_of(path)]
    size = sum(one.st_size for one in found)
    return size, f"{len(found)}-{size}-{max((one.st_mtime_ns for one in found), default=0)}"


def hash_of(path: Path) -> str:
    """Return the SHA-256 of a file, or of those of a folder's files."""
    if path.is_file():
        return sha256_of(path)
    return hashlib.sha256("".join(map(sha256_of, files_of(path))).encode()).hexdigest()


def _is_stored(setup: Setup, entry: CacheEntry) -> bool:
    try:
        Cache(setup.folder, setup.spacing_mm, ()).verify(entry, read=setup.verify)
    except InputError:
        return False
    return True


def _prepared(
    setup: Setup, task: Task, sha256: str, check_stop: Callable[[], None]
) -> tuple[CacheEntry, tuple[str, ...]]:
    """Store the volume of a source; return its entry, and warnings about the source."""
    from MAESILLib.ct.reading import read_volume
    from MAESILLib.ct.volume import model_grid

    source, entry = task.source, task.stored
    check_stop()
    series = LARGEST if source.path.is_dir() else None
    volume = read_volume(source.path, series=series, given=setup.given)
    check_stop()
    hu = model_grid(volume.geometry, setup.spacing_mm).to_model(volume.hu)
    # whole numbers are rounded already, and rounding them takes a copy in floating point
    whole = hu if np.issubdtype(hu.dtype, np.integer) else np.rint(hu)
    stored = np.clip(whole, LOW_HU, HIGH_HU).astype(np.int16, copy=False)
    check_stop()
    crc32 = store_volume(setup.folder, task.name, stored)
    d, h, w = stored.shape
    share = round(np.count_nonzero(stored > FOREGROUND_HU) / stored.size, 4)
    if entry is None or entry.source_sha256 != sha256:
        entry = CacheEntry(
            task.name,
            shape_dhw=(d, h, w),
            patient=hash_of_patient(source.patient or _dicom_patient(source.path) or task.name),
            split=source.split,
            source=os.path.abspath(source.path),
            source_sha256=sha256,
            foreground_share=share,
            dataset=source.dataset,
            licence=source.licence,
            labels=source.labels,
        )
    # what a manifest said of the same data holds until another says something else
    entry = replace(entry, shape_dhw=(d, h, w), foreground_share=share, crc32=crc32)
    return entry, tuple(f"{source.path}: {warning}" for warning in volume.warnings)


def _dicom_patient(path: Path) -> str:
    """Return the PatientID of a DICOM folder or file, with its issuer; or nothing."""
    from pydicom import dcmread

    first = next(filter(is_dicom, files_of(path)), None)
    if first is None:
        return ""
    tags = ["IssuerOfPatientID", "PatientID"]
    data = dcmread(first, stop_before_pixels=True, force=True, specific_tags=tags)
    return "/".join(filter(None, (str(data.get(tag) or "").strip() for tag in tags))) if data.get("PatientID") else ""
