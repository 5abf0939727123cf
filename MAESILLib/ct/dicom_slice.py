"""One slice of a CT as DICOM states it: where it lies, how it becomes HU, and its pixels."""

import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from MAESILLib.ct.regrid import AIR_HU
from MAESILLib.ct.scan import AGAIN, one_line
from MAESILLib.runtime.errors import InputError
from MAESILLib.runtime.files import check_name

DICOM_SUFFIXES = (".dcm", ".ima", ".dicom")
CT = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED = ("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")
"""Enhanced CT and Legacy Converted Enhanced CT."""
HU_TYPES = ("", "HU", "US")
"""RescaleType of Hounsfield units; US is unspecified."""
NOT_IN_HU = re.compile(r"\b(IODINE|MAT_\w+|EFF_ATOMIC_NUM|ELECTRON_DENSITY|Z_EFF)\b")
"""Values of ImageType of multi-energy CT (DICOM PS3.3 C.8.15.2.1.6, and what scanners write) that are no HU."""
WRAPPED_FROM = (1 << 16) - (1 << 12)
"""Stored values of unsigned 16 bits from here on are padding below 0 that was written without its sign."""
LARGEST_TISSUE_HU = 3071
"""The end of the usual CT scale."""
ORIGINAL = "export the original CT series"
SHARED, PER_FRAME = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"


@dataclass(frozen=True)
class Slice:
    """A slice of a CT, a file or a frame of one.

    Attributes:
        path, frame: where its pixels are; ``frame`` is None in a file of one.
        instance_uid: of its file.
        patient: PatientID after its issuer; "" when absent.
        study_uid, series_uid, series_number, description, acquisition, kernel: of its series; "" when absent.
        size: (columns, rows).
        pixel_spacing: mm between rows, then between columns, as DICOM orders them; empty when absent.
        orientation: unit vectors in LPS along a row (i) and along a column (j): 6 numbers.
        position: LPS position in mm of the first voxel.
        thickness: SliceThickness in mm, None when absent.
        rescale: (slope, intercept); (1, 0) when absent.
        bits: of a stored value; 32 and more are integers or floating point.
    """

    path: Path
    frame: int | None
    instance_uid: str
    patient: str
    study_uid: str
    series_uid: str
    series_number: str
    description: str
    acquisition: str
    kernel: str
    size: tuple[int, int]
    pixel_spacing: tuple[float, ...]
    orientation: tuple[float, ...]
    position: tuple[float, ...]
    thickness: float | None
    rescale: tuple[float, float]
    bits: int

    def axes(self) -> NDArray[np.float64]:
        """Return i, j and k axes as rows: DICOM's rounded cosines made exactly perpendicular (Gram-Schmidt)."""
        i = np.array(self.orientation[:3])
        j = np.array(self.orientation[3:])
        i /= np.linalg.norm(i)
        j -= i * (i @ j)
        j /= np.linalg.norm(j)
        return np.array([i, j, np.cross(i, j)])

    @cached_property
    def height(self) -> float:
        """Position in mm along the slice normal."""
        return float(self.axes()[2] @ np.array(self.position))


def slices_of(path: Path) -> list[Slice] | str:
    """Return the CT slices of a file, or what it is instead, in words; "" for no DICOM at all.

    Raises:
        InputError: a CT slice that is damaged, or does not state where it lies.
    """
    from pydicom import dcmread

    with open(path, "rb") as file:
        start = file.read(132)
        # files of old consoles begin with their first group, in either byte order
        if start[128:] != b"DICM" and start[:2] not in (b"\x08\x00", b"\x02\x00", b"\x00\x08"):
            if path.suffix.lower() in DICOM_SUFFIXES:
                raise InputError(f"{path} is damaged or cut short: it is not DICOM", AGAIN)
            return ""
        file.seek(0)
        check_name(path)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                data = dcmread(file, stop_before_pixels=True, force=True)
                return _described(path, data, path.stat().st_size - file.tell())
        except InputError:
            raise
        except Exception as error:  # pydicom raises any of damaged files, some only when a value is asked for
            raise InputError(f"{path} is no readable DICOM file ({one_line(error)})", AGAIN) from None


