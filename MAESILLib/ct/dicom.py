"""DICOM series, read by pydicom: which CT series a folder holds, and the one that is meant.

Other modalities, localisers (scouts), objects without pixels and CT pictures that are no slices are set aside, and
named only when no CT series is left. A damaged file costs the series it belongs to, not the others.
"""

import itertools
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from filecmp import cmp
from pathlib import Path
from typing import Any

import numpy as np

from MAESILLib.ct.dicom_slice import DICOM_SUFFIXES, Slice, slices_of
from MAESILLib.ct.dicom_stack import Arranged, arrange, read_voxels
from MAESILLib.ct.scan import Scan
from MAESILLib.runtime.errors import InputError

LARGEST = "largest"
"""In place of a series' name: the complete one with most slices."""
OWN_VOLUME = 8
"""Slices from which an acquisition of a series is a volume of its own."""
FEW_ACQUISITIONS = 3
"""Up to which acquisitions one above the other are volumes of their own; more are steps of one scan."""
NAMED = 3
"""How many files a message names before it counts the rest."""


@dataclass(frozen=True)
class Series:
    """The slices of one CT series, or of one of its acquisitions, in no particular order."""

    slices: tuple[Slice, ...]
    acquisition: str = ""

    @property
    def uid(self) -> str:
        """SeriesInstanceUID."""
        return self.slices[0].series_uid

    @property
    def number(self) -> str:
        """SeriesNumber, with ".ACQUISITION" where the series has several; "" when absent."""
        return self.slices[0].series_number + (f".{self.acquisition}" if self.acquisition else "")

    @property
    def label(self) -> str:
        """What messages call it, for example ``CT series 2 'CHEST' (41 slices, UID ..2011)``."""
        number = f" {self.number}" if self.number else ""
        description = f" '{self.slices[0].description}'" if self.slices[0].description else ""
        return f"CT series{number}{description} ({len(self.slices)} slices, UID ..{self.uid[-8:]})"

    @property
    def name(self) -> str:
        """A name for files: the description, else the folder's name; letters, digits, dot, dash and underscore only."""
        text = self.slices[0].description or self.slices[0].path.parent.name
        return re.sub(r"[^A-Za-z0-9.-]+", "_", text).strip("_.") or "series"


@dataclass(frozen=True)
class Found:
    """What a folder holds: CT series, other objects and how often, and files of a CT that cannot be used, and why."""

    series: tuple[Series, ...]
    others: Counter[str]
    unusable: dict[Path, InputError]


def looks_like_dicom(path: Path) -> bool:
    """Tell whether a file is named like DICOM or has its preamble."""
    if path.suffix.lower() in DICOM_SUFFIXES:
        return True
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


def find_series(path: Path) -> Found:
    """Find the CT series in a folder and its subfolders, or the one that a file belongs to."""
    if path.is_dir():
        return _found(_files(path))
    own = _found([path])
    if not own.series:
        return own
    # the file itself first: of copies the first one counts
    beside = _found([path, *sorted(file for file in path.parent.iterdir() if file.is_file())])
    return replace(beside, series=tuple(s for s in beside.series if path in {one.path for one in s.slices}))


