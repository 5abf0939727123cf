"""NRRD and MetaImage files: headers and lengths are judged here, voxels are read by SimpleITK.

Measured with SimpleITK 2.5: a flipped byte in compressed data gives noise, a short .mha zeros, all without an error. So
the length is compared with the header, and compressed data are unpacked once to verify their check sum (0.15 s for
50 MB). A field of NRRD that changes neither voxels nor their places may have any name, which SimpleITK refuses.
"""

import difflib
import re
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from MAESILLib.ct.check import check_affine
from MAESILLib.ct.scan import (
    AGAIN,
    CHECK_FORMAT,
    GZIP_MAGIC,
    MOST_MORE,
    Given,
    Scan,
    check_surplus,
    file_grid,
    require_file,
)
from MAESILLib.runtime.errors import InputError
from MAESILLib.runtime.files import check_name

CHUNK = 1 << 14
"""Small, because what lies behind a gzip member is copied for each member."""
HEADER_LIMIT = 1 << 20
LONGEST_VALUE, LONGEST_NUMBER = 500, 64
"""Characters of a field that SimpleITK reads; longer ones end its process."""
ANATOMICAL = r"(left|right)-(anterior|posterior)-superior(-time)?|(las|lps|ras)t?"
"""Values of NRRD's ``space`` that say where left, front and top are."""
TO_THE_END = sys.maxsize
ENCODINGS = ("raw", "txt", "text", "ascii", "hex", "gzip", "gz")
NRRD_FIELDS = (
    *("dimension", "type", "encoding", "endian", "sizes", "spacings", "kinds", "axis mins", "axis maxs"),
    *("space", "space dimension", "space directions", "space origin", "space units"),
    *("line skip", "byte skip", "data file"),
)
"""That change voxels or their places (https://teem.sourceforge.net/nrrd/format.html); all others are left out."""


@dataclass(frozen=True)
class _Header:
    """What the text of a header states.

    Attributes:
        readable: the file that SimpleITK is given.
        data: name of the file of the voxels; "" for the header's own.
        start: of the voxels in it; None where the length of its voxels cannot be told.
        packed_bytes: length of the compressed stream; 0 where the voxels are not compressed.
        spacing, orientation: whether it states them; SimpleITK fills in what is missing.
    """

    readable: Path
    data: str
    start: int | None
    packed_bytes: int
    spacing: bool
    orientation: bool


def read_itk(path: Path, given: Given, header_alone: bool) -> Scan:
    """Read an .nrrd, .nhdr, .mha or .mhd file.

    Args:
        header_alone: leave the voxels unread; they are zeros.

    Raises:
        InputError: it is damaged, of another kind, or not one scalar volume.
    """
    import SimpleITK as sitk

    check_name(path)
    # what it warns of is judged here
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    kind = "NRRD" if path.suffix.lower() in (".nrrd", ".nhdr") else "MetaImage"
    reader = sitk.ImageFileReader()
    reader.SetImageIO({"NRRD": "NrrdImageIO", "MetaImage": "MetaImageIO"}[kind])
    with TemporaryDirectory() as folder:
        header = _nrrd(path, Path(folder)) if kind == "NRRD" else _meta_image(path)
        is_list = "%" in header.data or header.data.upper().split()[:1] == ["LIST"]
        if "%" in header.data and not re.fullmatch(r"[^%]*%\d?\d?d[^%]*", header.data):
            # another conversion would end its process, or write to its memory
            raise InputError(f"{path} names its data files {header.data[:40]!r}", "number them as in s%03d.raw 1 90 1")
        data = path.parent / header.data if header.data and not is_list else path
        require_file(data, path)
        reader.SetFileName(str(header.readable))
        try:
            reader.ReadImageInformation()
        except RuntimeError:
            raise InputError(f"{path} cannot be read as {kind}: its header is damaged", CHECK_FORMAT) from None
        pixel = sitk.GetPixelIDValueAsString(reader.GetPixelIDValue())
        size = file_grid(reader.GetSize(), reader.GetNumberOfComponents(), "complex" in pixel, str(path))
        affine = np.eye(4)
        spacing = np.array(reader.GetSpacing()[:3] if header.spacing else given.spacing_of(str(path)))
        affine[:3, :3] = np.reshape(reader.GetDirection(), 2 * [reader.GetDimension()])[:3, :3] * spacing
        affine[:3, 3] = reader.GetOrigin()[:3]
        check_affine(affine, str(path))
        guess = "the header gives no orientation: left and right, and top and bottom, are a guess"
        warnings: tuple[str, ...] = () if header.orientation else (guess,)
        if header_alone:
            voxels: NDArray[Any] = np.broadcast_to(np.int16(0), size[::-1])
        else:
            bits = re.search(r"(\d+)-bit", pixel)
            if header.start is not None and not is_list:
                voxels_bytes = int(np.prod(size)) * int(bits[1] if bits else 8) // 8
                warnings += _check_length(data, header.start, header.packed_bytes, voxels_bytes)
            try:
                voxels = sitk.GetArrayFromImage(reader.Execute()).reshape(size[::-1])
            except RuntimeError:
                raise InputError(f"{path} is damaged or cut short: its voxels cannot be read", AGAIN) from None
    return Scan(voxels, affine, str(path), warnings=warnings)


