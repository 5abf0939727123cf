"""Read a CT volume from NIfTI, NRRD, MetaImage or DICOM, and refuse what is not one.

Voxels come as Hounsfield units. Values below -1024 (air; padding outside the scan circle is -2000 or -3024 in some
scanners' files) become -1024. High values (metal, extended CT scales) are kept up to 32767: they lie above every
window, and a result written beside the input should not lose them. Whole numbers become int16, others float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from MAESILLib.ct.check import ImageHeader, check_ct, check_grid, check_header, check_values
from MAESILLib.ct.dicom import DICOM_SUFFIXES, find_series, has_dicom_magic
from MAESILLib.ct.dicom_stack import read_stack
from MAESILLib.ct.geometry import Geometry, geometry_of
from MAESILLib.ct.intact import check_meta_image, check_nrrd, nifti_length, nifti_spacing, require_length
from MAESILLib.ct.itk import one_line_reason, quiet_itk, silent_stderr
from MAESILLib.ct.volume import CTVolume
from MAESILLib.runtime.errors import InputError
from MAESILLib.runtime.files import check_name

__all__ = ["HU_LIMITS", "VOLUME_SUFFIXES", "check_ct", "read_geometry", "read_volume", "volume_stem"]

HU_LIMITS = (-1024, 32767)
FORMATS = {
    ".nii.gz": ("NIfTI", "NiftiImageIO"),
    ".nii": ("NIfTI", "NiftiImageIO"),
    ".nrrd": ("NRRD", "NrrdImageIO"),
    ".nhdr": ("NRRD", "NrrdImageIO"),
    ".mha": ("MetaImage", "MetaImageIO"),
    ".mhd": ("MetaImage", "MetaImageIO"),
}
VOLUME_SUFFIXES = tuple(FORMATS)
VOXEL_BYTES = {
    **dict.fromkeys((sitk.sitkUInt8, sitk.sitkInt8), 1),
    **dict.fromkeys((sitk.sitkUInt16, sitk.sitkInt16), 2),
    **dict.fromkeys((sitk.sitkUInt32, sitk.sitkInt32, sitk.sitkFloat32), 4),
    **dict.fromkeys((sitk.sitkUInt64, sitk.sitkInt64, sitk.sitkFloat64), 8),
}


def read_volume(path: Path | str, *, series: str | None = None, check: bool = True) -> CTVolume:
    """Read one CT volume.

    Args:
        path: a NIfTI, NRRD or MetaImage file, a DICOM folder (searched with its subfolders), or one DICOM file, which
            stands for its whole series in its folder.
        series: which DICOM series: SeriesInstanceUID, a unique beginning or end of it, or SeriesNumber. Without it,
            the CT series with most slices is taken, with a warning when there are others.
        check: refuse values that are not a CT in Hounsfield units and clip to ``HU_LIMITS``. Without it, values are
            taken as they are (label maps, error maps); damaged files and bad grids are refused all the same.

    Raises:
        InputError: it cannot be read, or is no CT volume; says why.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"no such file or folder: {path}", "check the path")
    try:
        return _read(path, series, check)
    except PermissionError as error:
        raise InputError(f"no permission to read {error.filename or path}", "change its permissions") from None


def read_geometry(path: Path | str) -> Geometry:
    """Read the geometry from the header; voxel data are not validated.

    Args:
        path: as for :func:`read_volume`.

    Raises:
        InputError: it cannot be read, or has no believable grid.
    """
    path = Path(path)
    if not path.is_file() or _is_dicom_file(path):
        # slices say where they lie one by one
        return read_volume(path, check=False).geometry
    try:
        with quiet_itk():
            return geometry_of(_open_file(path, header_alone=True)[0])
    except PermissionError as error:
        raise InputError(f"no permission to read {error.filename or path}", "change its permissions") from None


def _read(path: Path, series: str | None, check: bool) -> CTVolume:
    if path.is_dir() or _is_dicom_file(path):
        return _read_dicom(path, series, check)
    if series is not None:
        raise InputError(f"{path} is not DICOM, so it has no series {series}", "leave the series out")
    return _read_file(path, check)


def volume_stem(path: Path | str) -> str:
    """Return the file name without its volume suffix (``.nii.gz`` counts as one)."""
    name = Path(path).name
    suffix = _suffix_of(name)
    return name[: -len(suffix)] if suffix else name


def _suffix_of(name: str) -> str:
    return next((suffix for suffix in VOLUME_SUFFIXES if name.lower().endswith(suffix)), "")


def _is_dicom_file(path: Path) -> bool:
    return path.suffix.lower() in DICOM_SUFFIXES or (not _suffix_of(path.name) and has_dicom_magic(path))


