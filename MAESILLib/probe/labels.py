"""Label maps of a cache's volumes: where they lie, what their values stand for, their voxels on the model's grid."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from MAESILLib.data.cache import Cache
from MAESILLib.data.datasets.catalogue import DATASETS
from MAESILLib.data.datasets.look import stem_of, visible
from MAESILLib.data.datasets.nifti import label_names
from MAESILLib.data.records import CacheEntry
from MAESILLib.data.sources import LABEL_SUFFIXES, is_volume
from MAESILLib.errors import InputError
from MAESILLib.files import read_json
from MAESILLib.geometry import Geometry
from MAESILLib.reading import VOLUME_SUFFIXES, read_geometry, read_volume, volume_stem
from MAESILLib.volume import model_grid

NAMED = re.compile(r"\s*(\d+)\s*=\s*([^;]+?)\s*")
"""One value of a manifest whose column ``labels`` names values (``1=tumour; 2=oedema``) in place of a file."""
SAME_PLACE = 0.1
"""Share of a voxel that corners of two grids may differ by: headers hold few digits."""
MOST_VALUES = 1000
DATASET_JSON = "dataset.json"


@dataclass(frozen=True)
class LabelSource:
    """Where the label map of a volume lies.

    Attributes:
        files: one file with values, or one a structure.
        is_folder: each file is a structure of its own, named as the file is.
        names: of the values of a single file, as far as they are known.
    """

    entry: CacheEntry
    files: tuple[Path, ...]
    is_folder: bool
    names: dict[int, str] = field(default_factory=dict)

    @property
    def stated(self) -> frozenset[str]:
        """The classes that this source says it holds, whether or not the volume shows them."""
        return frozenset(stem_of(file) for file in self.files) if self.is_folder else frozenset(self.names.values())


def find_labels(entry: CacheEntry) -> LabelSource | str:
    """Return where a volume's label map lies, or why it cannot be used.

    Where a manifest's ``labels`` holds names (``1=tumour``) and no path, the label map is the one file beside the CT
    that is named after it: ``NAME_seg``, ``NAME_label`` and so on.
    """
    path = Path(entry.labels)
    if not Path(entry.source).exists():
        return f"its source {entry.source} is gone"
    if path.is_dir():
        files = tuple(file for file in visible(path) if is_volume(file))
        return LabelSource(entry, files, True) if files else f"{path} holds no label map"
    if path.is_file():
        if not is_volume(path):
            return f"{path} is no label map"
        return LabelSource(entry, (path,), False, _names_of(entry, path))
    values = [NAMED.fullmatch(part) for part in os.path.basename(entry.labels).split(";")]
    if not all(values):
        return f"its label map {path} is gone"
    names = {int(match[1]): match[2] for match in values if match is not None}
    beside = _beside(Path(entry.source))
    if len(beside) != 1:
        found = ", ".join(file.name for file in beside) or "none"
        return f"its labels are named '{path.name}', and of label maps beside {entry.source} there is not one: {found}"
    return LabelSource(entry, beside, False, names)


def _beside(source: Path) -> tuple[Path, ...]:
    stem = volume_stem(source)
    names = dict.fromkeys(f"{stem}{end}{suffix}" for end in LABEL_SUFFIXES for suffix in VOLUME_SUFFIXES)
    return tuple(path for name in names if (path := source.with_name(name)).is_file())


def _names_of(entry: CacheEntry, path: Path) -> dict[int, str]:
    """Return what the catalogue, or the data set's own dataset.json, says of the values of a label map."""
    dataset = DATASETS.get(entry.dataset)
    if dataset is not None and dataset.label_values:
        return dict(dataset.label_values)
    stated = path.parent.parent / DATASET_JSON
    if path.parent.name.startswith("labels") and stated.is_file():
        description = read_json(stated)
        return dict(label_names(description)) if isinstance(description, dict) else {}
    return {}


def check_registration(source: LabelSource, cache: Cache) -> Geometry:
    """Check by headers that a label map lies where its CT does, and the CT where the cache has it; return the grid.

    Raises:
        InputError: they do not, or a file cannot be read.
    """
    entry = source.entry
    geometry = read_geometry(entry.source)
    for file in source.files:
        if not _is_same_grid(read_geometry(file), geometry):
            raise InputError(
                f"{file} does not have the geometry of its CT {entry.source}", "resample the label map onto the CT"
            )
    size = model_grid(geometry, cache.spacing_mm).geometry.size_dhw
    if size != entry.shape_dhw:
        raise InputError(
            f"{entry.source} has {size} voxels at {cache.spacing_mm:g} mm, {entry.name} of {cache.folder} "
            f"{entry.shape_dhw}: the source has changed",
            "run maesil prepare again",
        )
    return geometry


def _is_same_grid(first: Geometry, second: Geometry) -> bool:
    if first.size_dhw != second.size_dhw:
        return False
    corners = np.stack(np.meshgrid(*((0, n - 1) for n in first.size_dhw), indexing="ij"), -1)
    distance = np.linalg.norm(first.physical_point(corners) - second.physical_point(corners), axis=-1)
    return bool(distance.max() <= SAME_PLACE * min(second.spacing_dhw))


def structures(source: LabelSource, geometry: Geometry, spacing_mm: float) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Yield the classes that a label map shows and their voxels (D, H, W) on the model's grid, by the nearest voxel.

    Args:
        geometry: of the CT.
        spacing_mm: of the model's grid.

    Raises:
        InputError: a file cannot be read, or has values that are no labels.
    """
    grid = model_grid(geometry, spacing_mm)
    if source.is_folder:
        for file in source.files:
            inside = grid.labels_to_model(_read_values(file) > 0)
            if inside.any():
                yield stem_of(file), inside
        return
    values = grid.labels_to_model(_read_values(source.files[0]))
    for value in np.unique(values[values > 0]):
        yield source.names.get(int(value), f"label {int(value)}"), values == value


def _read_values(path: Path) -> NDArray[np.int32]:
    array = read_volume(path, check=False).hu
    if not np.issubdtype(array.dtype, np.integer) and not (
        np.isfinite(array).all() and (array == np.rint(array)).all()
    ):
        raise InputError(f"{path} has values that are not whole numbers", "give a label map")
    values = array.astype(np.int32)
    if len(np.unique(values)) > MOST_VALUES:
        raise InputError(f"{path} has more than {MOST_VALUES} different values", "give a label map")
    return values
