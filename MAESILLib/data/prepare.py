"""Preparing a cache: find CTs, check them, bring them onto the model's grid, store them.

One bad file never stops the rest: it is refused with its reason, and the index says so.
"""

from __future__ import annotations

import csv
import hashlib
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from MAESILLib.config import Preprocessing
from MAESILLib.data.cache import INDEX, VOLUMES, Cache, CacheEntry, Refusal, read_index, write_index
from MAESILLib.errors import InputError
from MAESILLib.events import Reporter
from MAESILLib.files import atomic_path, check_folder, check_name, read_json, sha256_of
from MAESILLib.stopping import StopRequest

VOLUME_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")
MANIFEST_SUFFIXES = (".csv", ".json")
LABEL_SUFFIXES = ("_seg", "_label", "_labels", "-label", "_mask", "seg", "labels")
LOW_HU, HIGH_HU = -1024, 3071


@dataclass(frozen=True)
class Source:
    """A CT to prepare: a file or a DICOM folder, and what a manifest says of it."""

    path: Path
    patient: str = ""
    split: str = ""
    dataset: str = ""
    licence: str = ""


def find_sources(inputs: Iterable[Path | str]) -> list[Source]:
    """List the CTs in any mix of files, folders, DICOM trees and CSV or JSON manifests.

    A manifest has a column (or key) ``file``, relative to itself, and may have ``patient``, ``split`` (train
    or val), ``dataset`` and ``licence``; other columns are left alone. In folders, files named like label
    maps (``*_seg.nii.gz``) are passed over. Of DICOM files given one by one (``folder/*.dcm``), one stands for
    its series.

    Raises:
        InputError: an input does not exist, a manifest has no ``file``, or nothing was found.
    """
    sources: dict[Path, Source] = {}
    slices: dict[Path, list[Path]] = {}
    for given in map(Path, inputs):
        if not given.exists():
            raise InputError(f"no such file or folder: {given}", "check the path")
        if given.is_file() and not given.name.lower().endswith((*VOLUME_SUFFIXES, *MANIFEST_SUFFIXES)):
            slices.setdefault(given.parent.resolve(), []).append(given)
            continue
        for source in _sources_of(given):
            sources.setdefault(source.path.resolve(), source)
    for files in slices.values():
        for file in _one_of_each_series(files, unusable=True):
            sources.setdefault(file.resolve(), Source(file))
    if not sources:
        raise InputError(
            f"no CT was found in {', '.join(str(one) for one in list(inputs)[:3])}",
            "give NIfTI, NRRD or MHA files, DICOM folders, or a manifest",
        )
    return list(sources.values())


def _sources_of(given: Path) -> Iterator[Source]:
    if given.is_dir():
        yield from map(Source, _walk(given))
    elif given.suffix.lower() in MANIFEST_SUFFIXES:
        yield from _from_manifest(given)
    else:
        yield Source(given)


def _walk(folder: Path) -> Iterator[Path]:
    """Yield volume files and folders that hold DICOM files, in the order of their names."""
    children = sorted(folder.iterdir())
    files = [c for c in children if c.is_file() and not c.name.startswith(".")]
    volumes = [f for f in files if f.name.lower().endswith(VOLUME_SUFFIXES)]
    yield from (f for f in volumes if not _is_named_like_labels(f))
    below = [f for c in children if c.is_dir() and not c.name.startswith(".") for f in _walk(c)]
    slices = [f for f in files if f not in volumes and _is_dicom(f)]
    if any(f.is_dir() or not _is_volume(f) for f in below):
        # as a folder it would be read with the subfolders, which are sources of their own
        yield from _one_of_each_series(slices)
    elif slices:
        yield folder
    yield from below


def _is_volume(path: Path) -> bool:
    return path.name.lower().endswith(VOLUME_SUFFIXES)


def _is_dicom(path: Path) -> bool:
    """Tell whether a file is, or is named like, a DICOM object; a disc's table of contents is none."""
    from MAESILLib.dicom import DICOM_SUFFIXES, has_dicom_magic

    return path.name != "DICOMDIR" and (path.suffix.lower() in DICOM_SUFFIXES or has_dicom_magic(path))