def _described(path: Path, data: Any, rest: int) -> list[Slice] | str:
    sop_class = _text(data, "SOPClassUID") or _text(data.file_meta, "MediaStorageSOPClassUID")
    if (kind := _other_kind(data, sop_class)) is not None:
        return kind
    if missing := [tag for tag in ("Rows", "Columns") if tag not in data]:
        raise InputError(f"{path} has no {missing[0]}", ORIGINAL)
    frames = int(data.get("NumberOfFrames") or 1)
    syntax = data.file_meta.get("TransferSyntaxUID")
    if syntax is None or not (syntax.is_compressed or syntax.is_deflated):
        stated = int(data.Rows) * int(data.Columns) * frames * int(data.get("BitsAllocated") or 16) // 8
        if rest < stated:
            what = "has no pixels" if rest <= 0 else "is cut short: it has fewer pixels than it states"
            raise InputError(f"{path} {what}", AGAIN)
    if frames == 1 and sop_class not in ENHANCED:
        return [_slice(path, None, data, [data])]
    groups = data.get(PER_FRAME) or []
    if len(groups) != frames:
        raise InputError(
            f"{path} has {frames} frames and does not state where each lies", "export single slices or an enhanced CT"
        )
    shared = [group for item in data.get(SHARED) or [] for group in _groups(item)]
    return [_slice(path, n, data, [*_groups(item), *shared, data]) for n, item in enumerate(groups)]


def _other_kind(data: Any, sop_class: str) -> str | None:
    """Name what a file is if it is not a slice of a CT volume."""
    modality = _text(data, "Modality")
    if modality not in ("CT", "") or (not modality and sop_class not in (CT, *ENHANCED)):
        return f"{modality or 'unknown modality'} {'images' if 'Rows' in data else 'objects'}" if sop_class else ""
    image_type = _text(data, "ImageType").upper()
    if "LOCALIZER" in image_type:
        return "CT localisers"
    if NOT_IN_HU.search(image_type):
        return "CT maps of a material, not in HU"
    if sop_class not in ("", CT, *ENHANCED):
        return "CT objects that are no slices"
    if _text(data, "SamplesPerPixel") not in ("", "1"):
        return "CT colour pictures"
    return None


def _groups(item: Any) -> list[Any]:
    """Return the functional groups of an item of an enhanced image."""
    return [element.value[0] for element in item if element.VR == "SQ" and element.value]


def _slice(path: Path, frame: int | None, data: Any, places: list[Any]) -> Slice:
    """Describe a slice by the first of ``places`` that has each attribute."""

    def first(keyword: str) -> Any:
        return next((place for place in places[:-1] if place.get(keyword) not in (None, "")), data)

    if data.get("ModalityLUTSequence"):
        raise InputError(f"{path} has a table of values (Modality LUT) in place of a rescale to HU", ORIGINAL)
    kind = _text(first("RescaleType"), "RescaleType")
    if kind.upper() not in HU_TYPES:
        raise InputError(f"{path} has values in {kind} (RescaleType), not in HU", "give the CT series itself")
    place = {}
    for tag, count in (("ImagePositionPatient", 3), ("ImageOrientationPatient", 6), ("PixelSpacing", 2)):
        place[tag] = _numbers(first(tag), tag)
        if len(place[tag]) != count:
            raise InputError(f"{path} has no {tag}", ORIGINAL)
    directions = np.reshape(place["ImageOrientationPatient"], (2, 3))
    if not np.allclose(directions @ directions.T, np.eye(2), atol=0.02):
        raise InputError(f"{path} has an unusable ImageOrientationPatient", ORIGINAL)
    if min(place["PixelSpacing"]) <= 0:
        raise InputError(f"{path} has an unusable PixelSpacing", ORIGINAL)
    rescale = []
    for tag, default in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0)):
        found = _numbers(first(tag), tag)
        if (not found and _text(first(tag), tag)) or (tag == "RescaleSlope" and found[:1] == (0,)):
            raise InputError(f"{path} has a {tag} of {_text(first(tag), tag)}, which is unusable", ORIGINAL)
        rescale.append(found[0] if found else default)
    thickness = _numbers(first("SliceThickness"), "SliceThickness")
    # as it stands: patients may differ in letters that messages leave out
    issuer, patient = (str(data.get(tag) or "").strip() for tag in ("IssuerOfPatientID", "PatientID"))
    return Slice(
        path=path,
        frame=frame,
        instance_uid=_text(data, "SOPInstanceUID"),
        patient="/".join(filter(None, (patient and issuer, patient))),
        study_uid=_text(data, "StudyInstanceUID"),
        series_uid=_text(data, "SeriesInstanceUID"),
        series_number=_text(data, "SeriesNumber"),
        description=_text(data, "SeriesDescription"),
        acquisition=_text(first("FrameAcquisitionNumber"), "FrameAcquisitionNumber")
        or _text(data, "AcquisitionNumber"),
        kernel=_text(first("ConvolutionKernel"), "ConvolutionKernel"),
        size=(int(data.Columns), int(data.Rows)),
        pixel_spacing=place["PixelSpacing"],
        orientation=place["ImageOrientationPatient"],
        position=place["ImagePositionPatient"],
        thickness=thickness[0] if thickness else None,
        rescale=(rescale[0], rescale[1]),
        bits=int(data.get("BitsAllocated") or 16),
    )


