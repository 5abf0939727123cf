"""Collections of The Cancer Imaging Archive: trees of DICOM series, with LIDC-IDRI's annotations.

The Imaging Data Commons' client writes COLLECTION/PATIENT/STUDY_UID/MODALITY_SERIES_UID/*.dcm by default.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from MAESILLib.data.datasets.description import Case, Dataset, LeftOut
from MAESILLib.data.datasets.look import folders, why_hidden
from MAESILLib.data.sources import is_dicom

SERIES = re.compile(r"([A-Z]{2,})_(\d+(?:\.\d+)+)")
UID = re.compile(r"\d+(\.\d+)+")
LIDC_PATIENT = re.compile(r"LIDC-IDRI-\d{4}")
XML_SERIES = re.compile(rb"<SeriesInstanceUid>\s*([\d.]+)\s*<", re.IGNORECASE)
XML_HEAD_BYTES = 16_384
MIN_SLICES = 8
"""Fewer do not make a volume that is prepared; they are localisers as a rule."""
DEPTH = 4
MODALITY, SERIES_UID = "0008|0060", "0020|000e"


class Series(NamedTuple):
    """A folder of DICOM files: the first of them, and how many there are."""

    folder: Path
    first: Path
    slices: int


class Tree(NamedTuple):
    """What lies below a folder: series and XML files, in the order of names."""

    series: list[Series]
    xml: list[Path]


class Header(NamedTuple):
    """What the first file of a series says."""

    modality: str
    uid: str


def is_idc(folder: Path) -> bool:
    """Say whether a folder holds a tree as ``idc download`` writes it; looks along first children only."""
    level = [Path(os.path.abspath(folder))]
    for _ in range(DEPTH):
        level = [child for parent in level[:2] for child in folders(parent)]
        if any(SERIES.fullmatch(path.name) and UID.fullmatch(path.parent.name) for path in level):
            return True
    return False


def idc_cases(folder: Path, dataset: Dataset, left_out: list[LeftOut]) -> list[Case]:
    """List the CT series below a folder of collections, of one collection or of one patient."""
    cases = []
    for series in _tree(folder, left_out).series:
        path = series.folder
        match = SERIES.fullmatch(path.name)
        study, patient = path.parent, path.parent.parent
        if match is None or UID.fullmatch(study.name) is None:
            left_out.append(LeftOut(path, "not in PATIENT/STUDY_UID/MODALITY_SERIES_UID"))
        elif reason := _why_not(match[1], series.slices):
            left_out.append(LeftOut(path, reason))
        else:
            # a person has the same name here as in the DICOM files, so that other ways in agree with this one
            name = f"{patient.name}_{match[2]}"
            cases.append(Case(name, path, patient.name, "", patient.parent.name, ""))
    return cases


def is_lidc(folder: Path) -> bool:
    """Say whether a folder holds patients of LIDC-IDRI, at most two levels down."""
    folder = Path(os.path.abspath(folder))
    levels = [[folder], folders(folder), [below for child in folders(folder)[:4] for below in folders(child)]]
    return any(LIDC_PATIENT.fullmatch(path.name) for level in levels for path in level)


def lidc_cases(folder: Path, dataset: Dataset, left_out: list[LeftOut]) -> list[Case]:
    """List the CT series of LIDC-IDRI, with the XML file of each where it is there."""
    tree = _tree(folder, left_out)
    annotations = _annotations(tree.xml)
    cases = []
    for series in tree.series:
        path = series.folder
        patient = next((part for part in path.parts[::-1] if LIDC_PATIENT.fullmatch(part)), "")
        header = _header(series.first) if patient else None
        if header is None:
            reason = "its first file is no readable image" if patient else "not below a folder LIDC-IDRI-NNNN"
            left_out.append(LeftOut(path, reason))
        elif reason := _why_not(header.modality, series.slices):
            left_out.append(LeftOut(path, reason))
        else:
            name, labels = f"{patient}_{header.uid}", tuple(annotations.get(header.uid, ()))
            cases.append(Case(name, path, patient, "", dataset.key, dataset.licence, labels))
    return cases


def _tree(folder: Path, left_out: list[LeftOut]) -> Tree:
    tree = Tree([], [])
    _walk(Path(os.path.abspath(folder)), tree, left_out)
    return tree


def _walk(folder: Path, tree: Tree, left_out: list[LeftOut]) -> None:
    with os.scandir(folder) as found:
        # what a listing says of each spares asking the file system again, file by file
        children = sorted(found, key=lambda child: child.name)
    files = [Path(child.path) for child in children if child.is_file()]
    left_out += [LeftOut(path, why_hidden(path)) for path in files if path.name.startswith(".")]
    files = [path for path in files if not path.name.startswith(".")]
    tree.xml.extend(path for path in files if path.suffix.lower() == ".xml")
    slices = [path for path in files if is_dicom(path)]
    if slices:
        tree.series.append(Series(folder, slices[0], len(slices)))
    for child in children:
        if child.is_dir() and not child.name.startswith("."):
            _walk(Path(child.path), tree, left_out)


def _why_not(modality: str, slices: int) -> str:
    if modality != "CT":
        return f"{modality or 'no modality'}, not CT"
    if slices < MIN_SLICES:
        return f"{slices} slice{'s' if slices != 1 else ''}, fewer than {MIN_SLICES}: no volume (a localiser?)"
    return ""


def _header(file: Path) -> Header | None:
    """Return what a DICOM file says; None if it is no image that can be read."""
    import SimpleITK as sitk

    from MAESILLib.itk_quiet import quiet_itk

    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(file))
    try:
        with quiet_itk():
            reader.ReadImageInformation()
    except RuntimeError:
        return None
    texts = [reader.GetMetaData(key) if reader.HasMetaDataKey(key) else "" for key in (MODALITY, SERIES_UID)]
    return Header(*(str(text).strip("\0 ") for text in texts))


def _annotations(files: list[Path]) -> dict[str, list[Path]]:
    """Return XML files by the series that they annotate."""
    found: dict[str, list[Path]] = {}
    for path in files:
        with open(path, "rb") as file:
            match = XML_SERIES.search(file.read(XML_HEAD_BYTES))
        if match is not None:
            found.setdefault(match[1].decode(), []).append(path)
    return found
