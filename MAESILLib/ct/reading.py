"""Read a CT volume from NIfTI, NRRD, MetaImage or DICOM, and refuse what is not one.

Voxels come as Hounsfield units. Values below -1024 (air; padding outside the scan circle is -2000 or -3024 in some
scanners' files) become -1024. High values (metal, extended CT scales) are kept up to 32767: they lie above every
window, and a result written beside the input should not lose them. Whole numbers become int16, others float32.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from MAESILLib.ct import dicom
from MAESILLib.ct.check import LARGEST_VALUE, MIN_VOXELS, check_range, check_values, refuse_not_finite
from MAESILLib.ct.dicom import Series, looks_like_dicom, read_dicom
from MAESILLib.ct.geometry import Geometry
from MAESILLib.ct.itk import read_itk
from MAESILLib.ct.nifti import read_nifti
from MAESILLib.ct.regrid import AIR_HU, rectangular_grid, resampled
from MAESILLib.ct.scan import NOTHING, Given, Scan
from MAESILLib.ct.volume import CTVolume, model_grid
from MAESILLib.runtime.errors import InputError

HU_LIMITS = (AIR_HU, 32767)
VOLUME_SUFFIXES = (".nii.gz", ".nii", ".hdr", ".img", ".nrrd", ".nhdr", ".mha", ".mhd")


@np.errstate(all="ignore")  # numbers of damaged headers are judged by what comes of them
def read_volume(
    path: Path | str,
    *,
    series: str | Series | None = None,
    check: bool = True,
    given: Given = NOTHING,
) -> CTVolume:
    """Read one CT volume.

    Args:
        path: a NIfTI, NRRD or MetaImage file, a DICOM folder (searched with its subfolders), or one DICOM file, which
            stands for its whole series in its folder.
        series: which DICOM series: SeriesInstanceUID, a unique beginning or end of it, SeriesNumber, or
            "largest"; or one that was found before. Without it, the only complete CT series is taken.
        check: refuse values that are not a CT in Hounsfield units and clip to ``HU_LIMITS``. Without it, values are
            taken as they are (label maps, error maps); damaged files and bad grids are refused all the same, but no
            small ones.
        given: what a user states of an input that does not state it itself.

    Raises:
        InputError: it cannot be read, or is no CT volume; says why.
    """
    path = Path(path)
    scan = _scan(path, series, given, header_alone=False)
    # what is painted may be a voxel
    fewest = MIN_VOXELS if check else 1
    geometry, why = rectangular_grid(scan.affine, scan.voxels.shape, scan.where, fewest)
    warnings = scan.warnings
    hu, unknown = _to_hu(scan, given.hu_offset, clip=check)
    if check:
        warnings += check_values(hu, scan.where)
        np.maximum(hu, AIR_HU, out=hu)
    if why:
        # what is no CT may be a label map, of which no value is to be made up
        hu = resampled(hu, scan.affine, geometry, *((AIR_HU, 1) if check else (0, 0)))
        unknown = None if unknown is None else resampled(unknown, scan.affine, geometry, 0) > 0
        warnings += (why,)
    if unknown is not None:
        from MAESILLib.ct.body import body_mask

        grid = model_grid(geometry)
        in_body = unknown & grid.to_source(body_mask(grid.to_model(hu)), nearest=True)
        refuse_not_finite(in_body, " in the body", scan.where)
    return CTVolume(hu, geometry, scan.name or volume_stem(path), warnings, str(path))


def read_geometry(path: Path | str, *, series: str | Series | None = None, given: Given = NOTHING) -> Geometry:
    """Read the geometry from the header; voxel data are not validated.

    Args:
        path, series, given: as for :func:`read_volume`.

    Raises:
        InputError: it cannot be read, or has no believable grid.
    """
    scan = _scan(Path(path), series, given, header_alone=True)
    return rectangular_grid(scan.affine, scan.voxels.shape, scan.where)[0]


def volume_stem(path: Path | str) -> str:
    """Return the file name without its volume suffix (``.nii.gz`` counts as one)."""
    name = Path(path).name
    suffix = _suffix_of(name)
    return name[: -len(suffix)] if suffix else name


def _suffix_of(name: str) -> str:
    return next((suffix for suffix in VOLUME_SUFFIXES if name.lower().endswith(suffix)), "")


def find_series(path: Path, series: str | Series | None = None, given: Given = NOTHING) -> Series | None:
    """Return the DICOM series that is meant, which is read without a look at other headers; None of another format.

    Args:
        path, series, given: as for :func:`read_volume`.

    Raises:
        InputError: there is no such file, or no such series.
    """
    if isinstance(series, Series):
        return series
    suffix = _suffix_of(path.name)
    with _explained(path):
        if not path.exists():
            raise InputError(f"no such file or folder: {path}", "check the path")
        if not (path.is_file() or path.is_dir()):
            raise InputError(f"{path} is a pipe, socket or device", "give a file or a folder")
        if path.is_dir() or (not suffix and looks_like_dicom(path)):
            return dicom.find_series(path, series, given.fill_gaps)
    if series is not None:
        raise InputError(f"{path} is not DICOM, so it has no series {series}", "leave the series out")
    if not suffix:
        known = ", ".join(VOLUME_SUFFIXES)
        raise InputError(f"{path} has an unknown suffix", f"give a DICOM folder or a file of these: {known}")
    return None


def _scan(path: Path, series: str | Series | None, given: Given, header_alone: bool) -> Scan:
    found = find_series(path, series, given)
    with _explained(path):
        if found is not None:
            return read_dicom(path, found, given.fill_gaps, header_alone)
        read = read_itk if _suffix_of(path.name) in (".nrrd", ".nhdr", ".mha", ".mhd") else read_nifti
        return read(path, given, header_alone)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        raise InputError(f"no permission to read {error.filename or path}", "change its permissions") from None
    except OSError as error:
        raise InputError(f"{error.filename or path} cannot be read: {error.strerror or error}", "check it") from None
    except ModuleNotFoundError as error:
        raise InputError(
            f"{path} cannot be read without the package {error.name}", f"pip install {error.name}"
        ) from None


def _to_hu(scan: Scan, offset: float, *, clip: bool) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """Return voxels in HU, and where they are not finite (air there) if any is.

    They are int16 where they are whole numbers that fit, or are clipped to fit; else float32.
    """
    slope, intercept = scan.slope, scan.intercept + offset
    is_hu, limits = (slope, intercept) == (1, 0), np.iinfo(np.int16)
    if is_hu and scan.voxels.dtype == np.int16 and scan.voxels.flags.writeable:
        return scan.voxels, None

    def planes() -> Any:
        return (stored if is_hu else stored * slope + intercept for stored in scan.voxels)

    exact = scan.voxels.dtype.kind in "iub" and slope == int(slope) and intercept == int(intercept)
    low, high, whole, finite = np.inf, -np.inf, True, True
    for plane in planes():
        usable = plane if exact else plane[np.isfinite(plane)]
        finite &= usable.size == plane.size
        whole &= exact or bool((usable == np.rint(usable)).all())
        if usable.size:
            low, high = min(low, float(usable.min())), max(high, float(usable.max()))
    if clip and high > LARGEST_VALUE:
        check_range(low, high, scan.where)
    fits = clip or (finite and low >= limits.min and high <= limits.max)
    hu = np.empty(scan.voxels.shape, np.int16 if whole and fits else np.float32)
    unknown = None if finite or not clip else np.zeros(hu.shape, np.bool_)
    for number, plane in enumerate(planes()):
        if unknown is not None:
            unknown[number] = ~np.isfinite(plane)
            plane = np.where(unknown[number], AIR_HU, plane)
        hu[number] = np.clip(plane, limits.min, limits.max) if clip else plane
    return hu, unknown