def read_pixels(slices: list[Slice]) -> list[NDArray[Any]]:
    """Return the stored values (rows, columns) of slices that lie in one file.

    Raises:
        InputError: they are damaged, or compressed in a way that needs another package.
    """
    from pydicom import dcmread
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    path, syntax = slices[0].path, None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = dcmread(path, force=True)
            if "TransferSyntaxUID" not in data.file_meta:
                explicit = ExplicitVRLittleEndian if data.is_little_endian else ExplicitVRBigEndian
                data.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if data.is_implicit_VR else explicit
            syntax = data.file_meta.TransferSyntaxUID
            frames = _values(data.pixel_array, data)
            frames = _without_padding(frames, data.get("PixelPaddingValue"), *slices[0].rescale)
    except Exception as error:
        if isinstance(error, RuntimeError) and syntax and ("dependencies" in str(error) or "plugin" in str(error)):
            raise InputError(f"{path} is compressed ({syntax.name})", "pip install 'maesil[dicom]'") from None
        raise InputError(f"{path} is damaged or cut short: {one_line(error)}", AGAIN) from None
    frames = frames.reshape(-1, *frames.shape[-2:])
    return [frames[one.frame or 0] for one in slices]


def _values(stored: NDArray[Any], data: Any) -> NDArray[Any]:
    """Return stored values without the bits above those that belong to them (old overlays), with their sign."""
    spare = int(data.BitsAllocated) - int(data.BitsStored)
    if int(data.HighBit) != int(data.BitsStored) - 1:
        raise ValueError(f"HighBit {data.HighBit} does not fit BitsStored {data.BitsStored}")
    if spare > 0 and stored.dtype.kind in "iu" and stored.dtype.itemsize * 8 == int(data.BitsAllocated):
        return (stored << spare) >> spare
    return stored


def _without_padding(stored: NDArray[Any], padding: Any, slope: float, intercept: float) -> NDArray[Any]:
    """Make air of padding that would be metal; below that it is air, or a value that voxels have as well."""
    is_whole = isinstance(padding, int) and stored.dtype.kind in "iu"
    if not is_whole or padding * slope + intercept <= LARGEST_TISSUE_HU:
        return stored
    air = max(np.iinfo(stored.dtype).min, round((AIR_HU - intercept) / slope))
    return np.where(stored == padding, stored.dtype.type(air), stored)


def _is_multiple(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _text(data: Any, keyword: str) -> str:
    value = data.get(keyword)
    if value is None:
        return ""
    text = "\\".join(map(str, value)) if _is_multiple(value) else str(value)
    # descriptions come in many encodings; only printable ASCII is safe on every terminal
    return re.sub(r"[^ -~]", "?", text).strip()


def _numbers(data: Any, keyword: str) -> tuple[float, ...]:
    """Return the numbers of an attribute; () when it is absent or not numeric."""
    value = data.get(keyword)
    try:
        found = tuple(float(v) for v in (value if _is_multiple(value) else [value]))
    except (TypeError, ValueError):
        return ()
    return found if all(math.isfinite(v) for v in found) else ()
