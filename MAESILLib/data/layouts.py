"""Layouts of public CT data sets: their CTs, label maps, patients and splits. Sources are in docs/Datasets.md."""

from __future__ import annotations

import csv
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from MAESILLib.data.sources import Source, find_sources
from MAESILLib.runtime.errors import InputError

UNLISTED, OTHER = "not in the table of splits", "not of this layout"


@dataclass(frozen=True)
class Layout:
    """Layout of a data set.

    Attributes:
        images: regular expression of the end of a CT's path (file or folder of a DICOM series) with groups: ``case``,
            ``part`` (the folder that makes the split), ``set`` (the data set, where one layout serves several).
        example: such an end of a path.
        patient, labels: templates, of these groups, of the patient's name and of the path of the label map (or folder
            with a file for each structure) from where ``images`` begins to match.
        label_names: of the values of a label map; empty where file names or ``dataset.json`` state them.
        splits: split of each ``part``; the cache splits the others.
        split_table: CSV file with columns image_id and split, in place of ``splits``.
    """

    images: str
    example: str
    patient: str
    licence: str
    labels: str = ""
    label_names: Mapping[int, str] = field(default_factory=dict)
    splits: Mapping[str, str] = field(default_factory=dict)
    split_table: str = ""

    def match(self, path: Path) -> re.Match[str] | None:
        """Match the end of a CT's path."""
        return re.search(rf"(?<=/)(?:{self.images})\Z", Path(os.path.abspath(path)).as_posix())

    def case(self, name: str, path: Path) -> Source:
        """Return a volume with what its path says; a split other than train, val, test or none says why it is no case.

        Raises:
            InputError: no usable table of splits.
        """
        if (match := self.match(path)) is None:
            return Source(path, split=OTHER)
        groups, root = match.groupdict(), match.string[: match.start()]
        split = self.splits.get(groups.get("part", ""), "")
        if self.split_table:
            split = _read_splits(root + self.split_table).get(groups["case"], UNLISTED)
        labels = os.path.abspath(root + self.labels.format(**groups)) if self.labels else ""
        labels = labels if os.path.exists(labels) else ""
        return Source(path, self.patient.format(**groups), split, groups.get("set", name), self.licence, labels)


# of two layouts that a path matches, the narrower comes first
LAYOUTS = {
    "totalsegmentator": Layout(
        r"(?P<case>s\d{4})/ct\.nii\.gz", "s0000/ct.nii.gz", "totalsegmentator_{case}", "CC BY 4.0",
        "{case}/segmentations", split_table="meta.csv"),
    "lidc-idri": Layout(
        r"(?P<case>LIDC-IDRI-\d{4})/[^/]+/[^/]+", "LIDC-IDRI-0001/STUDY/SERIES", "{case}", "CC BY 3.0"),
    "luna16": Layout(
        r"subset\d/(?P<case>[^/]+)\.mhd", "subset0/SERIES_UID.mhd", "luna16_{case}", "CC BY 4.0",
        "seg-lungs-LUNA16/{case}.mhd", {3: "lung", 4: "lung", 5: "trachea"}),
    "flare": Layout(
        r"images(?P<part>Tr|Ts)/(?P<case>[^/]+)_0000\.nii\.gz", "imagesTr/NAME_0000.nii.gz", "flare_{case}",
        "no single one: data of many sources under the challenge's rules", "labels{part}/{case}.nii.gz",
        {1: "liver", 2: "right kidney", 3: "spleen", 4: "pancreas", 5: "aorta", 6: "inferior vena cava",
         7: "right adrenal gland", 8: "left adrenal gland", 9: "gallbladder", 10: "esophagus", 11: "stomach",
         12: "duodenum", 13: "left kidney"}, {"Ts": "test"}),
    # ids from 500 on are MR (the set's own readme)
    "amos": Layout(
        r"images(?P<part>Tr|Va|Ts)/(?P<case>amos_0[0-4]\d\d)\.nii\.gz", "imagesTr/amos_0001.nii.gz", "{case}",
        "unclear: CC BY 4.0 or CC BY-NC", "labels{part}/{case}.nii.gz",
        {1: "spleen", 2: "right kidney", 3: "left kidney", 4: "gallbladder", 5: "esophagus", 6: "liver", 7: "stomach",
         8: "aorta", 9: "inferior vena cava", 10: "pancreas", 11: "right adrenal gland", 12: "left adrenal gland",
         13: "duodenum", 14: "bladder", 15: "prostate/uterus"}, {"Tr": "train", "Va": "val", "Ts": "test"}),
    # the other tasks are MR
    "msd": Layout(
        r"(?P<task>Task(?:03|06|07|08|09|10)_\w+)/images(?P<part>Tr|Ts)/(?P<case>[^/]+)\.nii\.gz",
        "Task03_Liver/imagesTr/liver_0.nii.gz", "msd_{case}", "CC BY-SA 4.0", "{task}/labels{part}/{case}.nii.gz",
        splits={"Ts": "test"}),
    "btcv": Layout(
        r"(?P<part>Training|Testing)/img/img(?P<case>\d+)\.nii\.gz", "Training/img/img0001.nii.gz", "btcv_{case}",
        "terms of use on Synapse, to be accepted before the download", "{part}/label/label{case}.nii.gz",
        {1: "spleen", 2: "right kidney", 3: "left kidney", 4: "gallbladder", 5: "esophagus", 6: "liver", 7: "stomach",
         8: "aorta", 9: "inferior vena cava", 10: "portal vein and splenic vein", 11: "pancreas",
         12: "right adrenal gland", 13: "left adrenal gland"}, {"Testing": "test"}),
    # as idc download writes it: PATIENT_ID is the DICOM PatientID
    "idc": Layout(
        r"(?P<set>[^/]+)/(?P<case>[^/]+)/\d+(?:\.\d+)+/CT_\d+(?:\.\d+)+",
        "COLLECTION_ID/PATIENT_ID/1.2.3/CT_1.2.3.4", "{case}", ""),
}  # fmt: skip
OVERLAPS = {
    ("lidc-idri", "luna16"): "LUNA16 is a part of LIDC-IDRI under other patient names",
    ("flare", "msd"): "the 50 labelled CTs of FLARE22 are from MSD Task07_Pancreas",
}


def find_layout(path: Path) -> str:
    """Return the name of the layout of a CT's path; empty if it has none."""
    return next((name for name, layout in LAYOUTS.items() if layout.match(path)), "")


def find_cases(name: str, folder: Path | str, split: str | None = None) -> tuple[list[Source], Counter[str]]:
    """List the CTs of a layout below a folder, and count all volumes by their split.

    Args:
        split: train (and what has none), val or test; None for train and val. Test cases become the cache's ``val``:
            what is measured on, never trained on.

    Raises:
        InputError: no folder, no such CT in it, or no usable table of splits.
    """
    layout = LAYOUTS[name]
    if not Path(folder).is_dir():
        raise InputError(f"{folder} is not a folder", f"give the folder that holds {layout.example}")
    volumes = [layout.case(name, source.path) for source in find_sources([folder])]
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
