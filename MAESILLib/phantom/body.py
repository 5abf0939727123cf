"""A generated CT of the chest and upper abdomen: the sample volume that needs no patient and no download.

The anatomy is laid out in millimetres in a frame of 240 x 288 x 384 mm and fitted to the field of view asked
for: in the axial plane with one scale, along the body with its own. Every seed is a different patient.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from MAESILLib.errors import InputError
from MAESILLib.phantom.lungs import paint_lungs
from MAESILLib.phantom.muscles import paint_body
from MAESILLib.phantom.organs import FLUID_LEVEL_Y, paint_abdomen, paint_chest, shape_chest
from MAESILLib.phantom.scan import paint_couch, scan
from MAESILLib.phantom.shapes import Canvas, Grid, Point
from MAESILLib.phantom.skeleton import paint_skeleton, vertebra_height
from MAESILLib.phantom.trunk import FIELD_MM, Patient, build_trunk, lung_field, mediastinum_field
from MAESILLib.stopping import NEVER, StopRequest

if TYPE_CHECKING:
    from MAESILLib.volume import CTVolume

SIZE_DHW = (160, 192, 256)
SPACING_MM = 1.5


def body_phantom(
    seed: int = 0,
    *,
    spacing_mm: float = SPACING_MM,
    size_dhw: tuple[int, int, int] = SIZE_DHW,
    stop: StopRequest = NEVER,
) -> np.ndarray:
    """Draw the CT of patient ``seed``.

    Args:
        seed: any non-negative integer; the same seed, size and spacing give the same bits.
        spacing_mm: isotropic voxel size in mm, 0.5 to 5.
        size_dhw: voxels along the body (index 0 inferior), to posterior and to the patient's left; 32 or more each.

    Returns:
        int16 HU (D, H, W).

    Raises:
        InputError: seed, size or spacing out of range.
        CancelledError: a stop was asked for.
    """
    grid = _grid(seed, spacing_mm, size_dhw)
    trunk = build_trunk(Patient.draw(seed))
    canvas = Canvas(grid, trunk.frame, -1000.0, trunk.patient.rng(60))
    chest = shape_chest(trunk)
    lungs = lung_field(trunk, mediastinum_field(trunk, chest.solids(), chest.tubes()))
    # each takes up to a second
    for paint in (
        lambda: paint_couch(canvas, trunk),
        lambda: paint_body(canvas, trunk),
        lambda: paint_abdomen(canvas, trunk),
        lambda: paint_lungs(canvas, trunk, lungs),
        lambda: paint_chest(canvas, trunk, chest),
        lambda: paint_skeleton(canvas, trunk),
    ):
        stop.check()
        paint()
    stop.check()
    return scan(canvas, trunk)


def phantom_volume(
    seed: int = 0,
    *,
    spacing_mm: float = SPACING_MM,
    size_dhw: tuple[int, int, int] = SIZE_DHW,
    stop: StopRequest = NEVER,
) -> CTVolume:
    """The CT of :func:`body_phantom` as a volume whose geometry is centred on the origin (LPS, identity axes)."""
    from MAESILLib.volume import CTVolume, Geometry

    hu = body_phantom(seed, spacing_mm=spacing_mm, size_dhw=size_dhw, stop=stop)
    d, h, w = size_dhw
    geometry = Geometry(
        size_dhw=(d, h, w),
        spacing_dhw=(spacing_mm, spacing_mm, spacing_mm),
        origin_lps=(-0.5 * spacing_mm * (w - 1), -0.5 * spacing_mm * (h - 1), -0.5 * spacing_mm * (d - 1)),
        direction=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0),
    )
    return CTVolume(hu=hu, geometry=geometry, name=f"phantom-{seed}")


def landmarks(
    seed: int = 0, *, spacing_mm: float = SPACING_MM, size_dhw: tuple[int, int, int] = SIZE_DHW
) -> dict[str, tuple[int, int, int]]:
    """Voxel (k, j, i) inside named structures of the phantom with the same arguments."""
    grid = _grid(seed, spacing_mm, size_dhw)
    patient = Patient.draw(seed)
    z8 = vertebra_height(8)
    x8, y8 = (float(v) for v in patient.spine(z8))
    points: dict[str, Point] = {
        "right lung": (-85.0, 20.0, 165.0),
        "left lung": (85.0, 20.0, 165.0),
        "liver": (-80.0, 0.0, 40.0),
        "spleen": (94.0, 42.0, 34.0),
        "trachea": (float(patient.spine(215.0)[0]), float(patient.spine(215.0)[1]) - 36, 215.0),
        "aorta": (float(patient.spine(130.0)[0]) + 24, float(patient.spine(130.0)[1]) - 10, 130.0),
        "vertebra": (x8, y8, z8),
        "stomach gas": (64.0, FLUID_LEVEL_Y - 10, 46.0),
        "stomach fluid": (63.0, FLUID_LEVEL_Y + 14, 52.0),
    }
    return {name: _nearest(grid, point) for name, point in points.items()}


def _nearest(grid: Grid, point: Point) -> tuple[int, int, int]:
    x, y, z = point
    k, j, i = (int(np.argmin(np.abs(axis - at))) for axis, at in ((grid.z, z), (grid.y, y), (grid.x, x)))
    return k, j, i


def _grid(seed: int, spacing_mm: float, size_dhw: tuple[int, int, int]) -> Grid:
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise InputError(f"phantom seed {seed!r} is not a non-negative integer", "use 0, 1, 2, ...")
    if len(size_dhw) != 3 or min(size_dhw) < 32:
        raise InputError(f"phantom size {tuple(size_dhw)} is too small", "use 32 voxels or more on every axis")
    if not 0.5 <= spacing_mm <= 5:
        raise InputError(f"phantom spacing {spacing_mm} mm is out of range", "use 0.5 to 5 mm")
    extent = [n * spacing_mm for n in size_dhw]
    in_plane = min(extent[1] / FIELD_MM[1], extent[2] / FIELD_MM[2])
    steps = (FIELD_MM[0] / size_dhw[0], spacing_mm / in_plane, spacing_mm / in_plane)
    starts = (0.5 * steps[0], *(-0.5 * step * (n - 1) for step, n in zip(steps[1:], size_dhw[1:], strict=True)))
    axes = ((a + s * np.arange(n)).astype(np.float32) for a, s, n in zip(starts, steps, size_dhw, strict=True))
    return Grid(*axes)
