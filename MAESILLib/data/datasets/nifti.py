"""Sets of NIfTI files in folders of images and of label maps: MSD, AMOS, FLARE, BTCV."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from MAESILLib.data.datasets.description import Case, Dataset, LabelNames, LeftOut
from MAESILLib.data.datasets.look import Part, folders, has_volume, read_part, visible
from MAESILLib.errors import InputError
from MAESILLib.files import read_json

TASK = r"Task\d\d_\w+"
FIRST_MR = 500
"""AMOS: "id numbers less than 500 belong to CT data, otherwise they belong to MRI data" (the set's own readme)."""
AMOS_NAME = r"amos_\d{4}"
AMOS_PARTS = tuple(
    Part(f"images{end}", f"labels{end}", split, f"({AMOS_NAME})", "amos_NNNN")
    for end, split in (("Tr", "train"), ("Va", "val"), ("Ts", "test"))
)
# the set names a training part and no validation: what is not test is left to the cache to split
FLARE_PARTS = tuple(
    Part(f"images{end}", f"labels{end}", split, "(.+)_0000", "NAME_0000 (the first channel)")
    for end, split in (("Tr", ""), ("Ts", "test"))
)
MSD_PARTS = (Part("imagesTr", "labelsTr", ""), Part("imagesTs", "labelsTs", "test"))
BTCV_PARTS = tuple(
    Part(f"{folder}/img", f"{folder}/label", split, r"img(\d+)", "imgNNNN", r"label(\d+)")
    for folder, split in (("Training", ""), ("Testing", "test"))
)
BTCV_ROOTS = (".", "RawData", "Abdomen/RawData")


def is_amos(folder: Path) -> bool:
    """Say whether a folder is laid out like AMOS."""
    return any(has_volume(folder / part.images, rf"{AMOS_NAME}\.nii(\.gz)?") for part in AMOS_PARTS)


def amos_cases(folder: Path, dataset: Dataset, left_out: list[LeftOut]) -> list[Case]:
    """List the CTs of AMOS."""

    def why_not(name: str) -> str:
        number = int(name.rpartition("_")[2])
        return f"MR: ids from {FIRST_MR} on are MR" if number >= FIRST_MR else ""

    parts = (read_part(folder, part, dataset, dataset.label_values, left_out, why_not) for part in AMOS_PARTS)
    return [case for part in parts for case in part]


def is_flare(folder: Path) -> bool:
    """Say whether a folder is laid out like FLARE."""
    return any(has_volume(folder / part.images, r".+_0000\.nii(\.gz)?") for part in FLARE_PARTS)


def flare_cases(folder: Path, dataset: Dataset, left_out: list[LeftOut]) -> list[Case]:
    """List the CTs of FLARE."""
    parts = (read_part(folder, part, dataset, dataset.label_values, left_out) for part in FLARE_PARTS)
    return [case for part in parts for case in part]


def is_msd(folder: Path) -> bool:
    """Say whether a folder is a task of the Medical Segmentation Decathlon, or holds some."""
    return bool(_tasks(folder))


def msd_cases(folder: Path, dataset: Dataset, left_out: list[LeftOut]) -> list[Case]:
    """List the CTs of one task or of all tasks in a folder; tasks that are not CT are left out.

    Raises:
        InputError: a task has no dataset.json, or a damaged one.
    """
    cases: list[Case] = []
    for task in _tasks(folder):
        description = _task_description(task)
        channels = description.get("modality") or description.get("channel_names") or {}
        names = list(channels.values()) if isinstance(channels, dict) else [channels]
        if [str(name).upper() for name in names] != ["CT"]:
            said = ", ".join(map(str, names)) or "nothing"
            left_out.append(LeftOut(task, f"not CT: its dataset.json gives the modality {said}"))
            continue
        labels = label_names(description)
        # names of hidden files in the task folder itself
        visible(task, left_out)
        for part in MSD_PARTS:
            cases += read_part(task, part, dataset, labels, left_out)
    return cases


def _tasks(folder: Path) -> list[Path]:
    if (folder / "imagesTr").is_dir():
        return [folder] if re.fullmatch(TASK, os.path.basename(os.path.abspath(folder))) else []
    return [task for task in folders(folder, TASK) if (task / "imagesTr").is_dir()]


def _task_description(task: Path) -> dict[str, Any]:
    path = task / "dataset.json"
    if not path.is_file():
        raise InputError(
            f"{task} has no dataset.json, which says the modality and the labels", "take it from the download again"
        )
    description = read_json(path)
    if not isinstance(description, dict):
        raise InputError(f"{path} is not an object", "take it from the download again")
    return description


def label_names(description: dict[str, Any]) -> LabelNames:
    """Return the values of label maps that a dataset.json states, either way round; without the background."""
    found: dict[int, str] = {}
    labels = description.get("labels")
    for key, value in labels.items() if isinstance(labels, dict) else ():
        number, name = (value, key) if isinstance(value, int) else (key, value)
        if re.fullmatch(r"\d+", str(number)) and int(number) > 0:
            found[int(number)] = str(name)
    return tuple(sorted(found.items()))


def is_btcv(folder: Path) -> bool:
    """Say whether a folder is laid out like BTCV's abdomen set."""
    return _btcv_root(folder) is not None


def btcv_cases(folder: Path, dataset: Dataset, left_out: list[LeftOut]) -> list[Case]:
    """List the CTs of BTCV."""
    root = _btcv_root(folder) or folder
    parts = (
        read_part(root, part, dataset, dataset.label_values, left_out, prefix=f"{dataset.key}_") for part in BTCV_PARTS
    )
    return [case for part in parts for case in part]


def _btcv_root(folder: Path) -> Path | None:
    for root in (folder / name for name in BTCV_ROOTS):
        if any(has_volume(root / part.images, r"img\d+\.nii(\.gz)?") for part in BTCV_PARTS):
            return root
    return None
