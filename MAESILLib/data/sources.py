"""Finding the CTs to prepare: in files, folders, DICOM trees and manifests."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from MAESILLib.runtime.errors import InputError
from MAESILLib.runtime.files import read_json

VOLUME_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")
LABEL_SUFFIXES = ("_seg", "_label", "_labels", "-label", "_mask", "seg", "labels")


@dataclass(frozen=True)
class Source:
    """A CT to prepare: a file or a DICOM folder, and what a manifest, or the layout of a data set, says of it."""

    path: Path
    patient: str = ""
    split: str = ""
    dataset: str = ""
    licence: str = ""
    labels: str = ""
    """Path of its label map, or of the folder of several; kept in the index, not read."""


def find_sources(inputs: Iterable[Path | str]) -> list[Source]:
    """List the CTs in any mix of files, folders, DICOM trees and CSV or JSON manifests.

    A manifest has a column (or key) ``file``, relative to itself, and may have ``patient``, ``split`` (train
    or val), ``dataset``, ``licence`` and ``labels`` (relative too); other columns are left alone. In folders, files
    named like label maps (``*_seg.nii.gz``) and folders of label maps beside their folder of images (``labelsTr``
    beside ``imagesTr``) are passed over. Of DICOM files given one by one (``folder/*.dcm``), one stands for
    its series.

    Raises:
        InputError: an input does not exist, a manifest has no ``file``, or nothing was found.
    """
    sources: dict[Path, Source] = {}
    slices: dict[Path, list[Path]] = {}
    for given in map(Path, inputs):
        if not given.exists():
            raise InputError(f"no such file or folder: {given}", "check the path")
        found: Iterable[Source] = []
        if given.is_dir():
            found = map(Source, _walk(given))
        elif given.suffix.lower() in (".csv", ".json"):
            found = _from_manifest(given)
        elif is_volume(given):
            found = [Source(given)]
        else:
            slices.setdefault(given.parent.resolve(), []).append(given)
        for source in found:
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


def _walk(folder: Path) -> Iterator[Path]:
    """Yield volume files and folders that hold DICOM files, in the order of their names."""
    try:
        with os.scandir(folder) as found:
            # what a listing says of each spares asking the file system again, file by file
            children = sorted((c for c in found if not c.name.startswith(".")), key=lambda c: c.name)
    except PermissionError:
        # it is refused with its reason when it is its turn
        yield folder
        return
    files = [Path(c.path) for c in children if c.is_file()]
    yield from (f for f in files if is_volume(f) and not _is_named_like_labels(f))
    names = {c.name.lower() for c in children if c.is_dir()}
    has_volume = any(is_volume(f) for f in files)
    # a link may lead back up
    inside = os.path.realpath(folder) + os.sep
    folders = [c for c in children if c.is_dir() and not inside.startswith(os.path.realpath(c.path) + os.sep)]
    inner = [c for c in folders if not _is_label_folder(c.name.lower(), names, has_volume)]
    below = [f for c in inner for f in _walk(Path(c.path))]
    others = (f for f in files if not is_volume(f))
    if any(not is_volume(f) for f in below):
        # as a folder it would be read with the subfolders, which are sources of their own
        yield from _one_of_each_series([f for f in others if is_dicom(f)])
    elif any(is_dicom(f) for f in others):
        yield folder
    yield from below


def is_volume(path: Path) -> bool:
    """Tell whether a file is named like a volume."""
    return path.name.lower().endswith(VOLUME_SUFFIXES)


def is_dicom(path: Path) -> bool:
    """Tell whether a file is, or may be, a DICOM object; a disc's table of contents is none."""
    from MAESILLib.ct.dicom import looks_like_dicom

    try:
        return path.name != "DICOMDIR" and looks_like_dicom(path)
    except PermissionError:
        # not passed over in silence: reading it says what is wrong
        return True


def _one_of_each_series(files: list[Path], unusable: bool = False) -> Iterator[Path]:
    """Yield one file for each CT series among files of one folder; others too where ``unusable``."""
    from MAESILLib.ct.dicom import find_series

    seen: set[Path] = set()
    for file in sorted(files):
        if file in seen:
            continue
        found = find_series(file)
        if found.series:
            seen.update(member.path for series in found.series for member in series.slices)
        if found.series or unusable:
            yield file


def _is_named_like_labels(path: Path) -> bool:
    stem = re.sub(r"(\.nii\.gz|\.[^.]+)$", "", path.name.lower())
    return stem.endswith(LABEL_SUFFIXES)


def _is_label_folder(name: str, beside: set[str], has_volume: bool) -> bool:
    """Tell a folder of label maps by its name and by what lies beside it; both in lower case.

    As challenges lay them out: ``labelsTr`` beside ``imagesTr``, ``label`` beside ``img``, ``seg-lungs-LUNA16`` beside
    ``subset0``, ``segmentations`` beside a volume.
    """
    if name.startswith("labels"):
        return f"images{name.removeprefix('labels')}" in beside
    if name == "label":
        return "img" in beside
    if name == "seg-lungs-luna16":
        return any(re.fullmatch(r"subset\d", other) for other in beside)
    return name == "segmentations" and has_volume


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
        if row.get("labels"):
            texts["labels"] = os.path.abspath(path.parent / str(row["labels"]))
        yield Source(path.parent / row["file"], split=split, **texts)
