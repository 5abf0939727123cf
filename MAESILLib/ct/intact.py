"""Headers of NRRD and MetaImage files: what they state of the grid, and whether their voxels are all there.

Measured with SimpleITK 2.5: a flipped byte in the compressed data of an .nrrd or .mha gives noise, a short .mha
zeros, all without an error. So the length is compared with the header, and compressed data are unpacked once to
verify their check sum (0.15 s for 50 MB).
"""

import os
import re
import zlib
from pathlib import Path

from MAESILLib.ct.itk import Stated
from MAESILLib.ct.scan import AGAIN, GZIP_MAGIC, require_file
from MAESILLib.runtime.errors import InputError

CHUNK = 1 << 18
HEADER_LIMIT = 1 << 20
ANATOMICAL = r"(left|right)-(anterior|posterior)-superior(-time)?|(las|lps|ras)t?"
"""Values of NRRD's ``space`` that say where left, front and top are."""


def check_nrrd(path: Path, expected_bytes: int) -> Stated:
    """Look at an .nrrd or .nhdr file; raw data are checked by the reader.

    Args:
        expected_bytes: of its voxels; 0: do not look at them.

    Raises:
        InputError: its gzip data are damaged or cut short.
    """
    header, data_start = _text_header(path, b"\n\n", b"\r\n\r\n")
    lines = [line.split(":", 1) for line in header.splitlines() if ":" in line and not line.startswith("#")]
    fields = {name.strip().lower(): text.strip() for name, text in lines}
    if units := set(re.findall(r'"([^"]*)"', fields.get("space units", ""))) - {"mm", "", "???"}:
        raise InputError(f"{path} has positions in {min(units)}, not in mm", "save it in mm")
    directions = "space directions" in fields
    is_anatomical = re.fullmatch(ANATOMICAL, fields.get("space", "").lower()) is not None
    spacings = fields.get("spacings", "").lower().split()
    # a list axis has no spacing
    numbers = [text for text in spacings if text != "nan"]
    stated = Stated(directions or len(numbers) >= 3, directions and is_anatomical)
    if not expected_bytes or fields.get("encoding", "").lower() not in ("gzip", "gz"):
        return stated
    if {"line skip", "lineskip", "byte skip", "byteskip"} & fields.keys():
        return stated
    data = (fields.get("data file") or fields.get("datafile") or "").strip()
    if not data:
        _require_length(_unpacked_bytes(path, data_start), expected_bytes, path)
    elif (path.parent / data).is_file():
        _require_length(_unpacked_bytes(path.parent / data, 0), expected_bytes, path.parent / data)
    return stated


def check_meta_image(path: Path, expected_bytes: int) -> Stated:
    """Look at an .mha or .mhd file.

    Args:
        expected_bytes: of its voxels; 0: do not look at them.

    Raises:
        InputError: its data are damaged or missing.
    """
    start = _first_bytes(path)
    marker = max(start.find(b"ElementDataFile"), 0)
    data_start = start.find(b"\n", marker) + 1 or len(start)
    header = start[:data_start].decode("latin-1")
    fields = {key.strip(): value.strip() for key, _, value in (line.partition("=") for line in header.splitlines())}
    stated = Stated(
        bool({"ElementSpacing", "ElementSize"} & fields.keys()),
        bool({"TransformMatrix", "Rotation", "Orientation"} & fields.keys()),
    )
    name = fields.get("ElementDataFile", "LOCAL")
    if name.upper() != "LOCAL":
        if "%" in name or name.upper().startswith("LIST"):
            return stated
        require_file(path.parent / name, path)
        path, data_start = path.parent / name, 0
    is_packed = fields.get("CompressedData", "False").lower() == "true"
    packed_bytes, found = fields.get("CompressedDataSize", ""), path.stat().st_size - data_start
    if is_packed and packed_bytes not in ("", str(found)):
        is_short = packed_bytes.isdigit() and found < int(packed_bytes)
        what = "is cut short" if is_short else "has another length than its CompressedDataSize"
        raise InputError(f"{path} {what}", AGAIN)
    if not expected_bytes or ("HeaderSize" in fields and not is_packed):
        return stated
    if is_packed:
        _require_length(_unpacked_bytes(path, data_start), expected_bytes, path)
    else:
        _require_length(path.stat().st_size - data_start, expected_bytes, path)
    return stated


def _require_length(found: int, expected: int, path: Path) -> None:
    if found < expected:
        raise InputError(f"{path} is cut short: {found} of {expected} bytes", AGAIN)


def _first_bytes(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(HEADER_LIMIT)


def _text_header(path: Path, *ends: bytes) -> tuple[str, int]:
    """Return the header text and where the data begin (the end of the file when there is no empty line)."""
    start = _first_bytes(path)
    found = [(position, len(end)) for end in ends if (position := start.find(end)) >= 0]
    position, length = min(found, default=(len(start), 0))
    return start[:position].decode("latin-1"), position + length


def _unpacked_bytes(path: Path, offset: int) -> int:
    """Unpack the zlib or gzip stream that begins at ``offset``, without keeping it; return its unpacked length.

    Raises:
        InputError: the check sum is wrong, or the stream ends early.
    """
    total = 0
    unpacker = zlib.decompressobj(wbits=47)
    with open(path, "rb") as file:
        file.seek(offset, os.SEEK_SET)
        pending = file.read(CHUNK)
        try:
            while pending:
                total += len(unpacker.decompress(pending))
                pending = unpacker.unused_data + file.read(CHUNK)
                if unpacker.eof:
                    if not pending.startswith(GZIP_MAGIC):
                        break
                    unpacker = zlib.decompressobj(wbits=47)  # a gzip file of several members
        except zlib.error as error:
            raise InputError(f"{path} is damaged: {error}", AGAIN) from None
    if not unpacker.eof:
        raise InputError(f"{path} is cut short: its compressed data end early", AGAIN)
    return total
