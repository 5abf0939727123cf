"""Changes of valid inputs: bytes, header fields, JSON values, files of a folder. Each is drawn from a seeded generator.

A change is ``noticed`` where the format lets a reader find out: its length or check sum is wrong, or slices are
missing; ``harmless`` where it touches neither voxels nor geometry nor weights; else the file states something else.
"""

import json
import re
import shutil
import struct
from pathlib import Path
from random import Random
from typing import Any

NOTICED, HARMLESS, RESTATED = "noticed", "harmless", "restated"
EVIL = "\x1b[31mEVIL\x07"
NAMES = (
    *("../outside", "../../outside.npy", "/tmp/outside", f"{EVIL}.raw"),
    *("", ".", "a/../../outside", "C:\\x", "x" * 300),
)
NUMBERS = (b"0", b"-1", b"4294967295", b"99999999999999999999", b"1e308", b"nan", b"inf", b"1e-300", b"7" * 5000)
VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 7, 2**31, 2**63, 10**30, 0.5, 1e308, -1e-308, float("nan"), float("inf"), "", "7", EVIL),
    *("=1+1", [], {}, [[]], [1, 2, 3], [2**40] * 3, [-8, 8, 8], [8, 8, float("nan")], {"a": EVIL}, *NAMES),
)
BINARY = tuple(
    struct.pack("<" + kind, value)
    for kind, values in {"h": (0, -1, 32767), "i": (-1, 2**31 - 1), "q": (-1, 2**62), "B": (0, 255)}.items()
    for value in values
) + tuple(struct.pack("<" + kind, value) for kind in "fd" for value in (0, -1, 1e30, float("nan"), float("inf")))
COMMENTS = {
    ".nrrd": (b"\n", [b"# a comment\n", b"note:=" + EVIL.encode() + b"\n", b"Operator:=A\n"]),
    ".nhdr": (b"\n", [b"# a comment\n", b"note:=text\n"]),
    ".mha": (b"NDims", [b"Comment = text\n", b"AcquisitionDate = 2020.01.01\n", b"Name = " + EVIL.encode() + b"\n"]),
    ".mhd": (b"NDims", [b"Comment = text\n", b"Name = text\n"]),
}
FREE_IN_NIFTI = ((148, 228), (228, 252), (328, 344))
"""Bytes of descrip, aux_file and intent_name."""


def change_bytes(path: Path, begin: int, rng: Random, is_packed: bool) -> tuple[str, str]:
    """Change a file whose voxels begin at ``begin``; return what was done, and its kind."""
    data = bytearray(path.read_bytes())
    what = rng.choice(("flip", "zero", "binary", "truncate", "insert", "delete", "number", "line", "twice"))
    place = rng.randrange(len(data)) if rng.random() < 0.5 else rng.randrange(min(max(begin, 1), len(data)))
    size = rng.choice((1, 2, 7, 100, 1000))
    inside = place >= begin
    kind = NOTICED if inside and (is_packed or what in ("truncate", "insert", "delete")) else RESTATED
    if what == "flip":
        for _ in range(rng.randint(1, 4)):
            data[place] ^= 1 << rng.randrange(8)
            # others beside it
            place = min(place + rng.randrange(8), len(data) - 1)
    elif what == "zero":
        data[place : place + size] = bytes([rng.choice((0, 255))]) * len(data[place : place + size])
    elif what == "binary":
        value = rng.choice(BINARY)
        data[place : place + len(value)] = value
    elif what == "truncate":
        del data[place:]
    elif what == "insert":
        data[place:place] = rng.randbytes(size)
    elif what == "delete":
        del data[place : place + size]
    elif what == "twice":
        data += bytes(data)
    else:
        kind = RESTATED
        pattern = rb"(?<![\w.])-?\d[\d.e+-]*" if what == "number" else rb"[^\n]*\n"
        found = [one for one in re.finditer(pattern, data[: begin or 4096]) if one.group()]
        if found:
            one = rng.choice(found)
            data[slice(*one.span())] = (
                rng.choice(NUMBERS) if what == "number" else one.group() * rng.choice((0, 2, 3000))
            )
    path.write_bytes(data)
    return f"{what} at {place} of {path.name}", kind


