"""Unique names of volumes from the paths of all sources; no source has to be read for them."""

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import count
from pathlib import Path, PurePath, PureWindowsPath

from MAESILLib.data.sources import VOLUME_SUFFIXES

LONGEST = 120
"""Characters of a name; file systems take 255 bytes, and a temporary name is longer."""
DICOM_FILE = (".dcm", ".ima", ".dicom")
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
"""Windows has no file of these names, whatever their suffix."""
TABLES = re.compile(r"\.(foreground|labels)$", re.IGNORECASE)
"""NAME.foreground.npy is a table of NAME."""


def plan_names(paths: Sequence[Path]) -> list[str]:
    """Return a name for each source; no two are the same, in any case of their letters.

    A volume is named after its file, a DICOM series after its folder. Where that is not enough, the folders above
    come before it, as many as it takes: ``case_0001/ct.nii.gz`` beside ``case_0002/ct.nii.gz`` is ``case_0001_ct``.
    """
    names, clashing = _shortest([Path(os.path.abspath(path)) for path in paths])
    for i in clashing:
        names[i] = marked(names[i], paths[i])
    return names


def plan_numbers(given: Sequence[str], known: Sequence[str], taken: set[str]) -> list[str]:
    """Return a name for each source: as few parts of what it is given as it takes, or a number.

    Free numbers are given in the order of the sources: so it does not matter which of them have theirs already.

    Args:
        given: what a manifest or a layout calls it; empty where none does.
        known: the name that it has in the cache already, or empty.
        taken: names in use, in lower case; extended.
    """
    # as Windows parts them, by either slash, so that names are the same on every system
    stated = iter(_shortest([PureWindowsPath(text) for text in given if text])[0])
    numbers: dict[str, count[int]] = defaultdict(lambda: count(1))
    names = []
    for text, name in zip(given, known, strict=True):
        base = next(stated) if text else ""
        if name:
            names.append(name)
            continue
        found = (_numbered(base, number) for number in numbers[base.casefold()])
        names.append(next(name for name in found if name.casefold() not in taken))
        taken.add(names[-1].casefold())
    return names


def _numbered(base: str, number: int) -> str:
    if not base:
        return f"ct_{number:04d}"
    return base if number == 1 else f"{base}_{number}"


def marked(name: str, path: Path) -> str:
    """Return a name that the path makes unlike any other."""
    return f"{name[:LONGEST]}_{hashlib.sha256(os.fsencode(os.path.abspath(path))).hexdigest()[:8]}"


def _shortest(paths: Sequence[PurePath]) -> tuple[list[str], list[int]]:
    """Return names of as few parts as it takes, and which of them are still like others."""
    parts = [_parts(path) for path in paths]
    depths = [2 if path.suffix.lower() in DICOM_FILE else 1 for path in paths]
    while True:
        names = [_label(p, d) for p, d in zip(parts, depths, strict=True)]
        counts = Counter(name.casefold() for name in names)
        clashing = [i for i, name in enumerate(names) if counts[name.casefold()] > 1]
        deeper = [i for i in clashing if depths[i] < len(parts[i])]
        if not deeper:
            return names, clashing
        for i in deeper:
            depths[i] += 1


def _parts(path: PurePath) -> tuple[str, ...]:
    """Return the file's name without its suffix and the folders above, the innermost first."""
    name, folders = path.name, path.parent.parts[::-1]
    suffix = next((s for s in (*VOLUME_SUFFIXES, *DICOM_FILE) if name.lower().endswith(s)), "")
    return (name[: len(name) - len(suffix)], *(folder for folder in folders if folder != path.anchor))


def _label(parts: tuple[str, ...], depth: int) -> str:
    label = re.sub(r"[^\w.-]+", "_", "_".join(parts[:depth][::-1])).strip("._") or "volume"
    if len(label) > LONGEST:
        label = f"{label[:LONGEST]}_{hashlib.sha256(label.encode()).hexdigest()[:8]}"
    label = TABLES.sub(r"_\1", label)
    return f"ct_{label}" if RESERVED.fullmatch(label) else label
