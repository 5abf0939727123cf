"""Small synthetic CT volumes, grids and DICOM series for tests."""

from collections.abc import Iterator
from itertools import permutations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray

from MAESILLib.ct.geometry import Geometry
from MAESILLib.ct.reading import read_volume
from MAESILLib.ct.volume import CTVolume
from MAESILLib.runtime.errors import InputError

SHARED_CT = Path(__file__).resolve().parents[3] / "shared" / "ct"
needs_real_ct = pytest.mark.skipif(not SHARED_CT.is_dir(), reason="the real CT volumes are not here")

IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


def read_chest(folder: Path) -> NDArray[np.int16]:
    """Return HU of a real chest from the folder of the fixture ``real_ct``."""
    path = folder / "val" / "lidc__lidc_0314.nii.gz"
    return sitk.GetArrayFromImage(sitk.DICOMOrient(sitk.ReadImage(str(path)), "LPS"))


def trunk(size_dhw: tuple[int, int, int] = (12, 40, 48), seed: int = 0) -> NDArray[np.int16]:
    """Return int16 HU of an ellipse of fat and muscle with two lungs and a spine in air, with noise."""
    rng = np.random.default_rng(seed)
    _, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in size_dhw), indexing="ij")
    hu = np.full(size_dhw, -1000.0)
    hu[(x / 0.9) ** 2 + (y / 0.8) ** 2 < 1] = -100
    hu[(x / 0.8) ** 2 + (y / 0.7) ** 2 < 1] = 50
    hu[((np.abs(x) - 0.4) / 0.25) ** 2 + (y / 0.45) ** 2 < 1] = -850
    hu[(x / 0.1) ** 2 + ((y - 0.5) / 0.12) ** 2 < 1] = 600
    return np.clip(hu + rng.normal(0, 12, size_dhw), -1024, 3071).astype(np.int16)


def linear_hu(
    ijk_to_lps: NDArray[Any], size_dhw: tuple[int, int, int], middle_lps: tuple[float, float, float]
) -> NDArray[np.int16]:
    """Return int16 HU (D, H, W) that are a linear function of the place, 0 in the middle: interpolation is exact."""
    k, j, i = np.meshgrid(*(np.arange(n) for n in size_dhw), indexing="ij")
    places = np.stack([i, j, k, np.ones_like(i)], -1) @ np.asarray(ijk_to_lps)[:3].T
    return np.rint((places - middle_lps) @ (12, -9, 6)).astype(np.int16)