def _one_of_each_series(files: list[Path], unusable: bool = False) -> Iterator[Path]:
    """Yield one file for each CT series among files of one folder; others too where ``unusable``."""
    from MAESILLib.dicom import find_series
    from MAESILLib.itk_quiet import quiet_itk

    left = dict.fromkeys(sorted(files))
    while left:
        file = next(iter(left))
        del left[file]
        try:
            with quiet_itk():
                series, _ = find_series(file)
        except InputError:
            if unusable:
                yield file
            continue
        for member in series.slices:
            left.pop(member.path, None)
        yield file


def _is_named_like_labels(path: Path) -> bool:
    stem = re.sub(r"(\.nii\.gz|\.[^.]+)$", "", path.name.lower())
    return stem.endswith(LABEL_SUFFIXES)


def _from_manifest(path: Path) -> Iterator[Source]:
    if path.suffix.lower() == ".json":
        rows = read_json(path)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise InputError(f"{path} is not a list of objects", "write one object with 'file' for each CT")
    else:
        try:
            with open(path, newline="", encoding="utf-8-sig") as file:
                rows = list(csv.DictReader(file))
        except (UnicodeDecodeError, csv.Error) as error:
            raise InputError(f"{path} is not a CSV file in UTF-8: {error}", "save it as CSV in UTF-8") from None
    for number, row in enumerate(rows, start=1):
        if not row.get("file") or not isinstance(row["file"], str):
            raise InputError(f"{path}: entry {number} has no 'file'", "name the CT's file, relative to the manifest")
        split = row.get("split") or ""
        if split not in ("", "train", "val"):
            raise InputError(f"{path}: entry {number} has split '{split}'", "write train, val or nothing")
        texts = {key: str(row.get(key) or "") for key in ("patient", "dataset", "licence")}
        yield Source(path.parent / row["file"], split=split, **texts)


def prepare(
    sources: list[Source],
    folder: Path | str,
    preprocessing: Preprocessing,
    *,
    reporter: Reporter | None = None,
    stop: StopRequest | None = None,
) -> Cache:
    """Prepare every source into ``folder``; go on where an earlier call was interrupted.

    Raises:
        InputError: the folder holds a cache of another spacing or something else, or every source was refused.
        CancelledError: a stop was asked for; what is prepared stays.
        DiskFullError: the disk is full; what is prepared stays.
    """
    folder = Path(folder)
    reporter, stop = reporter or Reporter(), stop or StopRequest()
    if not math.isfinite(preprocessing.spacing_mm):
        raise InputError(f"spacing {preprocessing.spacing_mm} mm", "choose a number of mm, as 1.5")
    check_folder(folder)
    cache = Cache(folder, preprocessing.spacing_mm, ())
    if (folder / INDEX).is_file():
        cache = _continued(folder, preprocessing)
    for number, source in enumerate(sources):
        stop.check()
        reporter.progress("prepare", number / len(sources), source.path.name)
        cache = _with_source(cache, source, reporter)
        write_index(cache)
    reporter.progress("prepare", 1.0)
    if not cache.entries:
        first = cache.refused[0]
        raise InputError(
            f"none of {len(sources)} inputs could be used; {first.source}: {first.reason}", "see index.json"
        )
    return cache


def _continued(folder: Path, preprocessing: Preprocessing) -> Cache:
    cache = read_index(folder)
    if not cache.entries:
        return Cache(folder, preprocessing.spacing_mm, ())
    if cache.spacing_mm != preprocessing.spacing_mm:
        raise InputError(
            f"{folder} was prepared at {cache.spacing_mm} mm, not {preprocessing.spacing_mm} mm",
            "choose another output folder",
        )
    return cache