def _nrrd(path: Path, folder: Path) -> _Header:
    """Look at an .nrrd or .nhdr file; where it has other fields than ``NRRD_FIELDS``, write a header without them."""
    start = _first_bytes(path)
    if not start.startswith(b"NRRD"):
        raise InputError(f"{path} cannot be read as NRRD: it has no NRRD header", CHECK_FORMAT)
    end = re.search(rb"\r?\n\r?\n", start)
    data_start = end.end() if end else len(start)
    magic, *lines = start[:data_start].decode("utf-8", "replace").splitlines()
    fields, others, files = {}, False, list[str]()
    for number, line in enumerate(lines):
        name, colon, value = line.partition(":")
        if not colon or line.startswith("#") or value.startswith("="):
            continue
        # some names may be written as one word
        key = next((known for known in NRRD_FIELDS if known.replace(" ", "") == name.lower().replace(" ", "")), "")
        if not key and (close := difflib.get_close_matches(name.lower(), NRRD_FIELDS, 1, 0.8)):
            raise InputError(f"{path} has a field {name!r}: is it {close[0]!r}?", "correct the header")
        if key:
            fields[key] = _checked(value.strip(), path, "NRRD")
        others |= not key
        if key == "data file" and value.split()[:1] == ["LIST"]:
            files = [str(path.parent.absolute() / file) for file in lines[number + 1 :] if file]
            break
    if units := set(re.findall(r'"([^"]*)"', fields.get("space units", ""))) - {"mm", "", "???"}:
        raise InputError(f"{path} has positions in {min(units)}, not in mm", "save it in mm")
    encoding = fields.get("encoding", "raw").lower()
    if encoding not in ENCODINGS:
        raise InputError(f"{path} has the encoding {encoding!r}, which cannot be read", "save it as gzip or raw")
    name, readable = fields.get("data file", ""), path
    is_skipped = bool({"line skip", "byte skip"} & fields.keys())
    if others:
        fields["data file"] = name if files else str(path.parent.absolute() / (name or path.name))
        if not name:
            fields["line skip"] = str(start[:data_start].count(b"\n"))
        # the data file comes last
        text = [magic, *(f"{key}: {fields[key]}" for key in NRRD_FIELDS if key in fields), *files, ""]
        readable = folder / "header.nhdr"
        readable.write_bytes("\n".join(text).encode())
    # a list axis has no spacing
    spacings = [text for text in fields.get("spacings", "").lower().split() if text != "nan"]
    directions = "space directions" in fields
    return _Header(
        readable,
        name,
        None if is_skipped or encoding not in ("raw", "gzip", "gz") else 0 if name else data_start,
        TO_THE_END if encoding.startswith("gz") else 0,
        spacing=directions or len(spacings) >= 3,
        orientation=directions and bool(re.fullmatch(ANATOMICAL, fields.get("space", "").lower())),
    )


