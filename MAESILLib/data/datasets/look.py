"""Looking into folders: sorted, without hidden files, which are named as left out."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from MAESILLib.data.datasets.description import Case, Dataset, LabelNames, LeftOut
from MAESILLib.data.sources import is_volume


def visible(folder: Path, left_out: list[LeftOut] | None = None) -> list[Path]:
    """Return what is in a folder, in the order of names; hidden files are added to ``left_out``."""
    found = []
    for path in sorted(folder.iterdir()):
        if not path.name.startswith("."):
            found.append(path)
        elif left_out is not None and path.is_file():
            left_out.append(LeftOut(path, why_hidden(path)))
    return found


def why_hidden(path: Path) -> str:
    """Say why a file whose name begins with a dot is left out."""
    return "macOS resource file, no image" if path.name.startswith("._") else "hidden file"


def folders(folder: Path, pattern: str = "") -> list[Path]:
    """Return the folders in a folder whose whole name fits a pattern (any if empty); none if it is no folder."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as found:
        # what a listing says of each spares asking the file system again: it may be a folder of 100,000 files
        names = [child.name for child in found if not child.name.startswith(".") and child.is_dir()]
    return [folder / name for name in sorted(names) if re.fullmatch(pattern or ".*", name)]


def has_volume(folder: Path, pattern: str) -> bool:
    """Say whether a folder holds a volume whose whole name fits a pattern."""
    return folder.is_dir() and any(is_volume(p) and re.fullmatch(pattern, p.name) for p in visible(folder))


def stem_of(path: Path) -> str:
    """Return a file name without its suffix (``.nii.gz`` counts as one)."""
    return re.sub(r"(\.nii\.gz|\.[^.]+)$", "", path.name, flags=re.IGNORECASE)


def patient_of(dataset: Dataset, name: str) -> str:
    """Return a patient's name that no other set has: the case's own, with the key of the set before it."""
    return name if name.lower().startswith(dataset.key) else f"{dataset.key}_{name}"


@dataclass(frozen=True)
class Part:
    """A folder of images, that of their label maps, and the split they make up.

    Attributes:
        pattern: what the stem of a file must fit; its first group is what image and label map share.
        wanted: that pattern in words.
    """

    images: str
    labels: str
    split: str
    pattern: str = "(.+)"
    wanted: str = ""
    label_pattern: str = "(.+)"


def read_part(
    root: Path,
    part: Part,
    dataset: Dataset,
    label_names: LabelNames,
    left_out: list[LeftOut],
    why_not: Callable[[str], str] = lambda name: "",
    prefix: str = "",
) -> Iterator[Case]:
    """Yield the cases of a part.

    Args:
        why_not: says of a case's name why it is left out; nothing if it is not.
        prefix: of the names of cases.
    """
    if not (root / part.images).is_dir():
        return
    images = _by_name(root / part.images, part.pattern, part.wanted, left_out)
    labels = _by_name(root / part.labels, part.label_pattern, "", left_out)
    for name, image in images.items():
        reason = why_not(name)
        if reason:
            left_out.append(LeftOut(image, reason))
            continue
        own = (labels[name],) if name in labels else ()
        case = f"{prefix}{name}"
        patient = patient_of(dataset, case)
        names = label_names if own else ()
        yield Case(case, image, patient, part.split, dataset.key, dataset.licence, own, names)
    for name in sorted(labels.keys() - images.keys()):
        left_out.append(LeftOut(labels[name], f"label map without its image in {part.images}"))


def _by_name(folder: Path, pattern: str, wanted: str, left_out: list[LeftOut]) -> dict[str, Path]:
    """Return the volumes of a folder by what their names say; none if there is no such folder."""
    found: dict[str, Path] = {}
    for path in visible(folder, left_out) if folder.is_dir() else []:
        match = re.fullmatch(pattern, stem_of(path))
        if not path.is_file() or not is_volume(path):
            left_out.append(LeftOut(path, "not a volume"))
        elif match is None:
            left_out.append(LeftOut(path, f"not named {wanted or 'like an image'}"))
        elif match[1] in found:
            left_out.append(LeftOut(path, f"the same case as {found[match[1]].name}"))
        else:
            found[match[1]] = path
    return found
