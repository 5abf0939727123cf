"""Preparing one source: read it, check it, bring it onto the model's grid, store it, or say why not.

What is found depends on nothing but the source, so any process can do it in any order.
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from MAESILLib.ct.reading import read_volume
from MAESILLib.ct.scan import NOTHING, Given
from MAESILLib.ct.volume import CTVolume, ModelGrid, model_grid
from MAESILLib.data.cache import Cache, store_labels, store_volume
from MAESILLib.data.foreground import FOREGROUND_HU
from MAESILLib.data.labels import LabelMap, find_labels, read_labels
from MAESILLib.data.records import CacheEntry, Record, hash_of, hash_of_patient
from MAESILLib.data.sources import Source
from MAESILLib.data.tree import why_no_file
from MAESILLib.runtime.errors import CancelledError, DiskFullError, InputError
from MAESILLib.runtime.files import check_name, sha256_of
from MAESILLib.runtime.stopping import NEVER, StopRequest

LOW_HU, HIGH_HU = -1024, 3071


@dataclass(frozen=True)
class Task:
    """A source to prepare.

    Attributes:
        name: of its volume.
        order: its place among all sources.
        stored: the volume that an earlier run stored, with what a manifest says of it now.
        stamp: of the source when that was stored; empty where the source has to be read again.
        warnings: about that volume.
    """

    source: Source
    name: str
    order: int
    stored: CacheEntry | None = None
    stamp: str = ""
    warnings: tuple[str, ...] = ()

    def record(self, entry: CacheEntry | None, stamp: str = "", reason: str = "") -> Record:
        """Return what became of the source, with the warnings about what was stored before."""
        source = hash_of("source", self.source.key)
        return Record(source, self.order, self.name, stamp, entry, reason, self.warnings)


@dataclass(frozen=True)
class Setup:
    """What is the same for every source.

    Attributes:
        verify: read what is stored to the end, to find damage that its length does not show.
    """

    folder: Path
    spacing_mm: float
    verify: bool
    given: Given = NOTHING


@dataclass(frozen=True)
class Outcome:
    """What became of a source.

    Attributes:
        record: reason and warnings have paths, which are for the user and not for the index.
        is_new: it was read to the end, and its volume stored.
    """

    task: Task
    record: Record
    is_new: bool = False


def prepare_source(setup: Setup, task: Task, stop: StopRequest = NEVER) -> Outcome:
    """Prepare one source; whatever is wrong with it is its outcome.

    Args:
        stop: checked between steps, and what reads in this process can be ended by.

    Raises:
        CancelledError: a stop was asked for.
        DiskFullError: the disk is full.
    """
    source, stored = task.source, task.stored
    if source.problem:
        return refused(task, source.problem)
    try:
        check_name(source.path)
        _, stamp = stamp_of(source)
        labels = find_labels(source)
        is_stored = stored is not None and _is_stored(setup, stored, labels)
        if is_stored and task.stamp == stamp:
            return Outcome(task, task.record(stored, stamp))
        stop.check()
        with stop.until_first_check():
            sha256 = hash_of_files(source)
        if is_stored and stored is not None and stored.source_sha256 == sha256:
            # touched or copied, but the same
            return Outcome(task, task.record(stored, stamp))
        return _prepared(setup, task, labels, sha256, stamp, stop)
    except (DiskFullError, CancelledError):
        raise
    except PermissionError:
        return refused(task, "no permission to read it")
    except OSError as error:
        return refused(task, f"it cannot be prepared: {error.strerror or error}")
    except MemoryError:
        return refused(task, "there is too little memory for it. use fewer --workers, or 0, which has no limit")
    except InputError as error:
        return refused(task, str(error))
    except Exception as error:
        # one file that nobody thought of must not stop a hundred thousand others
        return refused(task, f"{type(error).__name__}: {' '.join(str(error).split())}")


def refused(task: Task, reason: str) -> Outcome:
    """Return the outcome of a source that cannot be used; the next run reads it again.

    What was stored of an earlier state of it stays.
    """
    return Outcome(task, task.record(task.stored, reason=reason))


def stamp_of(source: Source) -> tuple[int, str]:
    """Return the size of a source in bytes, and a text that changes when any of its files does.

    Raises:
        InputError: there is no such file, or it is a pipe, socket or device.
        OSError: it cannot be looked at.
    """
    for file in source.files:
        if problem := why_no_file(file):
            raise InputError(problem, "give a file or a folder")
    found = [(file, file.stat()) for file in source.files]
    size = sum(one.st_size for _, one in found)
    times = [one.st_mtime_ns for _, one in found]
    if len(found) == 1:
        return size, f"1-{size}-{times[0]}"
    each = repr([(file.name, one.st_size, one.st_mtime_ns) for file, one in found])
    return size, f"{len(found)}-{size}-{hashlib.sha256(each.encode()).hexdigest()[:16]}"


def hash_of_files(source: Source) -> str:
    """Return the SHA-256 of a file, or of those of several files."""
    hashes = [sha256_of(file) for file in source.files]
    if source.series is None and len(hashes) == 1:
        return hashes[0]
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def _is_stored(setup: Setup, entry: CacheEntry, labels: LabelMap) -> bool:
    try:
        Cache(setup.folder, setup.spacing_mm, ()).verify(entry, read=setup.verify)
    except InputError:
        return False
    return labels.stamp in ("", entry.labels_stamp)


def _prepared(setup: Setup, task: Task, labels: LabelMap, sha256: str, stamp: str, stop: StopRequest) -> Outcome:
    source, entry = task.source, task.stored
    stop.check()
    with stop.until_first_check():
        volume = read_volume(source.path, series=source.series, given=setup.given)
    grid = model_grid(volume.geometry, setup.spacing_mm)
    if entry is None or entry.source_sha256 != sha256:
        # a DICOM series without PatientID is a patient by its study
        first = source.series and source.series.slices[0]
        own = first and (first.patient or first.study_uid or str(source.path))
        entry = CacheEntry(
            task.name,
            shape_dhw=grid.geometry.size_dhw,
            # a number names another patient in another cache
            patient=hash_of_patient(source.patient or own or (task.name if source.given else sha256)),
            split=source.split,
            source_sha256=sha256,
            foreground_share=0,
            dataset=source.dataset,
            licence=source.licence,
            patient_name=source.patient,
        )
    # what a manifest said of the same data holds until another says something else
    entry = replace(entry, voxels_sha256=_voxels_sha256(volume, grid), corners_lps=_corners(grid))
    stop.check()
    hu = grid.to_model(volume.hu)
    # whole numbers are rounded already, and rounding them takes a copy in floating point
    whole = hu if np.issubdtype(hu.dtype, np.integer) else np.rint(hu)
    stored = np.clip(whole, LOW_HU, HIGH_HU).astype(np.int16, copy=False)
    stop.check()
    crc32 = store_volume(setup.folder, task.name, stored)
    share = round(np.count_nonzero(stored > FOREGROUND_HU) / stored.size, 4)
    entry = replace(entry, shape_dhw=grid.geometry.size_dhw, foreground_share=share, crc32=crc32)
    stop.check()
    entry, problem = _with_labels(setup, entry, labels, grid)
    warnings = (*volume.warnings, *([f"its label map is left out: {problem}"] if problem else []))
    return Outcome(task, replace(task, warnings=warnings).record(entry, stamp), is_new=True)


def _with_labels(setup: Setup, entry: CacheEntry, labels: LabelMap, grid: ModelGrid) -> tuple[CacheEntry, str]:
    """Store the label map of a volume; return the volume with it, and why one that is stated is left out."""
    entry = replace(entry, labels=(), labels_stamp=labels.stamp)
    if not labels.files:
        return entry, labels.problem
    try:
        codes, names = read_labels(labels, grid)
    except InputError as error:
        return entry, str(error)
    return replace(entry, labels=names, labels_crc32=store_labels(setup.folder, entry.name, codes)), ""


def _voxels_sha256(volume: CTVolume, grid: ModelGrid) -> str:
    """Return a hash of a volume's own voxels, the same in whatever order a format keeps its axes."""
    turned = np.flip(volume.hu.transpose(grid.axes), tuple(axis for axis, flip in enumerate(grid.flips) if flip))
    digest = hashlib.sha256(repr(turned.shape).encode())
    for plane in turned:
        digest.update((np.rint(plane) if plane.dtype.kind == "f" else plane).astype("<i2", order="C"))
    return digest.hexdigest()


def _corners(grid: ModelGrid) -> tuple[float, ...]:
    """Return where a volume's first voxel in canonical orientation lies, and the last ones along D, H and W."""
    size = np.array(grid.source.size_dhw)
    first = np.zeros(3)
    first[list(grid.axes)] = np.where(grid.flips, size[list(grid.axes)] - 1, 0)
    ends = np.tile(first, (4, 1))
    ends[[1, 2, 3], grid.axes] = (size - 1 - first)[list(grid.axes)]
    return tuple(float(v) for v in grid.source.physical_point(ends).round(4).ravel())
