"""Label maps: which file belongs to a CT, what its values stand for, their voxels on the 1.5 mm grid."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from MAESILLib.ct.body import body_mask
from MAESILLib.ct.geometry import Geometry
from MAESILLib.ct.reading import VOLUME_SUFFIXES, read_geometry, read_volume, volume_stem
from MAESILLib.ct.volume import model_grid
from MAESILLib.data.sources import LABEL_SUFFIXES, Source, find_sources, is_volume
from MAESILLib.probe.points import Point, read_hu
from MAESILLib.probe.windows import PATCH, SPACING_MM
from MAESILLib.runtime.errors import InputError
from MAESILLib.runtime.files import read_json

NAMED = re.compile(r"\s*(\d+)\s*=\s*([^;]+?)\s*")
"""One value in a manifest whose column ``labels`` names values (``1=tumour; 2=oedema``) in place of a file."""
SAME_PLACE = 0.1
"""Share of a voxel by which corners of two grids may differ: headers hold few digits."""
MOST_VALUES = 1000
BACKGROUND = "background"
"""Body without a label; it counts as a structure."""
Read = tuple[NDArray[np.int16], NDArray[np.int32], list[str]]
"""HU and codes (D, H, W) of a volume, and the names of the codes from 0."""
POINTS_EACH = 10
"""Points drawn of each structure in each volume."""
HALF = 0.5
"""Share of a token's voxels that a structure has to fill."""


@dataclass(frozen=True)
class LabelledVolume:
    """A CT and its label map.

    Attributes:
        files: one file with values, or one for each structure.
        names: of the values of a single file, as far as they are known; None: a structure is named as its file is.
    """

    image: Path
    patient: str
    split: str
    files: tuple[Path, ...]
    names: dict[int, str] | None

    def read(self) -> Read:
        """Read CT and labels onto the 1.5 mm grid.

        Code 0 is the background within the body; beyond the body the code is -1.

        Raises:
            InputError: a file cannot be read, or has values that are no labels.
        """
        hu = read_hu(self.image)
        grid = model_grid(read_geometry(self.image), SPACING_MM)
        codes = np.where(body_mask(hu), 0, -1).astype(np.int32)
        names = [BACKGROUND]
        for file in self.files:
            values = grid.labels_to_model(_read_values(file))
            if self.names is None:
                structures = {volume_stem(file): values > 0}
            else:
                present = np.unique(values[values > 0])
                structures = {self.names.get(int(n), f"label {n}"): values == n for n in present}
            for name, inside in structures.items():
                codes[inside] = len(names)
                names.append(name)
        return hu, codes, names


def find_labelled(given: Path) -> tuple[list[LabelledVolume], list[str]]:
    """Find the CTs with label maps in a folder or a manifest, and check by headers that both lie at the same place.

    Args:
        given: as for ``maesil prepare``: a manifest's column ``labels`` holds a file, a folder with one file a
            structure, or names (``1=tumour``); for the last, and in folders, the label map is the one file beside the
            CT that is named after it: ``NAME_seg``, ``NAME_label`` and so on.

    Returns:
        the volumes, and a line for each label map that is absent.

    Raises:
        InputError: no volume has a label map, or one lies elsewhere than its CT.
    """
    volumes, absent = [], []
    for source in find_sources([given]):
        found = _labels_of(source)
        if isinstance(found, LabelledVolume):
            volumes.append(found)
        elif source.labels:
            absent.append(f"{source.path.name} is left out: {found}")
    if not volumes:
        raise InputError(f"{given} has no CT with a label map", absent[0] if absent else "name them in column labels")
    for volume in volumes:
        geometry = read_geometry(volume.image)
        for file in volume.files:
            if not _is_same_grid(read_geometry(file), geometry):
                hint = "resample the label map onto the CT"
                raise InputError(f"{file} does not have the geometry of its CT {volume.image}", hint)
    return volumes, absent


def _labels_of(source: Source) -> LabelledVolume | str:
    """Return a CT with its label map, or why there is none."""
    path, image = Path(source.labels), source.path
    names: dict[int, str] | None = None
    if not image.is_file():
        return f"no such file: {image}"
    if source.labels and path.is_dir():
        files = sorted(file for file in path.iterdir() if is_volume(file) and not file.name.startswith("."))
        if not files:
            return f"{path} holds no label map"
    elif source.labels and path.is_file():
        if not is_volume(path):
            return f"{path} is no label map"
        files, names = [path], _stated_names(path)
    else:
        values = [NAMED.fullmatch(part) for part in path.name.split(";")] if source.labels else []
        if not all(values):
            return f"no such label map: {path}"
        names = {int(match[1]): match[2] for match in values if match is not None}
        stem = volume_stem(image)
        possible = [image.with_name(stem + end + suffix) for end in LABEL_SUFFIXES for suffix in VOLUME_SUFFIXES]
        files = [file for file in possible if file.is_file()]
        if len(files) != 1:
            return f"it needs one label map beside it, and has {', '.join(file.name for file in files) or 'none'}"
    return LabelledVolume(image, source.patient or volume_stem(image), source.split, tuple(files), names)


def _stated_names(path: Path) -> dict[int, str]:
    """Return the names in dataset.json beside the folder ``labelsTr`` (Medical Segmentation Decathlon, nnU-Net)."""
    stated = path.parent.parent / "dataset.json"
    if not path.parent.name.startswith("labels") or not stated.is_file():
        return {}
    labels = read_json(stated).get("labels", {})
    pairs = [(key, value) if str(key).isdigit() else (value, key) for key, value in labels.items()]
    return {int(value): str(name) for value, name in pairs if str(value).isdigit()}


def _is_same_grid(first: Geometry, second: Geometry) -> bool:
    if first.size_dhw != second.size_dhw:
        return False
    corners = np.stack(np.meshgrid(*((0, n - 1) for n in first.size_dhw), indexing="ij"), -1)
    distance = np.linalg.norm(first.physical_point(corners) - second.physical_point(corners), axis=-1)
    return bool(distance.max() <= SAME_PLACE * min(second.spacing_dhw))


def _read_values(path: Path) -> NDArray[np.int32]:
    array = read_volume(path, check=False).hu
    if not (np.isfinite(array).all() and (array == np.rint(array)).all()):
        raise InputError(f"{path} has values that are not whole numbers", "give a label map")
    values = array.astype(np.int32)
    if len(np.unique(values)) > MOST_VALUES:
        raise InputError(f"{path} has more than {MOST_VALUES} different values", "give a label map")
    return values


def points_of(volumes: Sequence[LabelledVolume], seed: int = 0) -> list[Point]:
    """Draw labelled points: of each structure in each volume at most ten, among voxels where it fills half a token."""
    points: list[Point] = []
    for number, volume in enumerate(volumes):
        _, codes, names = volume.read()
        rng = np.random.default_rng([seed, number])
        # as found, 1 is the background in the body
        for code, box in enumerate(ndimage.find_objects(codes + 1)):
            if box is None:
                continue
            wide = tuple(slice(max(0, part.start - PATCH), part.stop + PATCH) for part in box)
            filled = ndimage.uniform_filter((codes[wide] == code).astype(np.float32), PATCH, mode="constant")
            inside = np.argwhere(filled >= HALF - 1e-4) + [part.start for part in wide]
            for kji in inside[rng.permutation(len(inside))[:POINTS_EACH]]:
                points.append(Point(volume.image, kji, names[code], volume.patient, volume.split, len(points)))
    if not points:
        raise InputError(f"{volumes[0].image} shows no body", "give CTs with label maps")
    return points
