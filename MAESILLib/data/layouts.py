"""Layouts of public CT data sets: their CTs, label maps, patients and splits. Sources are in docs/Datasets.md."""

import csv
import os
import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from MAESILLib.data.sources import Source, find_sources
from MAESILLib.runtime.errors import InputError
from MAESILLib.runtime.resources import resource_path

UNLISTED, OTHER = "not in the table of splits", "not of this layout"


@dataclass(frozen=True)
class Layout:
    """Layout of a data set.

    Attributes:
        images: regular expression of the end of a CT's path (file or folder of a DICOM series) with groups: ``case``,
            ``gz`` (of a compressed file), ``part`` (the folder that makes the split), ``set`` (the data set, where one
            layout serves several).
        example: such an end of a path.
        patient, labels: templates, of these groups, of the patient's name and of the path of the label map (or folder
            with a file for each structure) from where ``images`` begins to match.
        splits: split of each ``part``; the cache splits the others.
        split_table: CSV file with columns image_id and split, in place of ``splits``.
    """

    images: str
    example: str
    patient: str
    licence: str
    labels: str = ""
    splits: Mapping[str, str] = field(default_factory=dict)
    split_table: str = ""

    def match(self, path: Path) -> re.Match[str] | None:
        return re.search(rf"(?<=/)(?:{self.images})\Z", Path(os.path.abspath(path)).as_posix())

    def case(self, name: str, source: Source) -> Source:
        """Return a volume with what its path says; a split other than train, val, test or none says why it is no case.

        Raises:
            InputError: no usable table of splits.
        """
        if (match := self.match(source.path)) is None:
            return replace(source, split=OTHER)
        groups, root = match.groupdict(""), match.string[: match.start()]
        split = self.splits.get(groups.get("part", ""), "")
        if self.split_table:
            split = _read_splits(root + self.split_table).get(groups["case"], UNLISTED)
        labels = os.path.abspath(root + self.labels.format(**groups)) if self.labels else ""
        labels = labels if os.path.exists(labels) else ""
        return replace(
            source,
            patient=self.patient.format(**groups),
            split=split,
            dataset=groups.get("set", name),
            licence=self.licence,
            labels=labels,
            given=match.group(),
        )


TABLES = tomllib.loads(resource_path("layouts.toml").read_text(encoding="utf-8"))
LAYOUTS = {name: Layout(**table) for name, table in TABLES.items()}
OVERLAPS = {
    ("lidc-idri", "luna16"): "LUNA16 is a part of LIDC-IDRI under other patient names",
    ("flare", "msd"): "the 50 labelled CTs of FLARE22 are from MSD Task07_Pancreas",
}


def find_layout(path: Path) -> str:
    """Return the name of the layout of a CT's path; empty if it has none."""
    return next((name for name, layout in LAYOUTS.items() if layout.match(path)), "")


def find_cases(
    name: str, folder: Path | str, split: str | None = None, *reading: Any
) -> tuple[list[Source], Counter[str]]:
    """List the CTs of a layout below a folder, and count all volumes by their split.

    Args:
        split: train (and what has none), val or test; None for train and val. Test cases become the cache's ``val``:
            what is measured on, never trained on.
        reading: as for :func:`find_sources`.

    Raises:
        InputError: no folder, no such CT in it, or no usable table of splits.
    """
    layout = LAYOUTS[name]
    if not Path(folder).is_dir():
        raise InputError(f"{folder} is not a folder", f"give the folder that holds {layout.example}")
    volumes = [layout.case(name, source) for source in find_sources([folder], *reading)]
    wanted = {None: ("", "train", "val"), "train": ("", "train")}.get(split, (split,))
    cases = [replace(v, split="val" if split == "test" else v.split) for v in volumes if v.split in wanted]
    found = Counter(volume.split or "without a split" for volume in volumes)
    if not cases:
        raise InputError(
            f"{folder} has no CT of {name} for {split or 'train or val'}: its volumes are {', '.join(found)}",
            f"give the folder that holds {layout.example}, or another --split",
        )
    return cases, found


def _read_splits(path: str) -> dict[str, str]:
    """Return the split of each case in a table like TotalSegmentator's."""
    try:
        with open(path, newline="", encoding="utf-8-sig", errors="replace") as file:
            splits = {row.get("image_id", ""): row.get("split", "") for row in csv.DictReader(file, delimiter=";")}
    except FileNotFoundError:
        raise InputError(f"{path} is missing, which names the test cases", "it comes with the download") from None
    if not splits or not {*splits.values()} <= {"train", "val", "test"}:
        raise InputError(f"{path} does not give each image_id a split: train, val or test", "download it again")
    return splits


def overlaps(datasets: Iterable[str]) -> list[str]:
    """Describe which of some data sets hold scans of the same patients under other names."""
    names = {name.replace("_", "-") for name in datasets}
    warning = "{} and {} are in one cache: {}, so a patient may be on both sides of the split"
    return [warning.format(*pair, how) for pair, how in OVERLAPS.items() if names.issuperset(pair)]
