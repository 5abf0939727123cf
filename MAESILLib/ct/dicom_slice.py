"""One slice of a CT as DICOM states it: where it lies, how it becomes HU, and its pixels.

A file is parsed once: of pixels that are not compressed it is remembered where in the file they lie.
"""

import math
import re
import warnings
from collections.abc import Iterator, MutableSequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
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
BEHIND_PIXELS = re.compile(
    rb"\xfa\xff\xfa\xff|\xfc\xff\xfc\xff|[\xe1\xe3\xe5\xe7]\x7f|\xff\xfa\xff\xfa|\xff\xfc\xff\xfc|\x7f[\xe1\xe3\xe5\xe7]"
)
"""The tag of a signature, of padding or of a private element, in either byte order."""
EMPTY = b"\xfe\xff\x00\xe0\0\0\0\0"
"""A fragment of compressed pixels without any."""
ORIGINAL = "export the original CT series"
PIXEL_KEYS = ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation")
PIXEL_OPTIONS = ("rows", "columns", "bits_allocated", "bits_stored", "pixel_representation", "number_of_frames")
"""As pydicom's decoders call them."""
PLACE_KEYS = {"ImagePositionPatient": 3, "ImageOrientationPatient": 6, "PixelSpacing": 2}
"""And how many numbers they have."""
FRAME_KEYS = (
    *(*PLACE_KEYS, "SliceThickness", "RescaleSlope", "RescaleIntercept", "RescaleType"),
    *("FrameAcquisitionNumber", "ConvolutionKernel"),
)
FILE_KEYS = (
    *("SOPClassUID", "Modality", "ImageType", "SamplesPerPixel", "NumberOfFrames", "ModalityLUTSequence"),
    *("IssuerOfPatientID", "PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber"),
    *("SeriesDescription", "AcquisitionNumber", "PixelPaddingValue", *PIXEL_KEYS, *FRAME_KEYS),
)


@dataclass(frozen=True)
class Slice:
    """A slice of a CT, a file or a frame of one; texts are "" when absent.

    Attributes:
        frame: None in a file of one.
        pixels: values of ``PIXEL_OPTIONS``.
        pixels_at: where in the file pixels begin that are neither compressed nor big-endian; else None.
        syntax: TransferSyntaxUID.
        padding: PixelPaddingValue, None when absent.
        patient: PatientID after its issuer.
        pixel_spacing: mm between rows, then between columns, as DICOM orders them.
        orientation: unit vectors in LPS along a row (i) and along a column (j): 6 numbers.
        position: LPS position in mm of the first voxel.
        thickness: SliceThickness in mm, None when absent.
        rescale: (slope, intercept); (1, 0) when absent.
    """

    path: Path
    frame: int | None
    pixels: tuple[int, ...]
    pixels_at: int | None
    syntax: str
    padding: int | None
    patient: str
    study_uid: str
    series_uid: str
    series_number: str
    description: str
    acquisition: str
    kernel: str
    pixel_spacing: tuple[float, ...]
    orientation: tuple[float, ...]
    position: tuple[float, ...]
    thickness: float | None
    rescale: tuple[float, float]

    def axes(self) -> NDArray[np.float64]:
        """Return i, j and k axes as rows."""
        return _axes(self.orientation)

    @property
    def size(self) -> tuple[int, int]:
        """(columns, rows)."""
        return self.pixels[1], self.pixels[0]

    @property
    def series(self) -> tuple[str, ...]:
        """What slices of one series have in common: those of careless anonymisers share their UID with others."""
        return self.patient, self.study_uid, self.series_uid or str(self.path.parent), self.series_number

    @cached_property
    def height(self) -> float:
        """Position in mm along the slice normal."""
        return float(self.axes()[2] @ np.array(self.position))


