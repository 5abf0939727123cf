"""One slice of a CT as DICOM states it: where it lies, how it becomes HU, and its pixels.

A file is parsed once: of pixels that are not compressed it is remembered where in the file they lie.
"""

import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from MAESILLib.ct.regrid import AIR_HU
from MAESILLib.ct.scan import AGAIN
from MAESILLib.runtime.errors import InputError
from MAESILLib.runtime.files import check_name

DICOM_SUFFIXES = (".dcm", ".ima", ".dicom")
CT = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED = ("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")
"""Enhanced CT and Legacy Converted Enhanced CT."""
IMPLICIT, EXPLICIT, BIG_ENDIAN = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
"""Transfer syntaxes of pixels that are not compressed."""
PIXEL_DATA = 0x7FE00010
ALL_PIXELS = (0x7FE00008, 0x7FE00009, PIXEL_DATA)
"""Pixels in floating point, too."""
HU_TYPES = ("", "HU", "US")
"""RescaleType of Hounsfield units; US is unspecified."""
NOT_IN_HU = re.compile(r"\b(IODINE|MAT_\w+|EFF_ATOMIC_NUM|ELECTRON_DENSITY|Z_EFF)\b")
"""Values of ImageType of multi-energy CT (DICOM PS3.3 C.8.15.2.1.6, and what scanners write) that are no HU."""
LARGEST_TISSUE_HU = 3071
"""The end of the usual CT scale."""
ORIGINAL = "export the original CT series"
PIXEL_KEYS = ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation")
SERIES_KEYS = {
    "instance_uid": "SOPInstanceUID",
    "study_uid": "StudyInstanceUID",
    "series_uid": "SeriesInstanceUID",
    "series_number": "SeriesNumber",
    "description": "SeriesDescription",
    "kernel": "ConvolutionKernel",
}
"""Attributes that are kept as text."""
PLACE_KEYS = {"ImagePositionPatient": 3, "ImageOrientationPatient": 6, "PixelSpacing": 2}
"""And how many numbers they have."""
FRAME_KEYS = (
    *PLACE_KEYS,
    *("SliceThickness", "RescaleSlope", "RescaleIntercept", "RescaleType"),
    *("FrameAcquisitionNumber", "ConvolutionKernel"),
)
KEYS = (
    *("SOPClassUID", "Modality", "ImageType", "SamplesPerPixel", "NumberOfFrames", "ModalityLUTSequence"),
    *("IssuerOfPatientID", "PatientID", "AcquisitionNumber", "PixelPaddingValue"),
    *(*PIXEL_KEYS, *FRAME_KEYS, *SERIES_KEYS.values()),
)


@dataclass(frozen=True)
class Slice:
    """A slice of a CT, a file or a frame of one.

    Attributes:
        path, frame: where its pixels are; ``frame`` is None in a file of one.
        pixels_at: of pixels that are not compressed, where in the file they begin; else None.
        syntax: TransferSyntaxUID.
        instance_uid: of its file.
        patient: PatientID after its issuer; "" when absent.
        study_uid, series_uid, series_number, description, acquisition, kernel: of its series; "" when absent.
        pixels: values of ``PIXEL_KEYS``, and how many frames the file has.
        padding: PixelPaddingValue, None when absent.
        pixel_spacing: mm between rows, then between columns, as DICOM orders them; empty when absent.
        orientation: unit vectors in LPS along a row (i) and along a column (j): 6 numbers.
        position: LPS position in mm of the first voxel.
        thickness: SliceThickness in mm, None when absent.
        rescale: (slope, intercept); (1, 0) when absent.
    """

    path: Path
    frame: int | None
    pixels_at: int | None
    syntax: str
    instance_uid: str
    patient: str
    study_uid: str
    series_uid: str
    series_number: str
    description: str
    acquisition: str
    kernel: str
    pixels: tuple[int, ...]
    padding: int | None
    pixel_spacing: tuple[float, ...]
    orientation: tuple[float, ...]
    position: tuple[float, ...]
    thickness: float | None
    rescale: tuple[float, float]

    def axes(self) -> NDArray[np.float64]:
        """Return i, j and k axes as rows: DICOM's rounded cosines made exactly perpendicular (Gram-Schmidt)."""
        i = np.array(self.orientation[:3])
        j = np.array(self.orientation[3:])
        i /= np.linalg.norm(i)
        j -= i * (i @ j)
        j /= np.linalg.norm(j)
        return np.array([i, j, np.cross(i, j)])

    @property
    def size(self) -> tuple[int, int]:
        """(columns, rows)."""
        return self.pixels[1], self.pixels[0]

    @cached_property
    def height(self) -> float:
        """Position in mm along the slice normal."""
        return float(self.axes()[2] @ np.array(self.position))


