"""Preparing one source: read it, check it, bring it onto the model's grid, store it, or say why not.

What is found depends on nothing but the source, so any process can do it in any order.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from MAESILLib.data.cache import Cache, store_volume
from MAESILLib.data.foreground import FOREGROUND_HU
from MAESILLib.data.names import absolute
from MAESILLib.data.records import CacheEntry, Record, hash_of_patient
from MAESILLib.data.sources import Source, is_dicom, is_volume
from MAESILLib.errors import CancelledError, DiskFullError, InputError
from MAESILLib.files import check_name, sha256_of

LOW_HU, HIGH_HU = -1024, 3071
PREPARED, THERE, REFUSED = "prepared", "there", "refused"


@dataclass(frozen=True)
class Task:
    """A source to prepare.

    Attributes:
        name: of its volume.
        order: its place among all sources.
        known: what an earlier run found.
    """

    source: Source
    name: str
    order: int
    known: Record | None = None


@dataclass(frozen=True)
class Setup:
    """What is the same for every source.

    Attributes:
        verify: read what is stored to the end, to find damage that its length does not show.
        known_data: the place of the source that each SHA-256 in the cache came from.
    """

    folder: Path
    spacing_mm: float
    verify: bool
    known_data: dict[str, int]


@dataclass(frozen=True)
class Outcome:
    """What became of a source: prepared, there (already) or refused.

    Attributes:
        source_bytes: read of the source to prepare it.
    """

    record: Record
    state: str
    source_bytes: int = 0
    warnings: tuple[str, ...] = ()


class Stamp(NamedTuple):
    """Size of a source in bytes, and a text that changes when its files do."""

    size: int
    text: str


def prepare_source(setup: Setup, task: Task, check_stop: Callable[[], None] = lambda: None) -> Outcome:
    """Prepare one source; whatever is wrong with it is its outcome.

    Args:
        check_stop: called between steps; may raise.

    Raises:
        DiskFullError: the disk is full.
    """
    stamp: Stamp | None = None
    try:
        check_name(task.source.path)
        stamp = stamp_of(task.source.path)
        if task.known is not None and task.known.stamp == stamp.text and _is_done(setup, task, task.known):
            return Outcome(task.known, REFUSED if task.known.entry is None else THERE)
        return _prepared(setup, task, stamp, check_stop)
    except (DiskFullError, CancelledError):
        raise
    except PermissionError:
        return refused(task, "no permission to read it")
    except OSError as error:
        # a disk or a server that fails may work the next time
        return refused(task, f"it cannot be read: {error.strerror or error}")
    except MemoryError:
        return refused(task, "there is too little memory for it. use fewer --workers")
    except InputError as error:
        return refused(task, str(error), stamp)
    except Exception as error:
        # one file that nobody thought of must not stop a hundred thousand others
        return refused(task, f"{type(error).__name__}: {' '.join(str(error).split())}", stamp)


def refused(task: Task, reason: str, stamp: Stamp | None = None) -> Outcome:
    """Return the outcome of a source that cannot be used.

    What was stored of an earlier state of it stays.

    Args:
        stamp: of a source that is refused for what it holds; it is not looked at again before it changes.
    """
    known = task.known
    entry = known.entry if known is not None else None
    # where a volume is kept the stamp is not that volume's
    text = "" if stamp is None or entry is not None else stamp.text
    return Outcome(Record(absolute(task.source.path), task.order, text, entry=entry, reason=reason), REFUSED)


def stamp_of(path: Path) -> Stamp:
    """Return the stamp of a file, or of a folder's files.

    Raises:
        InputError: there is no such file.
        OSError: it cannot be looked at.
    """
    if path.is_file():
        found = [path.stat()]
    elif path.is_dir():
        with os.scandir(path) as children:
            found = [child.stat() for child in children if child.is_file()]
    else:
        raise FileNotFoundError(0, f"no such file: {path}")
    size = sum(one.st_size for one in found)
    return Stamp(size, f"{len(found)}-{size}-{max((one.st_mtime_ns for one in found), default=0)}")


def hash_of(path: Path) -> str:
    """Return the SHA-256 of a file, or of a folder's files in the order of their names."""
    if path.is_file():
        return sha256_of(path)
    digest = hashlib.sha256()
    for file in sorted(f for f in path.iterdir() if f.is_file()):
        digest.update(sha256_of(file).encode())
    return digest.hexdigest()