@lru_cache(maxsize=16)
def _axes(orientation: tuple[float, ...]) -> NDArray[np.float64]:
    """Make DICOM's rounded cosines exactly perpendicular (Gram-Schmidt)."""
    i, j = np.reshape(orientation, (2, 3))
    i /= np.linalg.norm(i)
    j -= i * (i @ j)
    j /= np.linalg.norm(j)
    return np.array([i, j, np.cross(i, j)])


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
            header = _values_of(data, FILE_KEYS)
            header["SOPClassUID"] = header["SOPClassUID"] or [data.file_meta.get("MediaStorageSOPClassUID", "")]
            implied = IMPLICIT if data.is_implicit_VR else EXPLICIT if data.is_little_endian else BIG_ENDIAN
            syntax = str(data.file_meta.get("TransferSyntaxUID") or implied)
            shared = [_grouped(item) for item in data.get("SharedFunctionalGroupsSequence") or []]
            each = [_grouped(item) for item in data.get("PerFrameFunctionalGroupsSequence") or []]
        # no element is longer than the file, none shorter than 8 bytes
        file.seek(min(sum(pixels[0][1:]), path.stat().st_size) if pixels else 0)
        tail = file.read(8)
    if (kind := _other_kind(header)) is not None:
        return kind
    numbers = [_numbers(header[key]) for key in PIXEL_KEYS]
    if () in numbers:
        raise InputError(f"{path} has no {PIXEL_KEYS[numbers.index(())]}", ORIGINAL)
    rows, columns, bits, bits_stored, high_bit, sign = (int(found[0]) for found in numbers)
    if high_bit != bits_stored - 1 or bits_stored > bits:
        raise InputError(f"{path} has HighBit {high_bit}, which does not fit BitsStored {bits_stored}", ORIGINAL)
    if not pixels:
        raise InputError(f"{path} has no pixels", AGAIN)
    tag, place, length = pixels[0]
    frames = int((*_numbers(header["NumberOfFrames"]), 1)[0]) or 1
    is_plain = syntax in (IMPLICIT, EXPLICIT, BIG_ENDIAN)
    # an undefined length is that of compressed pixels
    found = min(length, path.stat().st_size - place) if length != 0xFFFFFFFF else 0
    if is_plain and found < rows * columns * frames * bits // 8:
        raise InputError(f"{path} is cut short: it has fewer pixels than it states", AGAIN)
    is_padding = not tail.strip(b"\0") and len(tail) % 2 == 0
    if is_plain and not is_padding and not (len(tail) == 8 and BEHIND_PIXELS.match(tail)):
        raise InputError(f"{path} is damaged: it has more pixels than it states", AGAIN)
    if frames == 1 and _text(header["SOPClassUID"]) not in ENHANCED:
        each = [{}]
    elif len(each) != frames:
        raise InputError(
            f"{path} has {frames} frames and does not state where each lies", "export single slices or an enhanced CT"
        )
    stored = {
        "pixels": (rows, columns, bits, bits_stored, sign, frames),
        "pixels_at": place if syntax in (IMPLICIT, EXPLICIT) and tag == PIXEL_DATA else None,
        "syntax": syntax,
    }
    common = header | (shared[0] if shared else {})
    return [_slice(path, n if frames > 1 else None, stored, common | own) for n, own in enumerate(each)]


