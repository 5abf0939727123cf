"""The cache: checked, oriented, resampled CTs as int16 HU, readable crop by crop.

    CACHE/index.jsonl                     what is in it, and what was refused; of a shard, index.shard-2-of-8.jsonl
    CACHE/volumes/NAME.npy                one volume (D, H, W) int16, canonical orientation, isotropic
    CACHE/volumes/NAME.foreground.npy     voxels above -500 HU in blocks of 8x8x8, uint16
    CACHE/volumes/NAME.labels.npy         its label map, if it has one, (D, H, W) uint16; the index names the values

A memory-mapped .npy file is what reads a crop fastest, and needs numpy alone.
"""

import hashlib
import io
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from tokenize import TokenError

import numpy as np

from MAESILLib.data.foreground import foreground_table, table_shape
from MAESILLib.data.index import INDEX, read_index, unfinished
from MAESILLib.data.records import CacheEntry, decide
from MAESILLib.runtime.errors import InputError
from MAESILLib.runtime.files import atomic_path, inside

VOLUMES = "volumes"
TABLE, LABELS = ".foreground.npy", ".labels.npy"
AGAIN = "run maesil prepare again"
REPAIR = "run maesil prepare again with --verify"
CHUNK = 1 << 22


@dataclass(frozen=True)
class Cache:
    """A folder of prepared volumes.

    Attributes:
        entries: in the order of their names, whoever prepared them in whatever order.
        refused: why a source was not taken into it, by the name that its volume would have.
        unfinished: what is missing of it, a line each: shards that were not run or did not end.
    """

    folder: Path
    spacing_mm: float
    entries: tuple[CacheEntry, ...]
    refused: dict[str, str] = field(default_factory=dict)
    unfinished: tuple[str, ...] = ()

    def path(self, entry: CacheEntry) -> Path:
        return _path(self.folder, entry.name)

    def open(self, entry: CacheEntry) -> np.ndarray:
        """Map a volume into memory: (D, H, W) int16 HU; nothing is read until it is sliced.

        Raises:
            InputError: the file is missing or does not hold what the index says.
        """
        return _mapped(self.path(entry), entry.shape_dhw, np.dtype(np.int16))

    def foreground(self, entry: CacheEntry) -> np.ndarray:
        """Map a volume's foreground table: uint16 (ceil(D/8), ceil(H/8), ceil(W/8)), voxels above -500 HU a block.

        Raises:
            InputError: the file is missing or does not fit the volume.
        """
        return _mapped(_path(self.folder, entry.name, TABLE), table_shape(entry.shape_dhw), np.dtype(np.uint16))

    def labels(self, entry: CacheEntry) -> np.ndarray:
        """Map a volume's label map: uint16 (D, H, W), values 1, 2, ... of ``entry.labels``.

        Raises:
            InputError: the file is missing or does not fit the volume.
        """
        return _mapped(_path(self.folder, entry.name, LABELS), entry.shape_dhw, np.dtype(np.uint16))

    def verify(self, entry: CacheEntry, read: bool = True) -> None:
        """Open what is stored of a volume; with ``read``, compare it to the end with what was stored.

        Raises:
            InputError: a file is missing or damaged.
        """
        volume, table = self.open(entry), self.foreground(entry)
        sums = {".npy": entry.crc32}
        if entry.labels:
            self.labels(entry)
            sums[LABELS] = entry.labels_crc32
        for suffix, crc32 in sums.items() if read else ():
            path = _path(self.folder, entry.name, suffix)
            if crc32_of(path) != crc32:
                raise InputError(f"{path} is damaged: its check sum is another than when it was stored", REPAIR)
        if read and not np.array_equal(foreground_table(volume), table):
            raise InputError(f"{_path(self.folder, entry.name, TABLE)} is damaged: it does not fit its volume", REPAIR)

    def fingerprint(self) -> str:
        """Return a hash of what the cache holds; the same for the same data wherever and by whomever prepared."""
        volumes = sorted((e.name, e.shape_dhw, e.source_sha256, e.split, e.patient) for e in self.entries)
        return hashlib.sha256(repr([self.spacing_mm, volumes]).encode()).hexdigest()[:16]

    def select(self, split: str, validation_share: float = 0.1) -> tuple[CacheEntry, ...]:
        """Return the entries of a split, ``train`` or ``val``.

        Where no entry names its split, whole patients are held out by a hash of their name: the choice depends
        on the set of patients and on nothing else, and a larger share holds out the same ones and more.
        """
        validating = tuple(e for e in self.entries if e.split == "val")
        if not any(e.split for e in self.entries):
            patients = sorted({e.patient for e in self.entries}, key=lambda p: hashlib.sha256(p.encode()).digest())
            count = max(1, round(validation_share * len(patients))) if validation_share > 0 and len(patients) > 1 else 0
            chosen = set(patients[:count])
            validating = tuple(e for e in self.entries if e.patient in chosen)
        if split == "val":
            return validating
        # what nobody decided on is trained on, but never a patient who validates
        held_out = {e.patient for e in validating}
        return tuple(e for e in self.entries if e.patient not in held_out)


