"""Finding the CTs to prepare: in files, folders, DICOM trees and manifests."""

from __future__ import annotations

import csv
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from MAESILLib.runtime.errors import InputError
from MAESILLib.runtime.events import Reporter
from MAESILLib.runtime.files import read_json
from MAESILLib.runtime.stopping import NEVER, StopRequest

if TYPE_CHECKING:
    from MAESILLib.ct.dicom import Series
    from MAESILLib.data.tree import Looked

VOLUME_SUFFIXES = (".nii", ".nii.gz", ".hdr", ".nrrd", ".nhdr", ".mha", ".mhd")
DATA_SUFFIXES = {".hdr": (".img",), ".nhdr": (".raw", ".raw.gz"), ".mhd": (".raw", ".zraw")}
"""Of the files that usually hold the voxels of a header."""
LABEL_SUFFIXES = ("_seg", "_label", "_labels", "-label", "_mask", "seg", "labels")


@dataclass(frozen=True)
class Source:
    """A CT to prepare, and what a manifest, or the layout of a data set, says of it.

    Attributes:
        path: a file, or the folder that holds the files of a DICOM series, perhaps in subfolders.
        labels: path of its label map, or of the folder of several, or names of the values of the one beside it.
        given: what a manifest or a layout calls it, of which its name is made; empty where it gets a number.
        series: the DICOM series.
        label: tells it from other series of the same folder.
        problem: why it cannot be used, as headers say.
        beside: other objects in its folders.
    """

    path: Path
    patient: str = ""
    split: str = ""
    dataset: str = ""
    licence: str = ""
    labels: str = ""
    given: str = ""
    series: Series | None = None
    label: str = ""
    problem: str = ""
    beside: str = ""

    @property
    def key(self) -> str:
        """What messages call it: the absolute path, with ``#LABEL`` where it has one."""
        return os.path.abspath(self.path) + (f"#{self.label}" if self.label else "")

    @property
    def files(self) -> list[Path]:
        """The files that it is read from."""
        if self.series is not None:
            return sorted({one.path for one in self.series.slices})
        data = (self.path.with_suffix(suffix) for suffix in DATA_SUFFIXES.get(self.path.suffix.lower(), ()))
        return [self.path, *(file for file in data if file.is_file())]


@dataclass(frozen=True)
class _Listing:
    """Files to take, what a manifest says of them, and files in their folders that may be of the same series."""

    files: tuple[Path, ...]
    given: Source | None = None
    further: tuple[Path, ...] = ()

    @cached_property
    def headers(self) -> list[Path]:
        """Files that may be DICOM."""
        return [file for file in dict.fromkeys(self.files + self.further) if not is_volume(file)]


def find_sources(
    inputs: Iterable[Path | str], workers: int = 0, reporter: Reporter | None = None, stop: StopRequest = NEVER
) -> list[Source]:
    """List the CTs in any mix of files, folders, DICOM trees and CSV or JSON manifests.

    A manifest has a column (or key) ``file``, relative to itself, and may have ``name``, ``patient``, ``split`` (train
    or val), ``dataset``, ``licence`` and ``labels`` (relative too); other columns are left alone. In folders, files
    named like label maps (``*_seg.nii.gz``) and folders of label maps beside their folder of images (``labelsTr``
    beside ``imagesTr``) are passed over. A DICOM tree is the series in it, whatever folders their files lie in; a DICOM
    file stands for its series in its folder.

    Args:
        workers: processes that read the headers of DICOM files; 0 reads them in this one.

    Raises:
        InputError: an input does not exist, a manifest has no ``file``, or nothing was found.
        CancelledError: a stop was asked for.
    """
    from MAESILLib.data.tree import Looked, look

    reporter, seen = reporter or Reporter(), set[str]()
    plain: list[Path] = []
    named: list[Path] = []
    listings: list[_Listing] = []
    for given in map(Path, inputs):
        if not given.exists():
            raise InputError(f"no such file or folder: {given}", "check the path")
        given = Path(os.path.abspath(given))
        if given.suffix.lower() in (".csv", ".json") and given.is_file():
            for row in _from_manifest(given):
                files = tuple(_files(row.path, set()))
                listings.append(_Listing(files, row, () if row.path.is_dir() else _in_folders(files)))
            continue
        named += [given] if given.is_file() else []
        for file in _files(given, seen):
            plain.append(file)
            reporter.progress("scan", 0.0, f"{len(plain)} files")
    listings.insert(0, _Listing(tuple(plain), None, _in_folders(named)))
    looked = look(list(dict.fromkeys(f for one in listings for f in one.headers)), workers, reporter, stop)
    found = [source for listing in listings for source in _sources_of(listing, looked)]
    found += [Source(f, problem="it is neither a volume nor DICOM") for f in named if looked.get(f) == Looked()]
    sources: dict[tuple[str, str], Source] = {}
    for source in found:
        acquisition = source.series.acquisition if source.series else ""
        sources.setdefault((os.path.realpath(source.files[0]), acquisition), source)
    if not sources:
        raise InputError(
            f"no CT was found in {', '.join(str(one) for one in list(inputs)[:3])}",
            "give NIfTI, NRRD or MHA files, DICOM folders, or a manifest",
        )
    return list(sources.values())


def _files(path: Path, seen: set[str]) -> Iterator[Path]:
    """Yield a file, or those of a folder, but for what was seen by another path."""
    if path.is_dir():
        yield from _walk(path, seen)
    elif (real := os.path.realpath(path)) not in seen:
        seen.add(real)
        yield path


