"""Point lists: labelled voxels of CT volumes, each of one structure of one patient."""

from __future__ import annotations

import csv
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from MAESILLib.ct.reading import read_geometry, read_volume
from MAESILLib.ct.volume import model_grid
from MAESILLib.mae.superpatch import Shape
from MAESILLib.runtime.errors import InputError

SPACING_MM = 1.5
"""Points are voxels of this grid, and so are the tokens they are measured with."""
COLUMNS = ("file", "k", "j", "i", "structure", "patient")
SIDES = ("_left", "_right")


@dataclass(frozen=True, eq=False)
class Points:
    """N labelled points.

    Attributes:
        files: the volumes.
        file: (N,) index into ``files``.
        kji: (N, 3) voxel of the LPS-oriented (D, H, W) array on the 1.5 mm grid.
        structure: (N,) names, sides kept.
        patient: (N,) names.
        number: (N,) row in the list, from 0: the seed of the point's windows.
        apart: patients with split ``val``: their metrics are also stated apart.
    """

    files: tuple[Path, ...]
    file: NDArray[np.int64]
    kji: NDArray[np.int64]
    structure: NDArray[np.str_]
    patient: NDArray[np.str_]
    number: NDArray[np.int64]
    apart: frozenset[str] = frozenset()

    def take(self, rows: NDArray[np.int64]) -> Points:
        """Return some of the points."""
        return replace(
            self,
            file=self.file[rows],
            kji=self.kji[rows],
            structure=self.structure[rows],
            patient=self.patient[rows],
            number=self.number[rows],
        )


def read_points(path: Path, root: Path | None = None) -> Points:
    """Read a CSV of points: file, k, j, i, structure, patient and, if there is one, split.

    Args:
        root: folder that ``file`` is relative to; the CSV's own if None.

    Raises:
        InputError: a column is missing, a row is incomplete, a file is absent, or a point lies outside its volume.
    """
    rows = _rows(path)
    folder = root or path.parent
    names = list(dict.fromkeys(row["file"] for row in rows))
    shapes = {}
    for name in names:
        if not (folder / name).is_file():
            raise InputError(f"{path}: no such file: {folder / name}", "give the folder of the volumes as --root")
        shapes[name] = model_grid(read_geometry(folder / name), SPACING_MM).geometry.size_dhw
    kji = [_voxel(row, shapes[row["file"]], f"{path}, line {line}") for line, row in enumerate(rows, start=2)]
    return Points(
        tuple(folder / name for name in names),
        np.array([names.index(row["file"]) for row in rows]),
        np.array(kji),
        np.array([row["structure"] for row in rows]),
        np.array([row["patient"] for row in rows]),
        np.arange(len(rows)),
        frozenset(row["patient"] for row in rows if row.get("split") == "val"),
    )


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
            if missing:
                raise InputError(f"{path} has no column '{missing[0]}'", f"it needs {', '.join(COLUMNS)}")
            rows = list(reader)
    except FileNotFoundError:
        raise InputError(f"no such file: {path}", "check the path") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is not a CSV file in UTF-8: {error}", "save it as CSV in UTF-8") from None
    for line, row in enumerate(rows, start=2):
        empty = [column for column in COLUMNS if not row[column]]
        if empty:
            raise InputError(f"{path}, line {line}: '{empty[0]}' is empty", "complete or remove the row")
    if not rows:
        raise InputError(f"{path} has no points", "give one point a row")
    return rows


def _voxel(row: dict[str, str], shape: Shape, where: str) -> list[int]:
    try:
        voxel = [int(float(row[axis])) for axis in "kji"]
    except (ValueError, OverflowError):
        raise InputError(f"{where}: k, j, i are not numbers", "give voxels") from None
    if not all(0 <= v < n for v, n in zip(voxel, shape, strict=True)):
        raise InputError(
            f"{where}: voxel {tuple(voxel)} lies outside the volume of {shape} voxels",
            f"k, j, i count voxels of the LPS-oriented array at {SPACING_MM} mm",
        )
    return voxel


def without_side(structure: NDArray[np.str_]) -> NDArray[np.str_]:
    """Merge left and right: the names (N,) without ``_left`` and ``_right``."""
    for side in SIDES:
        structure = np.char.replace(structure, side, "")
    return structure


def read_hu(path: Path) -> NDArray[np.int16]:
    """Read a CT onto the LPS-oriented 1.5 mm grid: (D, H, W) HU, rounded.

    Raises:
        InputError: it cannot be read, or is no CT.
    """
    volume = read_volume(path)
    hu: NDArray[np.int16] = np.rint(model_grid(volume.geometry, SPACING_MM).to_model(volume.hu)).astype(np.int16)
    return hu


def stratified(points: Points, most: int, seed: int = 0) -> Points:
    """Return at most ``most`` points, spread over structures and patients.

    The points of each structure in each patient are put in random order; first comes the first of every such group,
    then the second, and so on, until there are enough.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(points.number))
    seen: dict[tuple[str, str], int] = defaultdict(int)
    rank = np.zeros(len(order), np.int64)
    for row in order:
        group = (points.structure[row], points.patient[row])
        rank[row], seen[group] = seen[group], seen[group] + 1
    chosen = order[np.argsort(rank[order], kind="stable")][:most]
    return points.take(np.sort(chosen))
