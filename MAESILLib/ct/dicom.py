"""DICOM series, read by pydicom: which CT series a folder holds, and the one that is meant.

Other modalities, localisers (scouts), objects without pixels and CT pictures that are no slices are set aside, and
named only when no CT series is left. A damaged file costs the series it belongs to, not the others.
"""

import itertools
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

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


@dataclass(frozen=True)
class Series:
    """The slices of one CT series, or of one of its acquisitions, in no particular order.

    Attributes:
        warnings: what a user should know of how it was found, one line each.
    """

    slices: tuple[Slice, ...]
    acquisition: str = ""
    warnings: tuple[str, ...] = ()

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

    def arranged(self, fill_gaps: bool) -> Arranged:
        """Order and check the slices as :func:`arrange` does; a refusal says, too, how the series was found."""
        try:
            return arrange(self.label, self.slices, fill_gaps)
        except InputError as error:
            error.message = "; ".join([error.message, *self.warnings])
            raise


def looks_like_dicom(path: Path) -> bool:
    """Tell whether a file is named like DICOM or has its preamble."""
    if path.suffix.lower() in DICOM_SUFFIXES:
        return True
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


def read_dicom(path: Path, series: Series, fill_gaps: bool, header_alone: bool) -> Scan:
    """Read a CT series that was found in ``path``.

    Args:
        fill_gaps: interpolate slices that are missing.
        header_alone: leave the voxels unread; they are zeros.

    Raises:
        InputError: it cannot be stacked, or pixels are damaged.
    """
    arranged = series.arranged(fill_gaps)
    voxels = np.broadcast_to(np.int16(0), arranged.size_dhw) if header_alone else read_voxels(arranged)
    warnings = series.warnings + arranged.warnings
    return Scan(voxels, arranged.affine, f"{series.label} in {path}", warnings=warnings, name=series.name)


def find_series(path: Path, wanted: str | None, fill_gaps: bool) -> Series:
    """Find a CT series by the headers of a folder, or of the folder of a file.

    Args:
        wanted: SeriesInstanceUID, a unique beginning or end of it, SeriesNumber or ``LARGEST``; None for the only
            series that is complete.
        fill_gaps: one with missing slices is complete, too.

    Raises:
        InputError: there is no CT series, or ``wanted`` fits none or several.
    """
    found = _series_in(path, _files(path) if path.is_dir() else [path])
    if path.is_file():
        # the file itself first, because of copies the first one counts
        found = _series_in(path, [path, *sorted(file for file in path.parent.iterdir() if file.is_file())])
        found = [series for series in found if path in {one.path for one in series.slices}]
    return _choose(found, wanted, path, fill_gaps)


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


def _series_in(path: Path, files: Iterable[Path]) -> list[Series]:
    slices: dict[tuple[str, ...], list[Slice]] = {}
    others: Counter[str] = Counter()
    unusable: list[InputError] = []
    read: set[str] = set()
    for file in files:
        # resource forks and other hidden files; pipes and dead links; a file that several links lead to
        if file.name.startswith(".") or not file.is_file() or (real := os.path.realpath(file)) in read:
            continue
        read.add(real)
        try:
            found = slices_of(file)
        except InputError as error:
            unusable.append(error)
            continue
        if isinstance(found, str):
            others.update([found] if found else [])
        else:
            slices.setdefault(found[0].series, []).extend(found)
    problem = likewise([error.message for error in unusable])
    if slices:
        warnings = (f"files left out: {problem}",) if problem else ()
        return [replace(part, warnings=warnings) for group in slices.values() for part in acquisitions(group)]
    if problem:
        raise InputError(problem, unusable[0].hint)
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(others.items()))
    raise InputError(
        f"no DICOM CT series in {path}" + (f" (only {kinds})" if kinds else ""),
        "give the folder that holds the CT slices, or a NIfTI, NRRD or MetaImage file",
    )


def likewise(problems: list[str]) -> str:
    """Return the first problem, and how many files more have one; or nothing."""
    more = f"; {len(problems) - 1} more files likewise" if len(problems) > 1 else ""
    return "".join(problems[:1]) + more


def acquisitions(slices: list[Slice]) -> list[Series]:
    """Part a series by acquisition and kernel where these are volumes of their own: they overlap, or are few and large.

    Kernels are those of one reconstruction each, which careless software exports under one UID.
    """
    groups: dict[str, list[Slice]] = {}
    kernels = len({one.kernel for one in slices}) > 1
    for one in slices:
        name = "-".join(filter(None, (one.acquisition, one.kernel if kernels else "")))
        groups.setdefault(name, []).append(one)
    if len(groups) > 1:
        spans = sorted((min(h), max(h)) for h in ([s.height for s in group] for group in groups.values()))
        apart = all(above[0] > below[1] for below, above in itertools.pairwise(spans))
        large = len(groups) <= FEW_ACQUISITIONS and min(map(len, groups.values())) >= OWN_VOLUME
        if large or not apart:
            return [Series(tuple(group), name or "0") for name, group in groups.items()]
    return [Series(tuple(slices))]


def _choose(found: list[Series], wanted: str | None, path: Path, fill_gaps: bool) -> Series:
    if wanted not in (None, LARGEST):
        return _select(found, str(wanted), path)
    if len(found) == 1:
        return found[0]
    complete, not_taken = [], []
    for series in sorted(found, key=lambda s: (-len(s.slices), s.uid)):
        try:
            series.arranged(fill_gaps)
            complete.append(series)
        except InputError as error:
            not_taken.append(error.message)
    if len(complete) == 1 or (complete and wanted == LARGEST):
        chosen, *others = complete
        not_taken += [series.label for series in others]
        told = f"of {len(found)} CT series took {chosen.label}; not taken: {'; '.join(not_taken)}"
        return replace(chosen, warnings=(told, *chosen.warnings))
    what = f"{len(found)} CT series in {path}" + ("" if complete else ", none complete")
    hint = f"name one with --series, by its {_names_of(found)}, or {LARGEST}"
    raise InputError(f"{what}: {_listed(found)}", hint)


def _select(found: list[Series], wanted: str, path: Path) -> Series:
    wanted = wanted.strip()
    exact = [s for s in found if s.uid == wanted] or [s for s in found if s.number and s.number == wanted]
    fitting = exact or [s for s in found if wanted and (s.uid.startswith(wanted) or s.uid.endswith(wanted))]
    if not fitting:
        raise InputError(f"no CT series {wanted!r} in {path}", f"there is: {_listed(found)}")
    if len(fitting) > 1:
        what = f"series {wanted} fits {len(fitting)} CT series in {path}: {_listed(fitting)}"
        raise InputError(what, f"give the {_names_of(fitting)}")
    return fitting[0]


def _names_of(found: list[Series]) -> str:
    """Return what tells series apart: acquisitions of one series share its UID, and series may share a number."""
    names = {"number": {s.number for s in found} - {""}, "whole UID": {s.uid for s in found} - {""}}
    return " or ".join(name for name, values in names.items() if len(values) == len(found)) or "folder"


def _listed(found: list[Series]) -> str:
    """Describe series so that they can be told from one another: slices, spacing, kernel, UID."""
    lines = []
    for series in found:
        heights = np.unique(np.round([s.height for s in series.slices], 3))
        step = f", {np.median(np.diff(heights)):.3g} mm apart" if len(heights) > 1 else ""
        kernel = f", kernel {series.slices[0].kernel}" if series.slices[0].kernel else ""
        lines.append(f"{series.label}{step}{kernel} = {series.uid}")
    return "; ".join(lines)