def _with_source(cache: Cache, source: Source, reporter: Reporter) -> Cache:
    path = str(source.path)
    refused = tuple(r for r in cache.refused if r.source != path)
    try:
        check_name(source.path)
        sha256 = _sha256(source.path)
        known = next((e for e in cache.entries if e.source_sha256 == sha256), None)
        if known is not None and (cache.folder / VOLUMES / f"{known.name}.npy").is_file():
            if Path(known.source).resolve() != source.path.resolve():
                raise InputError(f"the same data as {known.source}", "")
            return replace(cache, entries=_described_again(cache.entries, known, source), refused=refused)
        # what an older state of the same source gave goes
        others = tuple(e for e in cache.entries if e.source_sha256 != sha256 and e.source != path)
        entry = _prepare_one(cache, others, source, sha256, reporter)
        return replace(cache, entries=(*others, entry), refused=refused)
    except PermissionError:
        problem = "no permission to read it"
    except InputError as error:
        problem = str(error)
    reporter.warning(f"refused {path}: {problem}")
    return replace(cache, refused=(*refused, Refusal(path, problem)))


def _described_again(entries: tuple[CacheEntry, ...], known: CacheEntry, source: Source) -> tuple[CacheEntry, ...]:
    """Take over what a manifest says of a volume that is in the cache already."""
    stated = {key: getattr(source, key) for key in ("patient", "split", "dataset", "licence")}
    entry = replace(known, **{key: text for key, text in stated.items() if text})
    _refuse_both_sides(entry.patient, entry.split, tuple(e for e in entries if e != known))
    return tuple(entry if e == known else e for e in entries)


def _prepare_one(
    cache: Cache, others: tuple[CacheEntry, ...], source: Source, sha256: str, reporter: Reporter
) -> CacheEntry:
    from MAESILLib.reading import read_volume
    from MAESILLib.volume import model_grid

    volume = read_volume(source.path)
    patient = source.patient or _dicom_patient(source.path)
    _refuse_both_sides(patient, source.split, others)
    for warning in volume.warnings:
        reporter.warning(f"{source.path}: {warning}")
    hu = model_grid(volume.geometry, cache.spacing_mm).to_model(volume.hu)
    stored = np.clip(np.rint(hu), LOW_HU, HIGH_HU).astype(np.int16)
    name = _free_name(volume.name, {e.name for e in others})
    with atomic_path(cache.folder / VOLUMES / f"{name}.npy") as temporary, open(temporary, "wb") as file:
        # np.save does not say that the disk is full
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(stored))
        file.write(stored.data)
    return CacheEntry(
        name,
        (stored.shape[0], stored.shape[1], stored.shape[2]),
        patient or name,
        source.split,
        str(source.path),
        sha256,
        round(float((stored > -500).mean()), 4),
        source.dataset,
        source.licence,
    )


def _refuse_both_sides(patient: str, split: str, others: tuple[CacheEntry, ...]) -> None:
    """Refuse a volume whose patient already lies on the other side of the split."""
    for other in others:
        # what has no split is trained on
        here, there = split or "train", other.split or "train"
        if patient == other.patient and here != there:
            raise InputError(
                f"patient {patient} is in '{here}' here, but in '{there}' with {other.source}",
                "give all volumes of a patient the same split",
            )


def _free_name(name: str, taken: set[str]) -> str:
    base = re.sub(r"[^\w.-]+", "_", name).strip("._") or "volume"
    free, number = base, 2
    while free in taken:
        free, number = f"{base}_{number}", number + 1
    return free


def _sha256(path: Path) -> str:
    """Return the hash of a file, or of a folder's files by name and size and content."""
    if path.is_file():
        return sha256_of(path)
    if not path.is_dir():
        raise InputError(f"no such file: {path}", "check the path")
    digest = hashlib.sha256()
    for file in sorted(f for f in path.iterdir() if f.is_file()):
        digest.update(sha256_of(file).encode())
    return digest.hexdigest()


def _dicom_patient(path: Path) -> str:
    """Return the PatientID of a DICOM folder or file, or nothing."""
    import SimpleITK as sitk

    files = sorted(path.iterdir()) if path.is_dir() else [] if _is_volume(path) else [path]
    first = next((f for f in files if f.is_file() and _is_dicom(f)), None)
    if first is None:
        return ""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(first))
    reader.ReadImageInformation()
    return str(reader.GetMetaData("0010|0020")).strip() if reader.HasMetaDataKey("0010|0020") else ""
