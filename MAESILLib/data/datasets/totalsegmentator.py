"""TotalSegmentator: a folder for each CT, with a label map for each structure, and a table of all."""

from __future__ import annotations

import csv
from pathlib import Path

from MAESILLib.data.datasets.description import Case, Dataset, LeftOut
from MAESILLib.data.datasets.look import folders, patient_of, stem_of, visible
from MAESILLib.data.sources import is_volume
from MAESILLib.errors import InputError

CASE = r"s\d{4}"
IMAGE, LABELS, TABLE = "ct.nii.gz", "segmentations", "meta.csv"
SPLITS = ("train", "val", "test")


def is_totalsegmentator(folder: Path) -> bool:
    """Say whether a folder is laid out like TotalSegmentator."""
    return any((case / IMAGE).is_file() for case in folders(folder, CASE))


def totalsegmentator_cases(folder: Path, dataset: Dataset, left_out: list[LeftOut]) -> list[Case]:
    """List the CTs of TotalSegmentator.

    Raises:
        InputError: there is no meta.csv, or a damaged one.
    """
    splits = _splits(folder / TABLE)
    visible(folder, left_out)
    cases = []
    for case in folders(folder, CASE):
        if reason := _why_not(case, splits):
            left_out.append(LeftOut(case, reason))
            continue
        visible(case, left_out)
        labels = visible(case / LABELS, left_out) if (case / LABELS).is_dir() else []
        maps = tuple(path for path in labels if is_volume(path))
        names = tuple((1, stem_of(path)) for path in maps)
        patient = patient_of(dataset, case.name)
        split, licence = splits[case.name], dataset.licence
        cases.append(Case(case.name, case / IMAGE, patient, split, dataset.key, licence, maps, names))
    return cases


def _why_not(case: Path, splits: dict[str, str]) -> str:
    if (case / "mri.nii.gz").is_file():
        return "MR: it holds mri.nii.gz"
    if not (case / IMAGE).is_file():
        return f"it has no {IMAGE}"
    if case.name not in splits:
        return f"{TABLE} does not name it, so nobody knows whether it is a test case"
    return ""


def _splits(path: Path) -> dict[str, str]:
    """Return the split of each case."""
    if not path.is_file():
        raise InputError(
            f"{path} is missing, which says which cases are for training, validation and test",
            "it comes with the download, beside s0000",
        )
    with open(path, newline="", encoding="utf-8-sig", errors="replace") as file:
        head = file.readline()
        file.seek(0)
        rows = list(csv.DictReader(file, delimiter=";" if ";" in head else ","))
    if not rows or not {"image_id", "split"} <= rows[0].keys():
        raise InputError(f"{path} has no columns 'image_id' and 'split'", "take it from the download again")
    splits = {str(row["image_id"]): str(row["split"]).strip() for row in rows}
    unknown = sorted(set(splits.values()) - set(SPLITS))
    if unknown:
        raise InputError(f"{path} names a split {unknown[0]!r}", f"it knows {', '.join(SPLITS)}")
    return splits
