"""The label map of a CT: which files it is, what its values stand for, its values on the model's grid."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from MAESILLib.ct.geometry import Geometry
from MAESILLib.ct.reading import VOLUME_SUFFIXES, read_volume, volume_stem
from MAESILLib.ct.volume import CTVolume, ModelGrid
from MAESILLib.data.sources import LABEL_SUFFIXES, Source, is_volume
from MAESILLib.runtime.errors import InputError
from MAESILLib.runtime.files import read_json

NAMED = re.compile(r"\s*(\d+)\s*=\s*([^;]+?)\s*")
"""One value in a manifest whose column ``labels`` names values (``1=tumour; 2=oedema``) in place of a file."""
SAME_PLACE = 0.1
"""Share of a voxel by which corners of two grids may differ: headers hold few digits."""
MOST_VALUES = 1000


@dataclass(frozen=True)
class LabelMap:
    """The label map of a source; without files it has none.

    Attributes:
        problem: why one that is stated cannot be used.
        files: one file with values, or one for each structure.
        names: of the values of a single file, as far as they are known; None: a structure is named as its file is.
        stamp: changes when a file or a name does.
    """

    files: tuple[Path, ...] = ()
    names: Mapping[int, str] | None = None
    stamp: str = ""
    problem: str = ""


def find_labels(source: Source) -> LabelMap:
    """Find the label map that a manifest or a layout states, else the one file beside the CT that is named after it."""
    path, names = Path(source.labels), {}
    if source.labels and path.is_dir():
        files = sorted(file for file in path.iterdir() if is_volume(file) and not file.name.startswith("."))
        if not files:
            return LabelMap(problem=f"{path} holds no label map")
        return LabelMap(tuple(files), None, _stamp(files, ""))
    if source.labels and path.is_file():
        if not is_volume(path):
            return LabelMap(problem=f"{path} is no label map")
        files, names = [path], _stated_names(path)
    else:
        values = [NAMED.fullmatch(part) for part in path.name.split(";")] if source.labels else []
        if not all(values):
            return LabelMap(problem=f"no such label map: {path}")
        names = {int(match[1]): match[2] for match in values if match is not None}
        stem = volume_stem(source.path)
        possible = [source.path.with_name(stem + end + suffix) for end in LABEL_SUFFIXES for suffix in VOLUME_SUFFIXES]
        files = [file for file in possible if source.path.is_file() and file.is_file()]
        if len(files) != 1:
            count = f"{len(files)} files beside it are named like its label map, not 1"
            return LabelMap(problem=count if names else "")
    return LabelMap(tuple(files), names, _stamp(files, repr(sorted(names.items()))))


def _stamp(files: list[Path], names: str) -> str:
    found = [(file.name, (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files]
    return hashlib.sha256(f"{found}{names}".encode()).hexdigest()[:16]


def _stated_names(path: Path) -> dict[int, str]:
    """Return the names in dataset.json beside the folder ``labelsTr`` (Medical Segmentation Decathlon, nnU-Net)."""
    stated = path.parent.parent / "dataset.json"
    if not path.parent.name.startswith("labels") or not stated.is_file():
        return {}
    labels = read_json(stated).get("labels", {})
    pairs = [(key, value) if str(key).isdigit() else (value, key) for key, value in labels.items()]
    return {int(value): str(name) for value, name in pairs if str(value).isdigit()}


def read_labels(found: LabelMap, grid: ModelGrid) -> tuple[NDArray[np.uint16], tuple[str, ...]]:
    """Read a label map onto the model's grid.

    Args:
        grid: of its CT.

    Returns:
        values (D, H, W), 0 where there is no structure, and the names of 1, 2, ...; of structures that overlap the last
        counts.

    Raises:
        InputError: a file cannot be read, lies elsewhere than its CT, or has values that are no labels.
    """
    codes, names = np.zeros(grid.geometry.size_dhw, np.uint16), []
    for file in found.files:
        volume = read_volume(file, check=False)
        if not _is_same_grid(volume.geometry, grid.source):
            raise InputError(f"{file} does not have the geometry of its CT", "resample the label map onto the CT")
        values = grid.labels_to_model(label_values(volume))
        if found.names is None:
            structures = {volume_stem(file): values > 0}
        else:
            structures = {found.names.get(int(n), f"label {n}"): values == n for n in np.unique(values[values > 0])}
        for name, inside in structures.items():
            names.append(name)
            codes[inside] = len(names)
    return codes, tuple(names)


def label_values(volume: CTVolume) -> NDArray[np.int32]:
    """Return the values (D, H, W) of a label map that was read without checks.

    Raises:
        InputError: they are no labels.
    """
    array, path = volume.hu, volume.path
    if not (np.isfinite(array).all() and (array == np.rint(array)).all()):
        raise InputError(f"{path} has values that are not whole numbers", "give a label map")
    values = array.astype(np.int32)
    if len(np.unique(values)) > MOST_VALUES:
        raise InputError(f"{path} has more than {MOST_VALUES} different values", "give a label map")
    return values


def _is_same_grid(first: Geometry, second: Geometry) -> bool:
    if first.size_dhw != second.size_dhw:
        return False
    corners = np.stack(np.meshgrid(*((0, n - 1) for n in first.size_dhw), indexing="ij"), -1)
    distance = np.linalg.norm(first.physical_point(corners) - second.physical_point(corners), axis=-1)
    return bool(distance.max() <= SAME_PLACE * min(second.spacing_dhw))
