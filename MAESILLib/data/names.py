"""Unique names of volumes from the paths of all sources; no source has to be read for them."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from MAESILLib.data.sources import VOLUME_SUFFIXES

LONGEST = 120
"""Characters of a name; file systems take 255 bytes, and a temporary name is longer."""
DICOM_FILE = (".dcm", ".ima", ".dicom")


def plan_names(paths: Sequence[Path]) -> list[str]:
    """Return a name for each source; no two are the same, in any case of their letters.

    A volume is named after its file, a DICOM series after its folder. Where that is not enough, the folders above
    come before it, as many as it takes: ``case_0001/ct.nii.gz`` beside ``case_0002/ct.nii.gz`` is ``case_0001_ct``.
    """
    parts = [_parts(path) for path in paths]
    depths = [2 if path.suffix.lower() in DICOM_FILE else 1 for path in paths]
    while True:
        names = [_label(p, d) for p, d in zip(parts, depths, strict=True)]
        counts = Counter(name.casefold() for name in names)
        clashing = [i for i, name in enumerate(names) if counts[name.casefold()] > 1]
        deeper = [i for i in clashing if depths[i] < len(parts[i])]
        if not deeper:
            break
        for i in deeper:
            depths[i] += 1
    for i in clashing:
        names[i] = marked(names[i], paths[i])
    return names


def marked(name: str, path: Path) -> str:
    """Return a name that the path makes unlike any other."""
    return f"{name[:LONGEST]}_{hashlib.sha256(os.fsencode(os.path.abspath(path))).hexdigest()[:8]}"


def _parts(path: Path) -> tuple[str, ...]:
    """Return the file's name without its suffix and the folders above, the innermost first."""
    parts = Path(os.path.abspath(path)).parts[::-1]
    suffix = next((s for s in (*VOLUME_SUFFIXES, *DICOM_FILE) if parts[0].lower().endswith(s)), "")
    return (parts[0][: len(parts[0]) - len(suffix)], *parts[1:-1]) if len(parts) > 1 else parts


def _label(parts: tuple[str, ...], depth: int) -> str:
    label = re.sub(r"[^\w.-]+", "_", "_".join(parts[:depth][::-1])).strip("._") or "volume"
    if len(label) > LONGEST:
        label = f"{label[:LONGEST]}_{hashlib.sha256(label.encode()).hexdigest()[:8]}"
    # NAME.foreground.npy is the table of NAME
    return re.sub(r"\.foreground$", "_foreground", label, flags=re.IGNORECASE)