def _meta_image(path: Path) -> _Header:
    start = _first_bytes(path)
    data_start = start.find(b"\n", max(start.find(b"ElementDataFile"), 0)) + 1 or len(start)
    lines = start[:data_start].decode("utf-8", "replace").rstrip().split("\n")
    pairs = [line.partition("=") for line in lines]
    fields = {key.strip(): _checked(value.strip(), path, "MetaImage") for key, _, value in pairs}
    name, size = fields.get("ElementDataFile", ""), fields.get("DimSize", "").split()
    is_whole = all(sign for _, sign, _ in pairs) and name and re.fullmatch(r"MET_\w+", fields.get("ElementType", ""))
    are_numbers = len(size) < 10 and re.fullmatch("[0-9]+", "".join(size)) and fields.get("NDims") == str(len(size))
    # it prints what it misses, and ends its process at a number of dimensions that is none
    if not (is_whole and are_numbers):
        raise InputError(f"{path} cannot be read as MetaImage: it has no MetaImage header", CHECK_FORMAT)
    if fields.get("BinaryData", "").lower() == "false":
        raise InputError(f"{path} has its voxels as text, which cannot be read", "save it as binary")
    name = "" if name.upper() == "LOCAL" else name
    # a slice without a file would be noise
    count = depth = int(size[-1])
    if name.upper().startswith("LIST"):
        files = [line.strip() for line in start[data_start:].decode("utf-8", "replace").splitlines() if line.strip()]
        for file in files:
            require_file(path.parent / file, path)
        count = len(files) if name.upper() == "LIST" or not files else depth
    elif "%" in name and len(numbers := re.findall(r" (\d+)", name)) > 1:
        first, last, step = map(int, [*numbers, "1"][:3])
        count = (last - first) // max(step, 1) + 1
    if count < depth:
        raise InputError(f"{path} lists {count or 'no'} data files for {depth} slices", CHECK_FORMAT)
    is_packed = fields.get("CompressedData", "False").lower() == "true"
    stated = fields.get("CompressedDataSize", "")
    return _Header(
        path,
        name,
        None if "HeaderSize" in fields and not is_packed else 0 if name else data_start,
        ((int(stated) if stated.isdigit() else 0) or TO_THE_END) if is_packed else 0,
        spacing=bool({"ElementSpacing", "ElementSize"} & fields.keys()),
        orientation=bool({"TransformMatrix", "Rotation", "Orientation"} & fields.keys()),
    )


def _first_bytes(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(HEADER_LIMIT)


def _checked(value: str, path: Path, kind: str) -> str:
    """Return the value of a field that SimpleITK reads.

    Raises:
        InputError: it is of a kind that ends SimpleITK's process.
    """
    numbers = re.findall(r"[-+.\deE]+", value)
    if len(value) > LONGEST_VALUE or max(map(len, numbers), default=0) > LONGEST_NUMBER:
        raise InputError(f"{path} cannot be read as {kind}: its header has a value {value[:20]!r}...", CHECK_FORMAT)
    return value


def _check_length(path: Path, start: int, packed_bytes: int, expected: int) -> tuple[str, ...]:
    """Refuse fewer bytes of voxels than expected, and compressed ones that are damaged; warn of more. None are kept."""
    found = path.stat().st_size - start
    if packed_bytes:
        found, left, pending, unpacker = 0, packed_bytes, b"", zlib.decompressobj(wbits=47)
        with open(path, "rb") as file:
            file.seek(start)
            try:
                while found <= expected + MOST_MORE:
                    if len(pending) < len(GZIP_MAGIC):
                        more = file.read(min(CHUNK, left))
                        left, pending = left - len(more), pending + more
                    if unpacker.eof and pending.startswith(GZIP_MAGIC):
                        unpacker = zlib.decompressobj(wbits=47)  # a gzip file of several members
                    if unpacker.eof or not pending:
                        break
                    found += len(unpacker.decompress(pending))
                    pending = unpacker.unused_data
            except zlib.error:
                raise InputError(f"{path} is damaged: its compressed data cannot be unpacked", AGAIN) from None
        if not unpacker.eof and found <= expected + MOST_MORE:
            raise InputError(f"{path} is cut short: its compressed data end early", AGAIN)
    if found < expected:
        raise InputError(f"{path} is cut short: {found} of {expected} bytes", AGAIN)
    return check_surplus(found - expected, path)
