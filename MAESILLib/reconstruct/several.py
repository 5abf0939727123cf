"""Several inputs in one call: which they are, where the results of each lie, and which are done already."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from MAESILLib.ct.dicom_slice import slices_of
from MAESILLib.ct.reading import volume_stem
from MAESILLib.data.names import marked, plan_names
from MAESILLib.data.one_source import stamp_of
from MAESILLib.data.sources import find_sources, is_volume
from MAESILLib.metrics.catalogue import CATALOGUE
from MAESILLib.reconstruct.results import KINDS, METRICS
from MAESILLib.runtime.errors import CancelledError, DiskFullError, InputError, MAESILError
from MAESILLib.runtime.events import Reporter
from MAESILLib.runtime.files import check_folder, read_json
from MAESILLib.runtime.stopping import StopRequest

MANIFESTS = (".csv", ".json")
WHOLE_FILES = (".nii", ".nii.gz", ".nrrd", ".mha")
"""Suffixes of volumes of which no part lies in another file."""


def find_inputs(given: list[Path]) -> list[Path] | None:
    """Return the CTs in files and folders, or None where they are one input: a file, or a folder of one DICOM study.

    In folders, results of former calls and DICOM without a CT are passed over. What is missing, or a folder without
    any CT, stays: reading it says so.

    Raises:
        InputError: a manifest cannot be used.
    """
    is_alone = len(given) == 1 and given[0].suffix.lower() not in MANIFESTS
    files = [path for path in given if path.is_file()]
    if files and is_alone:
        return None
    found = [source.path for source in find_sources(files)] if files else []
    found += [path for folder in given if folder not in files for path in _inside(folder)]
    if is_alone and not any(map(_is_volume_file, found)) and len({_study(path) for path in found} - {""}) <= 1:
        return None
    return list({path.resolve(): path for path in found}.values())


def _inside(folder: Path) -> list[Path]:
    try:
        found = [source.path for source in find_sources([folder])]
    except InputError:
        return [folder]
    return [path for path in found if _is_input(path)] or [folder]


def _is_input(path: Path) -> bool:
    if _is_volume_file(path):
        return volume_stem(path) not in KINDS or not (path.parent / METRICS).exists()
    return _study(path) is not None


def _is_volume_file(path: Path) -> bool:
    return path.is_file() and is_volume(path)


def _study(path: Path) -> str | None:
    """Return the StudyInstanceUID of a DICOM file or folder: of its first CT slice; "" if unknown, None without one."""
    from pydicom import dcmread

    try:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
    except OSError:
        return ""
    study = None
    for file in files:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if file.name.startswith(".") or not file.is_file() or isinstance(slices_of(file), str):
                    continue
                data = dcmread(file, stop_before_pixels=True, force=True, specific_tags=["StudyInstanceUID"])
                return str(data.get("StudyInstanceUID") or "")
        except (InputError, OSError):
            # a CT, but damaged
            study = ""
    return study


def reconstruct_each(
    paths: list[Path],
    output: Path,
    options: Mapping[str, Any],
    reconstruct: Callable[[Path, Path, dict[str, Any]], object],
    reporter: Reporter,
    stop: StopRequest,
) -> tuple[list[dict[str, Any]], list[MAESILError]]:
    """Reconstruct CTs into a folder each; results that are there already are not computed again.

    Args:
        options: plain JSON values. Where these, the path or the state of an input differ, it is computed again.
        reconstruct: called with an input, its folder, and what it has to store as ``request`` in metrics.json.

    Returns:
        a row of metrics for each input that is done, and what failed.

    Raises:
        InputError: the output folder cannot be used.
        CancelledError: a stop was asked for; what is done stays.
        DiskFullError: the disk is full; what is done stays.
    """
    check_folder(output)
    results: list[Path] = []
    failures: list[MAESILError] = []
    for number, (path, name) in enumerate(zip(paths, plan_names(paths), strict=True), start=1):
        stop.check()
        former = _metrics(output / name)
        if former and former["input"]["path"] != str(path):
            name = marked(name, path)
            former = _metrics(output / name)
        folder = output / name
        reporter.info("input", number=number, inputs=len(paths), path=str(path), folder=str(folder))
        if reporter.mode == "bar":
            reporter.text(f"{number} of {len(paths)}: {path}")
        try:
            request = {"path": str(path), "stamp": _stamp(path), **options}
            if former.get("request") != request:
                # of a call that was killed
                for left in folder.glob(".partial-*"):
                    shutil.rmtree(left)
                reconstruct(path, folder, request)
            results.append(folder)
        except (CancelledError, DiskFullError):
            raise
        except Exception as error:
            # what nobody thought of must not stop the others
            text = f"{type(error).__name__}: {' '.join(str(error).split())}"
            failures.append(error if isinstance(error, MAESILError) else InputError(text))
            reporter.failure(str(path), str(failures[-1]))
    return [_row(folder) for folder in results], failures


def _metrics(folder: Path) -> dict[str, Any]:
    """Return what metrics.json of a result holds; {} where there is none."""
    try:
        found = read_json(folder / METRICS)
        return found if isinstance(found["input"]["path"], str) else {}
    except (InputError, OSError, TypeError, KeyError):
        return {}


def _stamp(path: Path) -> str:
    """Return a text that changes when the files of an input do, or any in its folder where some may lie beside it."""
    whole = path.is_dir() or path.name.lower().endswith(WHOLE_FILES)
    return stamp_of(path if whole else path.parent)[1] if path.exists() else ""


def _row(folder: Path) -> dict[str, Any]:
    metrics = _metrics(folder)
    # the peak of memory is that of the process, which later inputs share with earlier ones
    keys = [key for key in CATALOGUE if key in metrics and key != "peak_memory_mib"]
    return {"result": folder.name, "input": metrics["input"]["path"], **{key: metrics[key] for key in keys}}
