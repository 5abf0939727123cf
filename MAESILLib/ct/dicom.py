"""Find the CT series in a DICOM folder and choose one.

Headers are read with GDCM through SimpleITK. Localisers (scouts), pictures without a position in the patient and other
modalities are set aside; what is set aside is named only when no CT series is left.
"""

from __future__ import annotations

import math
import os
import re
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import SimpleITK as sitk

from MAESILLib.runtime.errors import InputError
from MAESILLib.runtime.files import check_name

CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT_STORAGE = "1.2.840.10008.5.1.4.1.1.2.1"
DICOM_SUFFIXES = (".dcm", ".ima", ".dicom")

MODALITY = "0008|0060"
IMAGE_TYPE = "0008|0008"
SERIES_DESCRIPTION = "0008|103e"
SLICE_THICKNESS = "0018|0050"
SERIES_UID = "0020|000e"
SERIES_NUMBER = "0020|0011"
POSITION = "0020|0032"
ORIENTATION = "0020|0037"
SAMPLES_PER_PIXEL = "0028|0002"
PIXEL_SPACING = "0028|0030"
RESCALE_INTERCEPT = "0028|1052"
RESCALE_SLOPE = "0028|1053"


@dataclass(frozen=True)
class SliceHeader:
    """The header of one CT slice.

    Attributes:
        path: its file.
        series_uid: SeriesInstanceUID.
        series_number: SeriesNumber, "" when absent.
        description: SeriesDescription, "" when absent.
        size: (columns, rows).
        pixel_spacing: mm between rows, then between columns, as DICOM orders them; empty when absent.
        orientation: unit vectors in LPS along a row (i) and along a column (j): 6 numbers.
        position: LPS position in mm of the first voxel.
        thickness: SliceThickness in mm, None when absent.
        rescale: (slope, intercept); (1, 0) when absent.
    """

    path: Path
    series_uid: str
    series_number: str
    description: str
    size: tuple[int, int]
    pixel_spacing: tuple[float, ...]
    orientation: tuple[float, ...]
    position: tuple[float, ...]
    thickness: float | None
    rescale: tuple[float, float]


@dataclass(frozen=True)
class Series:
    """The slices of one CT series, in no particular order, and a name for it."""

    slices: tuple[SliceHeader, ...]

    @property
    def uid(self) -> str:
        """SeriesInstanceUID."""
        return self.slices[0].series_uid

    @property
    def number(self) -> str:
        """SeriesNumber, "" when absent."""
        return self.slices[0].series_number

    @property
    def label(self) -> str:
        """What messages call it, for example ``CT series 2 'CHEST' (41 slices, UID ..2011)``."""
        number = f" {self.number}" if self.number else ""
        description = f" '{self.slices[0].description}'" if self.slices[0].description else ""
        return f"CT series{number}{description} ({len(self.slices)} slices, UID ..{self.uid[-8:]})"

    @property
    def name(self) -> str:
        """A name for files: the description, else the folder's name; letters, digits, dot, dash and underscore only."""
        text = self.slices[0].description or self.slices[0].path.parent.name
        return re.sub(r"[^A-Za-z0-9.-]+", "_", text).strip("_.") or "series"


def has_dicom_magic(path: Path) -> bool:
    """Tell whether the file has the DICOM preamble."""
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


def find_series(path: Path, wanted: str | None = None) -> tuple[Series, tuple[str, ...]]:
    """Choose a CT series in a folder and its subfolders, or the one a single file belongs to.

    Args:
        path: folder, or one DICOM file.
        wanted: SeriesInstanceUID, a unique beginning or end of it, or SeriesNumber; None for the series with most
            slices (the larger slices, then the smaller UID, when equal).

    Returns:
        the series, and a warning when others could have been meant.

    Raises:
        InputError: there is no CT series, or ``wanted`` fits none or several.
    """
    if path.is_dir():
        files = sorted(Path(folder) / name for folder, _, names in os.walk(path) for name in names)
        found = _ct_series(files, path)
    else:
        found = _series_of_file(path)
    if wanted is not None:
        return _select(found, wanted, path), ()
    found.sort(key=lambda s: (-len(s.slices), -math.prod(s.slices[0].size), s.uid))
    chosen, *others = found
    if not others:
        return chosen, ()
    return chosen, (
        f"{len(found)} CT series in {path}: took {chosen.label}; not taken: {_labels(others)}; "
        "name another by its UID or number",
    )


def _series_of_file(path: Path) -> list[Series]:
    """Return the one series that ``path`` belongs to, from the files beside it."""
    own = _ct_series([path], path)[0].uid
    beside = sorted(file for file in path.parent.iterdir() if file.is_file())
    return [series for series in _ct_series(beside, path.parent) if series.uid == own]


def _select(found: list[Series], wanted: str, path: Path) -> Series:
    wanted = wanted.strip()
    exact = [s for s in found if s.uid == wanted] or [s for s in found if s.number and s.number == wanted]
    fitting = exact or [s for s in found if wanted and (s.uid.startswith(wanted) or s.uid.endswith(wanted))]
    if len(fitting) == 1:
        return fitting[0]
    listed = _labels(fitting or found, whole_uid=True)
    if fitting:
        raise InputError(f"series {wanted} fits {len(fitting)} CT series in {path}: {listed}", "give more of the UID")
    raise InputError(f"no CT series {wanted!r} in {path}", f"there is: {listed}")