def _is_done(setup: Setup, task: Task, known: Record) -> bool:
    """Say whether nothing is left to do for a source that has not changed."""
    if known.reason:
        return known.entry is None
    if known.entry is None:
        return _is_duplicate(setup, task, known.sha256)
    return _is_stored(setup, known.entry)


def _is_duplicate(setup: Setup, task: Task, sha256: str) -> bool:
    # of a later source nobody knows yet whether it will be there
    return setup.known_data.get(sha256, math.inf) < task.order


def _is_stored(setup: Setup, entry: CacheEntry) -> bool:
    cache = Cache(setup.folder, setup.spacing_mm, ())
    try:
        if setup.verify:
            cache.verify(entry)
        else:
            cache.open(entry)
            cache.foreground(entry)
    except InputError:
        return False
    return True


def _prepared(setup: Setup, task: Task, stamp: Stamp, check_stop: Callable[[], None]) -> Outcome:
    from MAESILLib.reading import read_volume
    from MAESILLib.volume import model_grid

    check_stop()
    path, source = task.source.path, absolute(task.source.path)
    sha256 = hash_of(path)
    known = task.known.entry if task.known is not None else None
    if known is not None and known.source_sha256 == sha256 and _is_stored(setup, known):
        # touched or copied, but the same
        return Outcome(Record(source, task.order, stamp.text, entry=known), THERE)
    if _is_duplicate(setup, task, sha256):
        return Outcome(Record(source, task.order, stamp.text, sha256), REFUSED)
    # what a manifest once said of these data holds until one says something else
    told = known if known is not None and known.source_sha256 == sha256 else None
    check_stop()
    volume = read_volume(path)
    if told is not None and not task.source.patient:
        patient = told.patient
    else:
        patient = hash_of_patient(task.source.patient or _dicom_patient(path) or task.name)
    check_stop()
    hu = model_grid(volume.geometry, setup.spacing_mm).to_model(volume.hu)
    # whole numbers are rounded already, and rounding them takes a copy in floating point
    whole = hu if np.issubdtype(hu.dtype, np.integer) else np.rint(hu)
    stored = np.clip(whole, LOW_HU, HIGH_HU).astype(np.int16, copy=False)
    check_stop()
    entry = CacheEntry(
        task.name,
        (stored.shape[0], stored.shape[1], stored.shape[2]),
        patient,
        task.source.split or (told.split if told else ""),
        source,
        sha256,
        round(np.count_nonzero(stored > FOREGROUND_HU) / stored.size, 4),
        task.source.dataset or (told.dataset if told else ""),
        task.source.licence or (told.licence if told else ""),
        labels=task.source.labels or (told.labels if told else ""),
    )
    try:
        entry = replace(entry, crc32=store_volume(setup.folder, task.name, stored))
    except InputError as error:
        # not the source's fault, so it is tried again
        return refused(task, str(error))
    except OSError as error:
        return refused(task, f"its volume cannot be written: {error.strerror or error}")
    record = Record(source, task.order, stamp.text, entry=entry)
    return Outcome(record, PREPARED, stamp.size, tuple(f"{path}: {warning}" for warning in volume.warnings))


def _dicom_patient(path: Path) -> str:
    """Return the PatientID of a DICOM folder or file, or nothing."""
    import SimpleITK as sitk

    files = sorted(path.iterdir()) if path.is_dir() else [] if is_volume(path) else [path]
    first = next((f for f in files if f.is_file() and is_dicom(f)), None)
    if first is None:
        return ""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(first))
    reader.ReadImageInformation()
    return str(reader.GetMetaData("0010|0020")).strip() if reader.HasMetaDataKey("0010|0020") else ""