def read_dicom(path: Path, wanted: str | Series | None, fill_gaps: bool, header_alone: bool) -> Scan:
    """Read a CT series.

    Args:
        path: folder, or one DICOM file.
        wanted: SeriesInstanceUID, a unique beginning or end of it, SeriesNumber or ``LARGEST``; None for the only
            series that is complete; a series that was found before.
        fill_gaps: interpolate slices that are missing.
        header_alone: leave the voxels unread; they are zeros.

    Raises:
        InputError: there is no CT series, ``wanted`` fits none or several, or the series cannot be stacked.
    """
    if isinstance(wanted, Series):
        series, arranged = wanted, arrange(wanted.label, wanted.slices, fill_gaps)
        told: tuple[str, ...] = ()
    else:
        found = find_series(path)
        if not found.series:
            _refuse_none(found, path)
        series, arranged, told = _choose(found, wanted, path, fill_gaps)
        if wanted is None or len(found.series) == 1:
            told += _unusable_text(found.unusable)
    voxels = np.broadcast_to(np.int16(0), arranged.size_dhw) if header_alone else read_voxels(arranged)
    where = f"{series.label} in {path}"
    return Scan(voxels, arranged.affine, where, warnings=told + arranged.warnings, name=series.name)


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder in order; links to folders are followed, each folder is entered once."""
    seen: set[str] = set()

    def refuse(error: OSError) -> None:
        raise error

    for root, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        if (real := os.path.realpath(root)) in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(root) / name for name in sorted(names))


def _found(paths: Any) -> Found:
    slices: dict[str, list[Slice]] = {}
    others: Counter[str] = Counter()
    unusable: dict[Path, InputError] = {}
    read: set[str] = set()
    instances: dict[str, Path] = {}
    for path in paths:
        # resource forks and other hidden files; pipes and dead links; a file that several links lead to
        if path.name.startswith(".") or not path.is_file() or (real := os.path.realpath(path)) in read:
            continue
        read.add(real)
        try:
            found = slices_of(path)
        except InputError as error:
            unusable[path] = error
            continue
        if isinstance(found, str):
            others.update([found] if found else [])
            continue
        first = instances.setdefault(found[0].instance_uid, path)
        if first == path or not cmp(first, path, shallow=False):
            slices.setdefault(found[0].series_uid or str(path.parent), []).extend(found)
    return Found(tuple(part for group in slices.values() for part in acquisitions(group)), others, unusable)


def acquisitions(slices: list[Slice]) -> list[Series]:
    """Part a series by acquisition where these are volumes of their own: they overlap, or are few and large."""
    groups: dict[str, list[Slice]] = {}
    for one in slices:
        groups.setdefault(one.acquisition, []).append(one)
    if len(groups) > 1:
        spans = sorted((min(h), max(h)) for h in ([s.height for s in group] for group in groups.values()))
        apart = all(above[0] > below[1] for below, above in itertools.pairwise(spans))
        large = len(groups) <= FEW_ACQUISITIONS and min(map(len, groups.values())) >= OWN_VOLUME
        if large or not apart:
            return [Series(tuple(group), name or "0") for name, group in groups.items()]
    return [Series(tuple(slices))]


def _choose(found: Found, wanted: str | None, path: Path, fill_gaps: bool) -> tuple[Series, Arranged, tuple[str, ...]]:
    """Return the series that is meant, its slices in order, and what a user should know of the choice."""
    if wanted not in (None, LARGEST) or len(found.series) == 1:
        series = found.series[0] if wanted in (None, LARGEST) else _select(found.series, str(wanted), path)
        try:
            return series, arrange(series.label, series.slices, fill_gaps), ()
        except InputError as error:
            if note := _unusable_text(found.unusable):
                error.message += f"; {note[0]}"
            raise
    complete, not_taken = [], []
    for series in sorted(found.series, key=lambda s: (-len(s.slices), s.uid)):
        try:
            complete.append((series, arrange(series.label, series.slices, fill_gaps)))
        except InputError as error:
            not_taken.append(error.message)
    if len(complete) == 1 or (complete and wanted == LARGEST):
        (chosen, arranged), *others = complete
        not_taken += [series.label for series, _ in others]
        told = f"of {len(found.series)} CT series took {chosen.label}; not taken: {'; '.join(not_taken)}"
        return chosen, arranged, (told,)
    listed = "; ".join(_line(series) for series in found.series)
    what = f"{len(found.series)} CT series in {path}" + ("" if complete else ", none complete")
    raise InputError(f"{what}: {listed}", f"name one with --series, by its {_names_of(found.series)}, or {LARGEST}")


def _select(found: tuple[Series, ...], wanted: str, path: Path) -> Series:
    wanted = wanted.strip()
    exact = [s for s in found if s.uid == wanted] or [s for s in found if s.number and s.number == wanted]
    fitting = exact or [s for s in found if wanted and (s.uid.startswith(wanted) or s.uid.endswith(wanted))]
    if len(fitting) == 1:
        return fitting[0]
    listed = "; ".join(_line(s) for s in fitting or found)
    if fitting:
        what = f"series {wanted} fits {len(fitting)} CT series in {path}: {listed}"
        raise InputError(what, f"give the {_names_of(tuple(fitting))}")
    raise InputError(f"no CT series {wanted!r} in {path}", f"there is: {listed}")


def _names_of(found: tuple[Series, ...]) -> str:
    """Return what tells series apart: acquisitions of one series share its UID, and series may share a number."""
    names = {"number": {s.number for s in found} - {""}, "whole UID": {s.uid for s in found} - {""}}
    return " or ".join(name for name, values in names.items() if len(values) == len(found)) or "folder"


def _line(series: Series) -> str:
    """Describe a series so that it can be told from the others: slices, spacing, kernel, UID."""
    first = series.slices[0]
    heights = np.unique(np.round([s.height for s in series.slices], 3))
    step = f", {np.median(np.diff(heights)):.3g} mm apart" if len(heights) > 1 else ""
    kernel = f", kernel {first.kernel}" if first.kernel else ""
    return f"{series.label}{step}{kernel} = {series.uid}"


def _refuse_none(found: Found, path: Path) -> None:
    if found.unusable:
        first = next(iter(found.unusable.values()))
        more = f"; {len(found.unusable) - 1} more files likewise" if len(found.unusable) > 1 else ""
        raise InputError(f"{first.message}{more}", first.hint)
    others = ", ".join(f"{count} {kind}" for kind, count in sorted(found.others.items()))
    raise InputError(
        f"no DICOM CT series in {path}" + (f" (only {others})" if others else ""),
        "give the folder that holds the CT slices, or a NIfTI, NRRD or MetaImage file",
    )


def _unusable_text(unusable: dict[Path, InputError]) -> tuple[str, ...]:
    if not unusable:
        return ()
    names = ", ".join(path.name for path in list(unusable)[:NAMED])
    more = f" and {len(unusable) - NAMED} more" if len(unusable) > NAMED else ""
    return (f"files left out: {names}{more} ({next(iter(unusable.values())).message})",)