def _walk(folder: Path, seen: set[str]) -> Iterator[Path]:
    """Yield the files below a folder that may be CTs, in the order of their names; each file and folder once."""
    real = os.path.realpath(folder)
    if real in seen:
        return
    seen.add(real)
    try:
        with os.scandir(folder) as found:
            # what a listing says of each spares asking the file system again, file by file
            children = sorted((c for c in found if not c.name.startswith(".")), key=lambda c: c.name)
    except OSError:
        # it is refused with its reason when it is its turn
        yield folder
        return
    folders, files = ([c for c in children if _holds(c.is_dir) == is_dir] for is_dir in (True, False))
    for child in files:
        place = os.path.realpath(child.path) if child.is_symlink() else os.path.join(real, child.name)
        path = Path(child.path)
        if is_volume(path):
            # a pipe, or a link to nothing, is named where it would be a volume
            is_wanted = not _is_named_like_labels(path)
        else:
            is_wanted = _holds(child.is_file) and path.name != "DICOMDIR"
        if is_wanted and place not in seen:
            seen.add(place)
            yield path
    names = {c.name.lower() for c in folders}
    has_volume = any(is_volume(Path(c.path)) for c in files)
    for child in folders:
        if not _is_label_folder(child.name.lower(), names, has_volume):
            yield from _walk(Path(child.path), seen)


def _holds(question: Callable[[], bool]) -> bool:
    """Ask the file system; a link to itself, for one, is neither file nor folder."""
    try:
        return question()
    except OSError:
        return False


def _in_folders(files: Iterable[Path]) -> tuple[Path, ...]:
    """Return the files in the folders of files that may be DICOM."""
    folders = dict.fromkeys(file.parent for file in files if not is_volume(file) and file.is_file())
    readable = (folder for folder in folders if os.access(folder, os.R_OK))
    return tuple(f for folder in readable for f in sorted(folder.iterdir()) if f.is_file() and f.name[0] != ".")


def _sources_of(listing: _Listing, looked: dict[Path, Looked]) -> list[Source]:
    """Return the CTs of a listing, in the order of their first files, and folders of DICOM without any."""
    given = listing.given or Source(Path())
    places = {file: number for number, file in enumerate(listing.files)}
    found = [(place, replace(given, path=file)) for file, place in places.items() if is_volume(file)]
    # what folders hold besides slices of a CT; one that may not be read is its own
    notes: dict[Path, dict[int, Looked]] = {}
    for place, file in enumerate(listing.files):
        one = looked.get(file)
        if one is not None and (one.kind or one.problem):
            notes.setdefault(file if file.is_dir() else file.parent, {})[place] = one
    with_series: set[Path] = set()
    for source, folders in _series_sources(given, {file: looked[file] for file in listing.headers}):
        if own := [places[file] for file in source.files if file in places]:
            with_series |= folders
            in_them = [one for folder in sorted(folders) for one in notes.get(folder, {}).values()]
            if source.series and (damaged := _problem(in_them)[0]):
                source = replace(source, series=replace(source.series, warnings=(f"files left out: {damaged}",)))
            found.append((min(own), replace(source, beside=_others(in_them))))
    for folder, note in notes.items():
        if folder not in with_series:
            beside, (damaged, hint) = _others(note.values()), _problem(note.values())
            problem = damaged + hint if damaged else f"no DICOM CT series (only {beside})"
            found.append((min(note), replace(given, path=folder, problem=problem, beside="" if damaged else beside)))
    sources = [source for _, source in sorted(found, key=lambda one: one[0])]
    if listing.given is not None and len(sources) < 2:
        # the manifest names it
        only = sources[0] if sources else replace(given, problem="there is no CT in it")
        return [replace(only, path=given.path, label="")]
    return sources


def _problem(found: Iterable[Looked]) -> tuple[str, str]:
    """Return what is wrong with files of a folder, and what to do about it, as sentences of a message; or nothing."""
    from MAESILLib.ct.dicom import likewise

    bad = [one for one in found if one.problem]
    return likewise([one.problem for one in bad]), next((f". {one.hint}" for one in bad if one.hint), "")


def _others(found: Iterable[Looked]) -> str:
    kinds = Counter(one.kind for one in found if one.kind)
    return ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))


def _series_sources(given: Source, looked: dict[Path, Looked]) -> Iterator[tuple[Source, set[Path]]]:
    """Yield each CT series, and the folders that it lies in."""
    from MAESILLib.data.tree import find_all_series

    found = []
    for series in find_all_series(looked):
        inner = {one.path.parent for one in series.slices}
        found.append((series, Path(os.path.commonpath(inner)), inner))
    counts = Counter(folder for _, folder, _ in found)
    numbers = Counter((folder, series.number) for series, folder, _ in found)
    for series, folder, inner in found:
        is_unique = series.number and numbers[folder, series.number] == 1
        label = series.number if is_unique else f"{series.uid}.{series.acquisition}".strip(".")
        source = replace(given, path=folder, series=series, label=label if counts[folder] > 1 else "")
        yield source, inner | {folder}


def is_volume(path: Path) -> bool:
    """Tell whether a file is named like a volume."""
    return path.name.lower().endswith(VOLUME_SUFFIXES)


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
        name, patient, dataset, licence, labels = (
            str(row.get(key) or "") for key in ("name", "patient", "dataset", "licence", "labels")
        )
        labels = os.path.abspath(path.parent / labels) if labels else ""
        place = Path(os.path.abspath(path.parent / row["file"]))
        yield Source(place, patient, split, dataset, licence, labels, name or row["file"])