def slices_of(path: Path) -> list[Slice] | str:
    """Return the CT slices of a file, or what it is instead, in words; "" for no DICOM at all.

    Raises:
        InputError: a CT slice that is damaged, or does not state where it lies.
    """
    from pydicom.filereader import read_partial

    pixels: list[tuple[int, int, int]] = []

    def at_pixels(tag: int, _vr: str | None, length: int) -> bool:
        if tag in ALL_PIXELS:
            pixels.append((tag, file.tell(), length))
        return bool(pixels)

    with open(path, "rb") as file:
        start = file.read(132)
        # files of old consoles begin with their first group, in either byte order
        if start[128:] != b"DICM" and start[:2] not in (b"\x08\x00", b"\x02\x00", b"\x00\x08"):
            if path.suffix.lower() in DICOM_SUFFIXES:
                raise InputError(f"{path} is damaged or cut short: it is not DICOM", AGAIN)
            return ""
        file.seek(0)
        check_name(path)
        with _only_pydicom(path, "its header cannot be read"):
            data = read_partial(file, at_pixels, force=True)
            header = {key: data.get(key) for key in KEYS}
            header["SOPClassUID"] = header["SOPClassUID"] or data.file_meta.get("MediaStorageSOPClassUID")
            header["TransferSyntaxUID"] = str(data.file_meta.get("TransferSyntaxUID") or _syntax_of(data))
            shared = [_grouped(item) for item in data.get("SharedFunctionalGroupsSequence") or []]
            each = [_grouped(item) for item in data.get("PerFrameFunctionalGroupsSequence") or []]
    if (kind := _other_kind(header)) is not None:
        return kind
    found = [_numbers(header, key) for key in PIXEL_KEYS]
    if () in found:
        raise InputError(f"{path} has no {PIXEL_KEYS[found.index(())]}", ORIGINAL)
    rows, columns, bits, bits_stored, high_bit, sign = (int(numbers[0]) for numbers in found)
    frames = int((_numbers(header, "NumberOfFrames") or [1])[0]) or 1
    if high_bit != bits_stored - 1 or bits_stored > bits:
        raise InputError(f"{path} has HighBit {high_bit}, which does not fit BitsStored {bits_stored}", ORIGINAL)
    header["pixels"] = (rows, columns, bits, bits_stored, high_bit, sign, frames)
    if not pixels:
        raise InputError(f"{path} has no pixels", AGAIN)
    tag, place, length = pixels[0]
    if header["TransferSyntaxUID"] in (IMPLICIT, EXPLICIT, BIG_ENDIAN):
        header["pixels_at"] = place if tag == PIXEL_DATA else None
        # an undefined length is that of compressed pixels
        there = min(length, path.stat().st_size - place) if length != 0xFFFFFFFF else 0
        if there < rows * columns * frames * bits // 8:
            raise InputError(f"{path} is cut short: it has fewer pixels than it states", AGAIN)
    if frames == 1 and header["SOPClassUID"] not in ENHANCED:
        return [_slice(path, None, header)]
    if len(each) != frames:
        raise InputError(
            f"{path} has {frames} frames and does not state where each lies", "export single slices or an enhanced CT"
        )
    common = header | (shared[0] if shared else {})
    return [_slice(path, number, common | own) for number, own in enumerate(each)]


