"""NIfTI files, read by nibabel: NIfTI-1 and 2, one file or a pair, packed or not whatever their name says."""

import gzip
import logging
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from MAESILLib.ct.check import check_affine
from MAESILLib.ct.geometry import LPS_OF_RAS
from MAESILLib.ct.regrid import largest_shift
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

MM = {1: 1000.0, 3: 0.001}
"""Of a metre and a micrometre, by their codes."""
DISAGREE_VOXELS = 0.1
"""How far two statements of the grid may put a voxel apart, in voxels, before a user is told."""
CHUNK = 1 << 20


def read_nifti(path: Path, given: Given, header_alone: bool) -> Scan:
    """Read a .nii, .nii.gz, .hdr or .img file.

    Args:
        header_alone: leave the voxels unread; they are zeros.

    Raises:
        InputError: it is damaged, no NIfTI, or not one scalar volume.
    """
    from nibabel.arrayproxy import ArrayProxy
    from nibabel.nifti1 import Nifti1Header, Nifti1PairHeader
    from nibabel.nifti2 import Nifti2Header, Nifti2PairHeader
    from nibabel.spatialimages import HeaderDataError

    # what nibabel mends in a header, and says so, is judged here
    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)
    header_path = image_path = path
    if is_pair := path.suffix.lower() in (".hdr", ".img"):
        endings = (".HDR", ".IMG") if path.suffix.isupper() else (".hdr", ".img")
        header_path, image_path = (path.with_suffix(ending) for ending in endings)
        require_file(header_path, path)
        require_file(image_path, path)
    kinds = (Nifti1PairHeader, Nifti2PairHeader) if is_pair else (Nifti1Header, Nifti2Header)
    try:
        with _opened(header_path) as header_file, _opened(image_path) as voxels_file:
            start = header_file.read(540)
            kind = next((kind for kind in kinds if kind.may_contain_header(start)), None)
            if kind is None:
                raise InputError(f"{path} cannot be read as NIfTI: it has no NIfTI header", CHECK_FORMAT)
            header_file.seek(0)
            # nibabel replaces a spacing of 0
            pixdim = kind.from_fileobj(header_file, check=False)["pixdim"][1:4].astype(np.float64)
            header_file.seek(0)
            header = kind.from_fileobj(header_file)
            if not is_pair and not header["vox_offset"]:
                # unset; nibabel would take the header for voxels
                header["vox_offset"] = header.single_vox_offset
            voxel = header.get_data_dtype()
            size = file_grid(header.get_data_shape(), len(voxel.names or ("",)), voxel.kind == "c", str(path))
            stored = ArrayProxy(voxels_file, header, mmap=False)
            if header_alone:
                voxels: NDArray[Any] = np.broadcast_to(np.int16(0), size[::-1])
            else:
                voxels = stored.get_unscaled().reshape(size, order="F").T
                more = _rest_of(voxels_file)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise InputError(f"{path} is damaged or cut short: its compressed data cannot be unpacked", AGAIN) from None
    except (HeaderDataError, ValueError, OverflowError):
        raise InputError(f"{path} cannot be read as NIfTI: its header is damaged", CHECK_FORMAT) from None
    except OSError as error:
        if error.errno is not None:
            raise
        raise InputError(f"{path} is cut short: it has fewer voxels than its header states", AGAIN) from None
    affine, warnings = _affine(header, np.abs(pixdim), size, path, given)
    warnings += () if header_alone else check_surplus(more, image_path)
    return Scan(voxels, affine, str(path), float(stored.slope), float(stored.inter), warnings)


def _opened(path: Path) -> Any:
    with open(path, "rb") as file:
        is_packed = file.read(2) == GZIP_MAGIC
    return _Unpacked(path, "rb") if is_packed else open(path, "rb")


class _Unpacked(gzip.GzipFile):
    """A packed file that fills a buffer piece by piece: the inherited way holds all of it twice."""

    def readinto(self, buffer: Any) -> int:
        view, done = memoryview(buffer).cast("B"), 0
        while part := self.read(min(len(view) - done, CHUNK)):
            view[done : done + len(part)] = part
            done += len(part)
        return done


def _rest_of(file: Any) -> int:
    """Return how many bytes follow; a packed file is read to its end, where its check sum is, or to ``MOST_MORE``."""
    rest = 0
    try:
        while rest <= MOST_MORE and (more := file.read(CHUNK)):
            rest += len(more)
    except gzip.BadGzipFile as error:
        # what follows a whole one does no harm
        if "Not a gzipped file" not in str(error):
            raise
    return rest


def _affine(
    header: Any, pixdim: NDArray[np.float64], size: tuple[int, ...], path: Path, given: Given
) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """Return the grid in LPS mm: the sform unless its code is 0, else the qform, else the spacing alone."""
    unit = MM.get(int(header["xyzt_units"]) & 7, 1.0)
    sform, qform = header.get_sform(coded=True)[0], _qform(header)
    usable = bool(np.all(np.isfinite(pixdim)) and np.all(pixdim > 0))
    warnings: tuple[str, ...] = ()
    if sform is not None and qform is not None and not _spans(sform):
        sform, warnings = None, ("the sform spans no volume: the qform is taken",)
    affine = sform if sform is not None else qform
    if affine is None:
        spacing = pixdim if usable else np.array(given.spacing_of(str(path)))
        unit = unit if usable else 1.0
        affine = np.diag([-spacing[0], spacing[1], spacing[2], 1.0])
        warnings += ("the NIfTI header gives no orientation (qform and sform codes are 0): left and right are a guess",)
    check_affine(affine, str(path))
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if sform is not None and qform is not None and (apart := largest_shift(qform, sform, size)) > DISAGREE_VOXELS:
        warnings += (f"qform and sform differ by up to {apart:.2g} voxels: the sform is taken",)
    elif usable and (apart := largest_shift(affine * [*(pixdim / spacing), 1.0], affine, size)) > DISAGREE_VOXELS:
        warnings += (f"pixdim and the affine's spacing differ by up to {apart:.2g} voxels: the affine is taken",)
    if np.allclose(spacing, pixdim, rtol=1e-6, atol=0):
        # forms are in single precision: 1.5 mm are 1.4999999
        affine = affine @ np.diag([*(pixdim / spacing), 1.0])
    lps = LPS_OF_RAS @ affine
    lps[:3] *= unit
    return lps, warnings


def _qform(header: Any) -> NDArray[np.float64] | None:
    from nibabel.spatialimages import HeaderDataError

    quaternion = np.array([header[f"quatern_{axis}"] for axis in "bcd"], np.float64)
    if (length := np.linalg.norm(quaternion)) > 1:
        # rounded, or not quite normalised; nibabel refuses it
        for axis, value in zip("bcd", quaternion / length, strict=True):
            header[f"quatern_{axis}"] = value
    try:
        qform: NDArray[np.float64] | None = header.get_qform(coded=True)[0]
    except (HeaderDataError, ValueError):  # a zoom below 0
        return None
    return qform if qform is not None and _spans(qform) else None


def _spans(form: NDArray[np.float64]) -> bool:
    return bool(np.isfinite(form).all() and abs(np.linalg.det(form[:3, :3])) > 1e-12)
