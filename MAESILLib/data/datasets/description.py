"""What is said of a data set, of one of its cases, and of a file that is left out."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

LabelNames = tuple[tuple[int, str], ...]
"""Values of a label map and what they stand for."""


@dataclass(frozen=True)
class Dataset:
    """A public data set.

    Attributes:
        key: its name on the command line and in the cache's index.
        scans: how many, in words.
        tree: its folder layout, a line each.
        expects: what a folder must hold to be taken for it, in words.
        labels: the label convention, in words.
        label_values: of its label maps, where all have the same.
        patients: what is taken for the patient.
        splits: what becomes of the parts that the set names.
        licence: as far as it is known.
        licence_at: where the licence is stated.
        source: official page.
        get: how to get it, a line each.
        overlaps: keys of sets that hold scans of the same patients.
        overlap: how they overlap, in words.
    """

    key: str
    name: str
    scans: str
    body: str
    modality: str
    tree: tuple[str, ...]
    expects: str
    labels: str
    patients: str
    splits: str
    licence: str
    licence_at: str
    source: str
    get: tuple[str, ...]
    citation: str
    label_values: LabelNames = ()
    overlaps: tuple[str, ...] = ()
    overlap: str = ""


@dataclass(frozen=True)
class Case:
    """A CT of a data set.

    Attributes:
        image: file, or folder of a DICOM series.
        split: train, val, test, or empty where the set names none.
        dataset: key of the set; for a collection of the Imaging Data Commons, its collection_id.
        labels: label maps or annotation files.
        label_names: of the values of the label map; where ``labels`` are several, of each in their order.
    """

    name: str
    image: Path
    patient: str
    split: str
    dataset: str
    licence: str
    labels: tuple[Path, ...] = ()
    label_names: LabelNames = ()

    @property
    def labels_path(self) -> str:
        """Path of the labels: of the file, or of the folder that holds several; empty if there are none."""
        if len(self.labels) <= 1:
            return str(self.labels[0]) if self.labels else ""
        return os.path.commonpath([path.parent for path in self.labels])


@dataclass(frozen=True)
class LeftOut:
    """A file or folder that is no case, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Listing:
    """The cases in a folder of a data set, and what was left out; both in an order that depends on names alone."""

    dataset: Dataset
    folder: Path
    cases: tuple[Case, ...]
    left_out: tuple[LeftOut, ...]
