"""A grey PNG from an array, with the standard library alone: training nodes are bare."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np

from MAESILLib.runtime.files import atomic_path


def write_grey_png(path: Path | str, picture: np.ndarray) -> None:
    """Write (H, W) intensities in [0, 1] as an 8-bit PNG, whole or not at all.

    Format: PNG specification (ISO/IEC 15948), colour type 0, filter 0 on every row.
    """
    grey = np.clip(np.rint(np.asarray(picture, np.float32) * 255), 0, 255).astype(np.uint8)
    height, width = grey.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), grey], axis=1).tobytes()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows, 6)), (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)