def add_comment(path: Path, rng: Random) -> tuple[str, str] | None:
    """Add what no reader needs: a comment, an unknown field, text in free fields, bytes behind the end."""
    data = bytearray(path.read_bytes())
    if path.suffix in COMMENTS and rng.random() < 0.8:
        marker, lines = COMMENTS[path.suffix]
        place = data.find(marker) + (1 if marker == b"\n" else 0)
        data[place:place] = rng.choice(lines)
    elif path.suffix in (".nii", ".hdr") and rng.random() < 0.8:
        low, high = rng.choice(FREE_IN_NIFTI)
        data[low:high] = rng.randbytes(high - low)
    elif path.suffix in (".mha", ".nrrd"):
        return None
    else:
        data += bytes(rng.choice((1, 16, 512)))
    path.write_bytes(data)
    return f"comment in {path.name}", HARMLESS


def rename_data(path: Path, rng: Random) -> tuple[str, str]:
    """Let a header name another data file."""
    text = path.read_bytes()
    name = rng.choice((*NAMES, "LIST", "x%d.raw 1 9 1", "missing.raw")).encode()
    path.write_bytes(re.sub(rb"(?im)^(data ?file:|ElementDataFile =).*$", rb"\1 " + name.replace(b"\\", b"/"), text))
    return f"data file {name!r}", RESTATED


def change_json(values: Any, rng: Random) -> tuple[str, str]:
    """Change, remove or add a value somewhere in nested lists and objects."""
    where, name = values, ""
    while True:
        key = rng.choice(list(where) if isinstance(where, dict) else range(len(where)))
        name += f".{key}"
        if not isinstance(where[key], (dict, list)) or not where[key] or rng.random() < 0.3:
            break
        where = where[key]
    what = rng.choice(("value", "value", "value", "remove", "unknown"))
    if what == "remove":
        del where[key]
    elif what == "unknown" and isinstance(where, dict):
        where[rng.choice(("unknown", EVIL, "__proto__"))] = rng.choice(VALUES)
    else:
        where[key] = rng.choice(VALUES)
        what += f" {str(where[key])[:40]!r}"
    return f"{what} at {name}", RESTATED


def as_json(values: Any, rng: Random) -> bytes:
    """Write values as JSON, now and then of a kind that no reader should trust."""
    text = json.dumps(values)
    broken = ("[" * 100_000, text[:-1], text + "}", text.replace(":", ":[", 1), '{"a":' * 50_000, "", "\ufeff" + text)
    return (rng.choice(broken) if rng.random() < 0.1 else text).encode()


def change_folder(folder: Path, rng: Random) -> tuple[str, str]:
    """Remove, double or rename a file of a DICOM series, or add one."""
    files = sorted(folder.iterdir())
    inner = files[rng.randrange(1, len(files) - 1)]
    what = rng.choice(("remove", "remove the first", "double", "rename", "text", "empty", "nested", "exchange"))
    if what == "remove":
        inner.unlink()
        return what, NOTICED
    if what == "remove the first":
        files[0].unlink()
        return what, RESTATED
    if what == "double":
        shutil.copy(inner, folder / "copy.dcm")
    elif what == "rename":
        inner.rename(folder / rng.choice(("zz", "a b.dcm", EVIL.replace("/", ""), "-o.dcm", "=1.dcm", "x" * 200)))
    elif what == "text":
        (folder / "README.txt").write_text(EVIL)
    elif what == "empty":
        (folder / "empty.dcm").touch()
    elif what == "nested":
        (folder / "inner").mkdir()
        inner.rename(folder / "inner" / inner.name)
    else:
        one, other = inner.read_bytes(), files[0].read_bytes()
        inner.write_bytes(other)
        files[0].write_bytes(one)
    return what, HARMLESS