def _read_dicom(path: Path, series: str | None, check: bool) -> CTVolume:
    with quiet_itk():
        chosen, warnings = find_series(path, series)
        stack = read_stack(chosen)
    where = f"{chosen.label} in {path}"
    geometry = stack.geometry
    check_grid(geometry.size_dhw[::-1], geometry.spacing_dhw[::-1], geometry.direction, where)
    warnings += stack.warnings
    if check:
        warnings += check_values(stack.voxels, where)
    hu = _to_hu(stack.voxels, clip=check)
    return CTVolume(hu, stack.geometry, chosen.name, warnings, str(path))


def _open_file(path: Path, header_alone: bool = False) -> tuple[Any, str, tuple[str, ...]]:
    """Return a reader that has read a file's header, the file's format, and warnings.

    Args:
        header_alone: do not look whether the voxels are all there, which unpacks a .nii.gz to its end.
    """
    suffix = _suffix_of(path.name)
    if not suffix:
        raise InputError(
            f"{path} has an unknown suffix", f"give a DICOM folder or a file of these: {', '.join(VOLUME_SUFFIXES)}"
        )
    kind, image_io = FORMATS[suffix]
    reader = sitk.ImageFileReader()
    reader.SetImageIO(image_io)
    check_name(path)
    reader.SetFileName(str(path))
    length = nifti_length(path) if kind == "NIfTI" and not header_alone else 0
    with silent_stderr():
        _run(reader.ReadImageInformation, path, kind)
    check_header(ImageHeader.of_reader(reader), str(path))
    if header_alone:
        return reader, kind, ()
    if kind == "NIfTI":
        return reader, kind, _check_nifti(reader, path, length)
    check_data = check_nrrd if kind == "NRRD" else check_meta_image
    check_data(path, math.prod(reader.GetSize()) * VOXEL_BYTES[reader.GetPixelIDValue()])
    return reader, kind, ()


def _read_file(path: Path, check: bool) -> CTVolume:
    with quiet_itk():
        reader, kind, warnings = _open_file(path)
        image = _run(reader.Execute, path, kind)
    voxels = sitk.GetArrayViewFromImage(image)
    if check:
        warnings += check_values(voxels, str(path))
    return CTVolume(_to_hu(voxels, clip=check), geometry_of(image), volume_stem(path), warnings, str(path))


def _run(step: Callable[[], Any], path: Path, kind: str) -> Any:
    """Run a reader's step; turn its exception into one line."""
    try:
        return step()
    except RuntimeError as error:
        reason = one_line_reason(error)
    if "orthonormal" in reason:
        raise InputError(
            f"{path} has axes that are not perpendicular (a sheared grid, as gantry tilt makes)",
            "resample it to a rectangular grid first",
        )
    if "spacing" in reason.lower():
        raise InputError(f"{path} has a spacing of zero", "correct the spacing in the file's header, in mm")
    raise InputError(f"{path} cannot be read as {kind}: {reason}", "check that the file is whole and has this format")


def _check_nifti(reader: Any, path: Path, length: int) -> tuple[str, ...]:
    """Refuse a file cut short and spacings that make no grid; warn when there is no orientation."""
    # The type on disk counts, not the one that a slope and intercept make of it.
    on_disk = math.prod(reader.GetSize()) * int(reader.GetMetaData("bitpix")) // 8
    require_length(length, int(float(reader.GetMetaData("vox_offset"))) + on_disk, path)
    for axis, spacing in zip("ijk", nifti_spacing(path), strict=True):
        if spacing == 0 or not math.isfinite(spacing):
            raise InputError(
                f"{path} has a spacing of {spacing:g} mm along {axis}",
                "correct the spacing in the file's header, in mm",
            )
    if int(reader.GetMetaData("qform_code")) == 0 and int(reader.GetMetaData("sform_code")) == 0:
        return ("the NIfTI header gives no orientation (qform and sform codes are 0): left and right are a guess",)
    return ()


def _to_hu(voxels: NDArray[Any], *, clip: bool) -> NDArray[Any]:
    """Return a new int16 array where the values are whole numbers that fit, else float32."""
    low, high = HU_LIMITS
    if not clip:
        limits = np.iinfo(np.int16)
        fits = voxels.min() >= limits.min and voxels.max() <= limits.max
        return voxels.astype(np.int16 if fits and _is_whole(voxels) else np.float32)
    dtype = np.int16 if _is_whole(voxels) else np.float32
    hu = np.empty(voxels.shape, dtype)
    for source, target in zip(voxels, hu, strict=True):
        target[...] = np.clip(source, low, high)
    return hu


def _is_whole(voxels: NDArray[Any]) -> bool:
    return np.issubdtype(voxels.dtype, np.integer) or all(bool((plane == np.rint(plane)).all()) for plane in voxels)