def smooth_volume(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """Return float32 intensities in about [0, 1]: waves with a little noise."""
    d, h, w = np.indices(shape, dtype=np.float32)
    noise = np.random.default_rng(seed).normal(0, 0.03, shape)
    return (0.5 + 0.3 * np.sin(d / 7) * np.cos(h / 9) + 0.1 * np.sin(w / 3) + noise).astype(np.float32)


def patch_mask(shape: tuple[int, int, int], ratio: float, patch: int = 8, seed: int = 0) -> np.ndarray:
    """Return bool, True in a share of the patches, drawn at random; those at the far faces may be cut."""
    grid = [-(-size // patch) for size in shape]
    hidden = np.random.default_rng(seed).random(grid) < ratio
    for axis in range(3):
        hidden = hidden.repeat(patch, axis)
    return hidden[: shape[0], : shape[1], : shape[2]]


def unit_of(hu: NDArray[Any]) -> NDArray[np.float32]:
    """Return HU as intensities of the wide window, -1000 to 1000."""
    return ((np.clip(hu, -1000, 1000) + 1000) / 2000).astype(np.float32)


def rotation(degrees_x: float, degrees_y: float, degrees_z: float) -> NDArray[np.float64]:
    """Return a 3x3 rotation matrix."""
    transform = sitk.Euler3DTransform()
    transform.SetRotation(*np.radians([degrees_x, degrees_y, degrees_z]))
    return np.array(transform.GetMatrix()).reshape(3, 3)


def signed_permutations() -> Iterator[NDArray[np.float64]]:
    """Yield all 48 axis-parallel direction matrices, left-handed ones included."""
    for order, signs in product(permutations(range(3)), product((1.0, -1.0), repeat=3)):
        yield np.eye(3)[:, list(order)] * np.array(signs)


def image_of(array: NDArray[Any], geometry: Geometry) -> Any:
    """Return a SimpleITK image with ``geometry``, set here without the library's own code."""
    image = sitk.GetImageFromArray(array)
    image.SetSpacing([float(s) for s in geometry.spacing_dhw[::-1]])
    image.SetOrigin(geometry.origin_lps)
    image.SetDirection([float(d) for d in geometry.direction])
    return image


def geometry(
    size_dhw: tuple[int, int, int],
    spacing_dhw: tuple[float, float, float] = (1.5, 1.5, 1.5),
    direction: Any = IDENTITY,
    origin_lps: tuple[float, float, float] = (-37.5, 12.25, -410.0),
) -> Geometry:
    """Return a geometry with a direction given as 9 numbers or a 3x3 matrix."""
    return Geometry(size_dhw, spacing_dhw, origin_lps, tuple(float(d) for d in np.ravel(direction)))


GRID = geometry((12, 40, 48), (3.0, 0.8, 0.7), rotation(10, 20, 30) * [1, -1, 1])
"""Oblique, left-handed, of the size of trunk()."""


def forget_orientation(path: Path) -> Path:
    """Set qform_code and sform_code of an unpacked NIfTI file to 0."""
    data = bytearray(path.read_bytes())
    data[252:256] = bytes(4)
    path.write_bytes(data)
    return path


def refusal(path: Path, **options: Any) -> str:
    """Check that a volume is refused in one line, with what to do, and return that line."""
    with pytest.raises(InputError) as caught:
        read_volume(path, **options)
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    return str(caught.value)


def assert_read(path: Path, hu: NDArray[Any], **options: Any) -> CTVolume:
    """Check that a volume is read, voxel by voxel and without a warning, and return it."""
    volume = read_volume(path, **options)
    np.testing.assert_array_equal(volume.hu, hu)
    assert volume.warnings == ()
    return volume


def write_dicom(
    folder: Path,
    stored: NDArray[np.int16],
    *,
    spacing_dhw: tuple[float, float, float] = (2.5, 0.8, 0.7),
    origin_lps: tuple[float, float, float] = (-20.0, -30.0, 100.0),
    orientation: tuple[float, ...] = (1, 0, 0, 0, 1, 0),
    step_lps: tuple[float, float, float] | None = None,
    uid: str = "1.2.826.0.1.3680043.8.498.1",
    prefix: str = "s",
    tags: dict[str, str] | None = None,
) -> list[Path]:
    """Write one DICOM file a slice and return the paths in slice order.

    Args:
        stored: (D, H, W) stored values; the slope and intercept in ``tags`` (default 1 and -1024) make HU of them.
        step_lps: from one slice to the next; default along the slice normal.
        tags: further or other DICOM tags, "gggg|eeee" to text.
    """
    folder.mkdir(parents=True, exist_ok=True)
    normal = np.cross(orientation[:3], orientation[3:])
    step = normal * spacing_dhw[0] if step_lps is None else np.array(step_lps)
    common = {
        "0008|0008": "ORIGINAL\\PRIMARY\\AXIAL",
        "0008|0016": "1.2.840.10008.5.1.4.1.1.2",
        "0008|0060": "CT",
        "0008|103e": "SYNTHETIC TRUNK",
        "0010|0020": "TEST",
        "0018|0050": str(spacing_dhw[0]),
        "0020|000d": "1.2.826.0.1.3680043.8.498",
        "0020|000e": uid,
        "0020|0011": "3",
        "0020|0037": "\\".join(f"{v:.6f}" for v in orientation),
        "0028|0100": "16",
        "0028|0101": "16",
        "0028|0102": "15",
        "0028|0103": "1",
        "0028|1052": "-1024",
        "0028|1053": "1",
    } | (tags or {})
    slope, intercept = float(common["0028|1053"]), float(common["0028|1052"])
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    paths = []
    for index, plane in enumerate(stored):
        # The writer takes HU and stores (HU - intercept) / slope.
        hu = plane * slope + intercept
        image = sitk.GetImageFromArray(hu.astype(np.int16) if float(slope).is_integer() else hu.astype(np.float64))
        image.SetSpacing((spacing_dhw[2], spacing_dhw[1]))
        position = np.array(origin_lps) + index * step
        own = {
            "0008|0018": f"{uid}.{index + 1}",
            "0020|0013": str(index + 1),
            "0020|0032": "\\".join(f"{v:.6f}" for v in position),
        }
        for key, value in (common | own).items():
            image.SetMetaData(key, value)
        paths.append(folder / f"{prefix}{index + 1:03d}.dcm")
        writer.SetFileName(str(paths[-1]))
        writer.Execute(image)
    return paths