@contextmanager
def _only_pydicom(path: Path, what: str) -> Iterator[None]:
    """Make one line of what pydicom raises of a damaged file, which may be anything: only its calls belong here."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        if isinstance(error, InputError | MemoryError) or getattr(error, "errno", None) is not None:
            raise
        raise InputError(f"{path} is damaged or cut short: {what}", AGAIN) from error


def _syntax_of(data: Any) -> str:
    return IMPLICIT if data.is_implicit_VR else EXPLICIT if data.is_little_endian else BIG_ENDIAN


def _grouped(item: Any) -> dict[str, Any]:
    """Return what the functional groups of an item of an enhanced image state."""
    groups = [element.value[0] for element in item if element.VR == "SQ" and element.value]
    return {key: group.get(key) for group in groups for key in FRAME_KEYS if group.get(key) not in (None, "")}


def _other_kind(header: dict[str, Any]) -> str | None:
    """Name what a file is if it is not a slice of a CT volume."""
    modality, sop_class = _text(header, "Modality"), _text(header, "SOPClassUID")
    if modality not in ("CT", "") or (not modality and sop_class not in (CT, *ENHANCED)):
        is_image = header["Rows"] is not None
        return f"{modality or 'unknown modality'} {'images' if is_image else 'objects'}" if sop_class else ""
    image_type = _text(header, "ImageType").upper()
    if "LOCALIZER" in image_type:
        return "CT localisers"
    if NOT_IN_HU.search(image_type):
        return "CT maps of a material, not in HU"
    if sop_class not in ("", CT, *ENHANCED):
        return "CT objects that are no slices"
    if _text(header, "SamplesPerPixel") not in ("", "1"):
        return "CT colour pictures"
    return None


def _slice(path: Path, frame: int | None, stated: dict[str, Any]) -> Slice:
    if stated["ModalityLUTSequence"]:
        raise InputError(f"{path} has a table of values (Modality LUT) in place of a rescale to HU", ORIGINAL)
    kind = _text(stated, "RescaleType")
    if kind.upper() not in HU_TYPES:
        raise InputError(f"{path} has values in {kind} (RescaleType), not in HU", "give the CT series itself")
    place = {key: _numbers(stated, key) for key in PLACE_KEYS}
    if missing := [key for key, count in PLACE_KEYS.items() if len(place[key]) != count]:
        raise InputError(f"{path} has no {missing[0]}", ORIGINAL)
    position, orientation, pixel_spacing = place.values()
    i, j = orientation[:3], orientation[3:]
    cosine = sum(a * b for a, b in zip(i, j, strict=True))
    if max(abs(math.hypot(*i) - 1), abs(math.hypot(*j) - 1)) > 0.01 or abs(cosine) > 0.02:
        raise InputError(f"{path} has an unusable ImageOrientationPatient", ORIGINAL)
    if min(pixel_spacing) <= 0:
        raise InputError(f"{path} has an unusable PixelSpacing", ORIGINAL)
    slope, intercept = (_numbers(stated, key) for key in ("RescaleSlope", "RescaleIntercept"))
    for key, found in (("RescaleSlope", slope and slope[0]), ("RescaleIntercept", intercept)):
        if (found == () and _text(stated, key)) or found == 0:
            raise InputError(f"{path} has a {key} of {_text(stated, key)}, which is unusable", ORIGINAL)
    # as it stands: patients may differ in letters that messages leave out
    issuer, patient = (str(stated[key] or "").strip() for key in ("IssuerOfPatientID", "PatientID"))
    padding = stated["PixelPaddingValue"]
    return Slice(
        path=path,
        frame=frame,
        pixels_at=stated.get("pixels_at"),
        syntax=stated["TransferSyntaxUID"],
        patient="/".join(filter(None, (patient and issuer, patient))),
        acquisition=_text(stated, "FrameAcquisitionNumber") or _text(stated, "AcquisitionNumber"),
        pixels=stated["pixels"],
        padding=padding if isinstance(padding, int) else None,
        pixel_spacing=pixel_spacing,
        orientation=orientation,
        position=position,
        thickness=next(iter(_numbers(stated, "SliceThickness")), None),
        rescale=(slope[0] if slope else 1.0, intercept[0] if intercept else 0.0),
        **{name: _text(stated, key) for name, key in SERIES_KEYS.items()},
    )


def read_pixels(slices: list[Slice]) -> list[NDArray[Any]]:
    """Return the stored values (rows, columns) of slices that lie in one file.

    Raises:
        InputError: they are damaged, or compressed in a way that needs another package.
    """
    from pydicom import dcmread
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import UID

    first = slices[0]
    with open(first.path, "rb") as file, _only_pydicom(first.path, "its pixels cannot be decoded"):
        if first.pixels_at is None:
            data = dcmread(file, force=True)
        else:
            data = Dataset()
            data.file_meta = FileMetaDataset()
            for key, value in zip((*PIXEL_KEYS, "NumberOfFrames"), first.pixels, strict=True):
                setattr(data, key, value)
            data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
            file.seek(first.pixels_at)
            rows, columns, bits, *_, frames = first.pixels
            data.add_new(PIXEL_DATA, "OW", file.read(rows * columns * frames * bits // 8))
        data.file_meta.TransferSyntaxUID = UID(first.syntax)
        try:
            stored = data.pixel_array
        except RuntimeError as error:
            if "dependencies" in str(error):
                name = data.file_meta.TransferSyntaxUID.name
                raise InputError(f"{first.path} is compressed ({name})", "pip install 'maesil[dicom]'") from None
            raise
    stored = _without_padding(_values(stored, first), first)
    stored = stored.reshape(-1, *stored.shape[-2:])
    return [stored[one.frame or 0] for one in slices]


def _values(stored: NDArray[Any], one: Slice) -> NDArray[Any]:
    """Return stored values without the bits above those that belong to them (old overlays), with their sign."""
    _, _, bits, bits_stored, *_ = one.pixels
    if bits > bits_stored and stored.dtype.kind in "iu" and stored.dtype.itemsize * 8 == bits:
        return (stored << (bits - bits_stored)) >> (bits - bits_stored)
    return stored


def _without_padding(stored: NDArray[Any], one: Slice) -> NDArray[Any]:
    """Make air of padding that would be metal; below that it is air, or a value that voxels have as well."""
    slope, intercept = one.rescale
    if one.padding is None or stored.dtype.kind == "f" or one.padding * slope + intercept <= LARGEST_TISSUE_HU:
        return stored
    air = max(np.iinfo(stored.dtype).min, round((AIR_HU - intercept) / slope))
    return np.where(stored == one.padding, stored.dtype.type(air), stored)


def _text(data: dict[str, Any], keyword: str) -> str:
    # descriptions come in many encodings; only printable ASCII is safe on every terminal
    return re.sub(r"[^ -~]", "?", "\\".join(map(str, _all(data, keyword)))).strip()


def _numbers(data: dict[str, Any], keyword: str) -> tuple[float, ...]:
    """Return the numbers of an attribute; () when it is absent or not numeric."""
    try:
        found = tuple(float(v) for v in _all(data, keyword))
    except (TypeError, ValueError):
        return ()
    return found if all(math.isfinite(v) for v in found) else ()


def _all(data: dict[str, Any], keyword: str) -> Sequence[Any]:
    """Return the values of an attribute, none, one or several."""
    value = data.get(keyword)
    if value is None:
        return ()
    return value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else [value]