def _path(folder: Path, name: str, suffix: str = ".npy") -> Path:
    return inside(folder / VOLUMES, f"{name}{suffix}", AGAIN)


def _mapped(path: Path, shape: tuple[int, int, int], dtype: np.dtype[np.generic]) -> np.ndarray:
    try:
        # not np.load, which opens a zip archive too
        array = np.lib.format.open_memmap(path, mode="r")
        size = path.stat().st_size
    except FileNotFoundError:
        raise InputError(f"{path} is missing from the cache", AGAIN) from None
    except (ValueError, EOFError, TokenError, OverflowError) as error:
        raise InputError(f"{path} is damaged: {error}", AGAIN) from None
    if array.shape != shape or array.dtype != dtype:
        raise InputError(f"{path} holds {array.dtype} {array.shape}, the index says {dtype} {shape}", AGAIN)
    if size != array.offset + array.nbytes:
        raise InputError(f"{path} is damaged: it has {size} bytes, not {array.offset + array.nbytes}", AGAIN)
    return array


def crc32_of(path: Path) -> int:
    """Return the check sum (zlib.crc32) of a file's bytes."""
    total = 0
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            total = zlib.crc32(chunk, total)
    return total


def store_volume(folder: Path, name: str, hu: np.ndarray) -> int:
    """Store a volume and its foreground table in the cache in ``folder``, each whole or not at all.

    Args:
        hu: (D, H, W) int16.

    Returns:
        the check sum of the volume's file, as :class:`CacheEntry` keeps it.

    Raises:
        DiskFullError: the disk is full.
        InputError: the folder cannot be written to.
    """
    _store(_path(folder, name, TABLE), foreground_table(hu))
    return _store(_path(folder, name), np.ascontiguousarray(hu))


def store_labels(folder: Path, name: str, codes: np.ndarray) -> int:
    """Store the label map of a volume, (D, H, W) uint16, as :func:`store_volume` stores the volume."""
    return _store(_path(folder, name, LABELS), codes)


def _store(path: Path, array: np.ndarray) -> int:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    # np.save does not say that the disk is full
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.write(header.getvalue())
        file.write(array.data)
    return zlib.crc32(array.data, zlib.crc32(header.getvalue()))


def read_cache(folder: Path | str, allow_empty: bool = False) -> Cache:
    """Open a cache; shards are joined. Look at ``unfinished`` for what is missing.

    Raises:
        InputError: the folder is no cache, or one of another version, or it holds no volume.
    """
    folder = Path(folder)
    records, runs = read_index(folder)
    if not runs:
        raise InputError(f"{folder} is not a cache: it has no {INDEX}", "make one with maesil prepare")
    entries, refused = decide(records.values())
    if not entries and not allow_empty:
        raise InputError(f"{folder} holds no volume", "see what maesil prepare refused")
    return Cache(folder, runs[0].spacing_mm, entries, refused, unfinished(runs))
