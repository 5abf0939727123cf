"""Point lists: labelled voxels of CT volumes, each of one structure of one patient."""

import csv
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from MAESILLib.ct.reading import read_geometry
from MAESILLib.ct.volume import model_grid
from MAESILLib.data.apart import read_apart
from MAESILLib.mae.superpatch import Shape
from MAESILLib.probe.windows import SPACING_MM
from MAESILLib.runtime.errors import InputError
from MAESILLib.runtime.stopping import NEVER

COLUMNS = ("file", "k", "j", "i", "structure", "patient")
SIDES = ("_left", "_right")


class Point(NamedTuple):
    """A labelled voxel.

    Attributes:
        kji: (3,) index into the LPS-oriented (D, H, W) array on the 1.5 mm grid.
        structure: its name, with the side.
        split: metrics of patients with split ``val`` are also stated apart.
        number: row in the list, from 0: the seed of the point's windows.
    """

    file: Path
    kji: NDArray[np.int64]
    structure: str
    patient: str
    split: str
    number: int


def read_points(path: Path, root: Path | None = None) -> list[Point]:
    """Read a CSV of points: file, k, j, i, structure, patient and, if there is one, split.

    Args:
        root: folder that ``file`` is relative to; the CSV's own if None.

    Raises:
        InputError: a column is missing, a row is incomplete, a file is absent, or a point lies outside its volume.
    """
    points = []
    shapes: dict[Path, Shape] = {}
    for number, row in enumerate(_rows(path)):
        file = (root or path.parent) / row["file"]
        if file not in shapes:
            if not file.is_file():
                raise InputError(f"{path}: no such file: {file}", "give the folder of the volumes as --root")
            shapes[file] = model_grid(read_geometry(file), SPACING_MM).geometry.size_dhw
        kji = _voxel(row, shapes[file], f"{path}, line {number + 2}")
        points.append(Point(file, kji, row["structure"], row["patient"], row.get("split") or "", number))
    return points


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if missing := [column for column in COLUMNS if column not in (reader.fieldnames or ())]:
                raise InputError(f"{path} has no column '{missing[0]}'", f"it needs {', '.join(COLUMNS)}")
            rows = list(reader)
    except FileNotFoundError:
        raise InputError(f"no such file: {path}", "check the path") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is not a CSV file in UTF-8: {error}", "save it as CSV in UTF-8") from None
    for line, row in enumerate(rows, start=2):
        if empty := [column for column in COLUMNS if not row[column]]:
            raise InputError(f"{path}, line {line}: '{empty[0]}' is empty", "complete or remove the row")
    if not rows:
        raise InputError(f"{path} has no points", "give one point a row")
    return rows


def _voxel(row: dict[str, str], shape: Shape, where: str) -> NDArray[np.int64]:
    try:
        voxel = tuple(int(float(row[axis])) for axis in "kji")
    except (ValueError, OverflowError):
        raise InputError(f"{where}: k, j, i are not numbers", "give voxels") from None
    if not all(0 <= v < n for v, n in zip(voxel, shape, strict=True)):
        raise InputError(
            f"{where}: voxel {voxel} lies outside the volume of {shape} voxels",
            f"k, j, i count voxels of the LPS-oriented array at {SPACING_MM} mm",
        )
    return np.array(voxel)


def without_side(structure: str) -> str:
    """Return a structure's name without ``_left`` and ``_right``."""
    return re.sub("|".join(SIDES), "", structure)


def read_hu(path: Path) -> NDArray[np.int16]:
    """Read a CT, or a volume of a cache, onto the LPS-oriented 1.5 mm grid: (D, H, W) HU, rounded.

    Raises:
        InputError: it cannot be read, or is no CT.
    """
    if path.suffix == ".npy":
        return np.array(np.load(path, mmap_mode="r"))
    volume = read_apart(path, NEVER)
    return np.rint(model_grid(volume.geometry, SPACING_MM).to_model(volume.hu)).astype(np.int16)


def stratified(points: Sequence[Point], most: int, seed: int = 0) -> list[Point]:
    """Return at most ``most`` points, spread over structures and patients.

    The points of each structure in each patient are put in random order; first comes the first of every such group,
    then the second, and so on, until there are enough.
    """
    order = np.random.default_rng(seed).permutation(len(points))
    seen: Counter[tuple[str, str]] = Counter()
    ranks = []
    for row in order:
        group = points[row].structure, points[row].patient
        ranks.append(seen[group])
        seen[group] += 1
    chosen = order[np.argsort(ranks, kind="stable")][:most]
    return [points[row] for row in sorted(chosen)]