def _labels(series: list[Series], *, whole_uid: bool = False) -> str:
    return ", ".join(f"{s.label} = {s.uid}" if whole_uid else s.label for s in series)


def _ct_series(paths: list[Path], where: Path) -> list[Series]:
    """Read the headers of ``paths`` and group the CT slices by series.

    Raises:
        InputError: a CT slice is damaged or multi-frame, or there is no CT slice.
    """
    slices: dict[str, list[SliceHeader]] = {}
    set_aside: Counter[str] = Counter()
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    for path in paths:
        if (header := _read_header(reader, path, set_aside)) is not None:
            slices.setdefault(header.series_uid, []).append(header)
    if not slices:
        others = ", ".join(f"{count} {kind}" for kind, count in sorted(set_aside.items()))
        raise InputError(
            f"no DICOM CT series in {where}" + (f" (only {others})" if others else ""),
            "give the folder that holds the CT slices, or a NIfTI, NRRD or MetaImage file",
        )
    return [Series(tuple(headers)) for headers in slices.values()]


def _read_header(reader: Any, path: Path, set_aside: Counter[str]) -> SliceHeader | None:
    """Return the header of a CT slice; None, counted in ``set_aside``, for anything else."""
    if path.name.startswith(".") or not path.is_file():  # resource forks and other hidden files; pipes, dead links
        return None
    with open(path, "rb") as file:
        start = file.read(1024)
    magic = start[128:132] == b"DICM"
    if not magic and path.suffix.lower() not in DICOM_SUFFIXES:
        return None
    sop_class = _sop_class(start) if magic else ""
    if sop_class == ENHANCED_CT_STORAGE:
        raise InputError(
            f"{path} is an enhanced (multi-frame) CT, which is not supported", "convert it to NIfTI or single slices"
        )
    check_name(path)
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        # Reports, plans and segmentations are no images; a CT slice that is none is damaged.
        if sop_class == CT_IMAGE_STORAGE or not magic:
            raise InputError(f"{path} is damaged or cut short: not a readable DICOM slice", "copy it again") from None
        set_aside["DICOM objects without an image"] += 1
        return None
    header = _slice_header(reader, path)
    if (kind := _why_not_a_ct_slice(reader, header)) is not None:
        set_aside[kind] += 1
        return None
    return header


def _sop_class(start: bytes) -> str:
    """Return MediaStorageSOPClassUID (0002,0002) from the first bytes of a DICOM file, "" when it is not there."""
    at = start.find(b"\x02\x00\x02\x00UI", 132)
    if at < 0:
        return ""
    (length,) = struct.unpack_from("<H", start, at + 6)
    return start[at + 8 : at + 8 + length].decode("ascii", "replace").strip("\0 ")


def _why_not_a_ct_slice(reader: Any, header: SliceHeader) -> str | None:
    """Name the kind of image this is if it is not a slice of a CT volume."""
    modality = _text(reader, MODALITY)
    if modality != "CT":
        return f"{modality or 'unknown modality'} images"
    if "LOCALIZER" in _text(reader, IMAGE_TYPE).upper():
        return "CT localisers"
    if _text(reader, SAMPLES_PER_PIXEL) not in ("", "1"):
        return "CT colour pictures"
    if len(header.position) != 3 or len(header.orientation) != 6:
        return "CT pictures without a position in the patient"
    return None


def _slice_header(reader: Any, path: Path) -> SliceHeader:
    columns, rows = reader.GetSize()[:2]
    thickness = _numbers(reader, SLICE_THICKNESS)
    slope, intercept = _numbers(reader, RESCALE_SLOPE), _numbers(reader, RESCALE_INTERCEPT)
    return SliceHeader(
        path=path,
        series_uid=_text(reader, SERIES_UID),
        series_number=_text(reader, SERIES_NUMBER),
        description=_text(reader, SERIES_DESCRIPTION),
        size=(int(columns), int(rows)),
        pixel_spacing=_numbers(reader, PIXEL_SPACING),
        orientation=_numbers(reader, ORIENTATION),
        position=_numbers(reader, POSITION),
        thickness=thickness[0] if thickness else None,
        rescale=(slope[0] if slope else 1.0, intercept[0] if intercept else 0.0),
    )


def _text(reader: Any, key: str) -> str:
    if not reader.HasMetaDataKey(key):
        return ""
    # Descriptions come in many encodings; only ASCII is safe on every terminal.
    return str(reader.GetMetaData(key)).encode("ascii", "replace").decode("ascii").strip("\0 ")


def _numbers(reader: Any, key: str) -> tuple[float, ...]:
    """Return the numbers of a tag; () when it is absent or not numeric."""
    try:
        return tuple(float(part) for part in _text(reader, key).split("\\") if part.strip())
    except ValueError:
        return ()