@contextmanager
def _only_pydicom(path: Path, what: str, syntax: str = "") -> Iterator[None]:
    """Make one line of what pydicom raises of a damaged file, which may be anything: only its calls belong here."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except BaseException as error:
        # a decoder in Rust panics, which is no Exception
        is_of_file = isinstance(error, Exception) or type(error).__module__ == "pyo3_runtime"
        if not is_of_file or isinstance(error, MemoryError) or getattr(error, "errno", None) is not None:
            raise
        if isinstance(error, RuntimeError) and "dependencies" in str(error):
            raise InputError(f"{path} is compressed ({syntax})", "pip install 'maesil[dicom]'") from None
        raise InputError(f"{path} is damaged or cut short: {what}", AGAIN) from error


@cache
def _tags(keys: tuple[str, ...]) -> dict[str, Any]:
    """Return the tags of keywords, which pydicom would look up for each file again."""
    from pydicom.datadict import tag_for_keyword
    from pydicom.tag import Tag

    return {key: Tag(tag_for_keyword(key)) for key in keys}


def _values_of(data: Any, keys: tuple[str, ...]) -> dict[str, list[Any]]:
    """Return the values of attributes: none, one or several."""
    there = data.keys()
    found = {key: data[tag].value if tag in there else None for key, tag in _tags(keys).items()}
    return {k: [] if v is None else list(v) if isinstance(v, MutableSequence) else [v] for k, v in found.items()}


def _grouped(item: Any) -> dict[str, list[Any]]:
    """Return what the functional groups of an item of an enhanced image state."""
    groups = [element.value[0] for element in item if element.VR == "SQ" and element.value]
    return {k: v for group in groups for k, v in _values_of(group, FRAME_KEYS).items() if v not in ([], [""])}


def _other_kind(header: dict[str, list[Any]]) -> str | None:
    """Name what a file is if it is not a slice of a CT volume."""
    modality, sop_class = _text(header["Modality"]), _text(header["SOPClassUID"])
    if modality not in ("CT", "") or (not modality and sop_class not in (CT, *ENHANCED)):
        return f"{modality or 'unknown modality'} {'images' if header['Rows'] else 'objects'}" if sop_class else ""
    image_type = _text(header["ImageType"]).upper()
    if "LOCALIZER" in image_type:
        return "CT localisers"
    if NOT_IN_HU.search(image_type):
        return "CT maps of a material, not in HU"
    if sop_class not in ("", CT, *ENHANCED):
        return "CT objects that are no slices"
    if _text(header["SamplesPerPixel"]) not in ("", "1"):
        return "CT colour pictures"
    return None


def _slice(path: Path, frame: int | None, stored: dict[str, Any], stated: dict[str, list[Any]]) -> Slice:
    if stated["ModalityLUTSequence"]:
        raise InputError(f"{path} has a table of values (Modality LUT) in place of a rescale to HU", ORIGINAL)

    def text(key: str) -> str:
        return _text(stated[key])

    if (kind := text("RescaleType")).upper() not in HU_TYPES:
        raise InputError(f"{path} has values in {kind} (RescaleType), not in HU", "give the CT series itself")
    place = {key: _numbers(stated[key]) for key in PLACE_KEYS}
    if missing := [key for key, count in PLACE_KEYS.items() if len(place[key]) != count]:
        raise InputError(f"{path} has no {missing[0]}", ORIGINAL)
    position, orientation, pixel_spacing = place.values()
    i, j = orientation[:3], orientation[3:]
    cosine = sum(a * b for a, b in zip(i, j, strict=True))
    if max(abs(math.hypot(*i) - 1), abs(math.hypot(*j) - 1)) > 0.01 or abs(cosine) > 0.02:
        raise InputError(f"{path} has an unusable ImageOrientationPatient", ORIGINAL)
    if min(pixel_spacing) <= 0:
        raise InputError(f"{path} has an unusable PixelSpacing", ORIGINAL)
    rescale = {key: _numbers(stated[key])[:1] for key in ("RescaleSlope", "RescaleIntercept")}
    for key, found in rescale.items():
        if (not found and text(key)) or (key == "RescaleSlope" and found == (0,)):
            raise InputError(f"{path} has a {key} of {text(key)}, which is unusable", ORIGINAL)
    # as it stands: patients may differ in letters that messages leave out
    issuer, patient = ("".join(map(str, stated[key])).strip() for key in ("IssuerOfPatientID", "PatientID"))
    padding = [value for value in stated["PixelPaddingValue"] if isinstance(value, int)]
    return Slice(
        path=path,
        frame=frame,
        **stored,
        padding=padding[0] if padding else None,
        patient="/".join(filter(None, (patient and issuer, patient))),
        study_uid=text("StudyInstanceUID"),
        series_uid=text("SeriesInstanceUID"),
        series_number=text("SeriesNumber"),
        description=text("SeriesDescription"),
        acquisition=text("FrameAcquisitionNumber") or text("AcquisitionNumber"),
        kernel=text("ConvolutionKernel"),
        pixel_spacing=pixel_spacing,
        orientation=orientation,
        position=position,
        thickness=next(iter(_numbers(stated["SliceThickness"])), None),
        rescale=((*rescale["RescaleSlope"], 1.0)[0], (*rescale["RescaleIntercept"], 0.0)[0]),
    )


def _text(values: list[Any]) -> str:
    # descriptions come in many encodings; only printable ASCII is safe on every terminal
    return re.sub(r"[^ -~]", "?", "\\".join(map(str, values))).strip()


def _numbers(values: list[Any]) -> tuple[float, ...]:
    """Return the numbers of an attribute; () when it is absent or not numeric."""
    try:
        found = tuple(float(v) for v in values)
    except (TypeError, ValueError):
        return ()
    return found if all(math.isfinite(v) for v in found) else ()


def read_pixels(slices: list[Slice]) -> list[NDArray[Any]]:
    """Return the stored values (rows, columns) of slices that lie in one file.

    Bits above those that belong to a value (old overlays) are left out; padding that would be metal is air.

    Raises:
        InputError: they are damaged, or compressed in a way that needs another package.
    """
    from pydicom import dcmread
    from pydicom.uid import UID

    try:
        from pydicom.encaps import parse_fragments
        from pydicom.pixels import get_decoder
    except ImportError:  # before pydicom 3
        get_decoder = parse_fragments = None
    first, syntax = slices[0], UID(slices[0].syntax)
    _, _, bits, bits_stored, *_ = first.pixels
    with open(first.path, "rb") as file, _only_pydicom(first.path, "its pixels cannot be decoded", syntax.name):
        if first.pixels_at is None or get_decoder is None:
            data = dcmread(file, force=True)
            data.file_meta.TransferSyntaxUID = syntax
            packed = data.PixelData if "PixelData" in data and data["PixelData"].is_undefined_length else b""
            if packed and parse_fragments and parse_fragments(packed + EMPTY)[0] == parse_fragments(packed)[0]:
                raise ValueError("the last fragment takes in what follows it, so it is cut short")
            stored = data.pixel_array
        else:
            file.seek(first.pixels_at)
            options = dict(zip(PIXEL_OPTIONS, first.pixels, strict=True))
            gray = {"samples_per_pixel": 1, "photometric_interpretation": "MONOCHROME2", "pixel_keyword": "PixelData"}
            stored, _ = get_decoder(syntax).as_array(file, **options, **gray)
    if bits > bits_stored and stored.dtype.kind in "iu" and stored.dtype.itemsize * 8 == bits:
        stored = (stored << (bits - bits_stored)) >> (bits - bits_stored)
    stored = _without_padding(stored, first.padding, *first.rescale).reshape(-1, *stored.shape[-2:])
    return [stored[one.frame or 0] for one in slices]


def _without_padding(stored: NDArray[Any], padding: int | None, slope: float, intercept: float) -> NDArray[Any]:
    if padding is None or stored.dtype.kind == "f" or padding * slope + intercept <= LARGEST_TISSUE_HU:
        return stored  # below that it is air, or a value that voxels have as well
    air = max(np.iinfo(stored.dtype).min, round((AIR_HU - intercept) / slope))
    return np.where(stored == padding, stored.dtype.type(air), stored)
