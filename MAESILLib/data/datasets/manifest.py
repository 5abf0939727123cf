"""A listing as a manifest that a user can edit and give to ``maesil prepare``."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

from MAESILLib.data.datasets.description import Listing
from MAESILLib.errors import InputError
from MAESILLib.files import write_text

COLUMNS = ("file", "case", "patient", "split", "dataset", "licence", "labels", "label_names")


def write_manifest(path: Path | str, listing: Listing) -> None:
    """Write the cases as CSV; paths are relative to it.

    Raises:
        InputError: it is no .csv or exists already.
        DiskFullError: the disk is full.
    """
    path = Path(path)
    if path.suffix.lower() != ".csv":
        raise InputError(f"{path} is no .csv", "name the manifest as OUT.csv")
    if path.exists():
        raise InputError(f"{path} exists, perhaps with changes of yours", "choose another name, or remove it")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for case in listing.cases:
        names = "; ".join(f"{value} {name}" for value, name in case.label_names)
        fields = (case.name, case.patient, case.split, case.dataset, case.licence)
        writer.writerow((_relative(str(case.image), path), *fields, _relative(case.labels_path, path), names))
    write_text(path, text.getvalue())


def _relative(target: str, manifest: Path) -> str:
    if not target:
        return ""
    try:
        return os.path.relpath(target, manifest.parent)
    except ValueError:
        # on another drive of Windows, where nothing is relative
        return os.path.abspath(target)
