"""A volume node written to a file for the worker, a piece at a time so that Slicer stays responsive.

NRRD because it keeps type and geometry exactly. SimpleITK writes a file in one go, which takes a second for a large
CT; its event loop would stand still for that long.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import qt
import slicer
import vtk
from slicer.i18n import tr as _

from MAESILWidgets.messages import Failure, os_failure

PIECE_BYTES = 8 << 20
TEMPORARY = _("choose another temporary folder in Slicer's settings")
NRRD_TYPES = {"float32": "float", "float64": "double"}
"""Where Teem and numpy call a type by different names."""
LPS_AND_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""From LPS (files, MAESILLib) to RAS (the scene), and back."""


def ijk_to_lps(node: Any) -> np.ndarray:
    """Return the volume's own 4x4 matrix from (i, j, k, 1) to LPS mm, parent transforms left out."""
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    return LPS_AND_RAS @ slicer.util.arrayFromVTKMatrix(matrix)


def nrrd_header(array: np.ndarray, lps: np.ndarray) -> bytes:
    """Return the header of an attached, raw NRRD file (Teem's format definition, version 5).

    Args:
        array: (D, H, W) little-endian.
        lps: 4x4 from (i, j, k, 1) to LPS mm.
    """

    def vector(column: int) -> str:
        return "(" + ",".join(repr(float(x)) for x in lps[:3, column]) + ")"

    lines = [
        "NRRD0005",
        f"type: {NRRD_TYPES.get(array.dtype.name, array.dtype.name)}",
        "dimension: 3",
        "space: left-posterior-superior",
        "sizes: " + " ".join(str(n) for n in array.shape[::-1]),
        "space directions: " + " ".join(vector(c) for c in range(3)),
        "kinds: domain domain domain",
        "endian: little",
        "encoding: raw",
        "space origin: " + vector(3),
    ]
    return ("\n".join(lines) + "\n\n").encode("ascii")


class VolumeExport:
    """Writes the voxels of a volume node to ``path``, 8 MiB a turn of the event loop.

    Args:
        on_progress: called with the share written.
        on_end: called once with None, or with why it failed. Nothing half-written is left then.
    """

    def __init__(
        self,
        node: Any,
        path: Path,
        on_progress: Callable[[float], None],
        on_end: Callable[[Failure | None], None],
    ) -> None:
        self.path = Path(path)
        self.on_progress, self.on_end = on_progress, on_end
        array = slicer.util.arrayFromVolume(node)
        # numpy keeps the memory of the node's image alive, whatever becomes of the node
        self.image = node.GetImageData()
        self.array = array if array.dtype.byteorder in "=<|" else array.astype(array.dtype.newbyteorder("<"))
        self.matrix = ijk_to_lps(node)
        self.next_plane = 0
        self.file: Any = None
        self.timer = qt.QTimer()
        self.timer.connect("timeout()", self._write_piece)

    def start(self) -> None:
        """Begin; the rest happens in the event loop."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = open(self.path, "wb")  # noqa: SIM115 (open over many turns of the event loop)
            self.file.write(nrrd_header(self.array, self.matrix))
        except OSError as error:
            self._end(os_failure(error, self.path, TEMPORARY))
            return
        self.timer.start(0)

    def cancel(self) -> None:
        """Stop and remove what was written; ``on_end`` is not called."""
        self._close(keep=False)

    def _write_piece(self) -> None:
        planes = len(self.array)
        count = max(1, PIECE_BYTES // max(1, self.array[0].nbytes))
        piece = self.array[self.next_plane : self.next_plane + count]
        try:
            self.file.write(np.ascontiguousarray(piece).data)
            self.next_plane += len(piece)
            if self.next_plane >= planes:
                self.file.close()
        except OSError as error:
            self._end(os_failure(error, self.path, TEMPORARY))
            return
        self.on_progress(self.next_plane / planes)
        if self.next_plane >= planes:
            self._end(None)

    def _end(self, failure: Failure | None) -> None:
        self._close(keep=failure is None)
        self.on_end(failure)

    def _close(self, keep: bool) -> None:
        self.timer.stop()
        self.timer.deleteLater()
        if self.file is not None:
            with suppress(OSError):
                self.file.close()
        if not keep:
            with suppress(OSError):
                self.path.unlink()
        self.file = self.array = self.image = None
