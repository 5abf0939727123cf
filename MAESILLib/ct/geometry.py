"""Where the voxels of a grid lie in the patient.

Physical coordinates are DICOM's and ITK's: LPS in mm (x towards left, y towards posterior, z towards superior).
Indices are (i, j, k) = (column, row, slice) in matrices and (D, H, W) = (k, j, i) in arrays.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

LPS_OF_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""From RAS, in which NIfTI has its positions, and back."""


@dataclass(frozen=True)
class Geometry:
    """A regular voxel grid in the patient.

    Attributes:
        size_dhw: number of voxels (D, H, W) = (slices, rows, columns).
        spacing_dhw: distance of voxel centres in mm, in the same order.
        origin_lps: LPS position in mm of the centre of voxel (0, 0, 0).
        direction: ITK direction matrix, 9 numbers, row-major; its columns are the unit vectors of i, j and k in LPS.
    """

    size_dhw: tuple[int, int, int]
    spacing_dhw: tuple[float, float, float]
    origin_lps: tuple[float, float, float]
    direction: tuple[float, ...]

    def ijk_to_lps(self) -> NDArray[np.float64]:
        """Return the 4x4 matrix that takes (i, j, k, 1) to (x, y, z, 1) in LPS mm."""
        matrix = np.eye(4)
        matrix[:3, :3] = self.axes_lps() * np.array(self.spacing_dhw[::-1])
        matrix[:3, 3] = self.origin_lps
        return matrix

    def physical_point(self, dhw: ArrayLike) -> NDArray[np.float64]:
        """Return LPS positions (x, y, z) in mm, (..., 3), of (possibly fractional) indices (d, h, w), (..., 3)."""
        matrix = self.ijk_to_lps()
        ijk = np.asarray(dhw, dtype=np.float64)[..., ::-1]
        return ijk @ matrix[:3, :3].T + matrix[:3, 3]

    def index(self, points_lps: ArrayLike) -> NDArray[np.float64]:
        """Return the (fractional) indices (d, h, w), (..., 3), of LPS positions in mm, (..., 3)."""
        matrix = np.linalg.inv(self.ijk_to_lps())
        return (np.asarray(points_lps, dtype=np.float64) @ matrix[:3, :3].T + matrix[:3, 3])[..., ::-1]

    def axes_lps(self) -> NDArray[np.float64]:
        """Return the direction as a 3x3 matrix; columns are the i, j and k axes in LPS."""
        return np.array(self.direction, dtype=np.float64).reshape(3, 3)


def closest_lps_axes(direction: Sequence[float]) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """Find the permutation and flips that bring the array axes closest to (superior, posterior, left).

    All six assignments are compared by the sum of the absolute cosines, so an oblique grid cannot give
    one array axis to two patient axes.

    Args:
        direction: row-major ITK direction matrix.

    Returns:
        for each canonical axis (D towards superior, H towards posterior, W towards left): which array axis
        (0 = D, 1 = H, 2 = W) it comes from, and whether that axis has to be reversed.
    """
    cosines = np.array(direction, dtype=np.float64).reshape(3, 3)[::-1, ::-1]  # rows S, P, L; columns d, h, w
    axes = max(itertools.permutations(range(3)), key=lambda p: round(sum(abs(cosines[r, p[r]]) for r in range(3)), 9))
    flips = tuple(bool(cosines[row, axis] < 0) for row, axis in enumerate(axes))
    return (axes[0], axes[1], axes[2]), (flips[0], flips[1], flips[2])
