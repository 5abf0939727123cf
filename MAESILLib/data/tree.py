"""The CT series among DICOM files, in whatever folders they lie; each header is read once, in worker processes."""

import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from MAESILLib.ct.dicom import OWN_VOLUME, Series, acquisitions
from MAESILLib.ct.dicom_slice import Slice, slices_of
from MAESILLib.ct.dicom_stack import same_grid
from MAESILLib.data.workers import run_in_workers
from MAESILLib.runtime.errors import InputError
from MAESILLib.runtime.events import Reporter
from MAESILLib.runtime.stopping import StopRequest

BATCH = 64
"""Files that a worker looks at before it reports."""
COMMON = [field.name for field in fields(Slice) if field.name not in ("path", "position")]
"""What the slices of a series have in common."""
LIMIT_S = 60.0
"""For a batch, and for each file of one that failed."""


@dataclass(frozen=True)
class Looked:
    """What a header says: slices of a CT, another kind of DICOM object, or why it is unusable; else it is no DICOM."""

    slices: tuple[Slice, ...] = ()
    kind: str = ""
    problem: str = ""
    hint: str = ""


def look(files: Sequence[Path], workers: int, reporter: Reporter, stop: StopRequest) -> dict[Path, Looked]:
    """Read the header of each file; what ends its process, or keeps it too long, is named.

    Args:
        workers: processes; 0 runs in this process, without a time limit.

    Raises:
        CancelledError: a stop was asked for.
    """
    looked: dict[Path, Looked] = {}
    shared: dict[Any, Any] = {}
    begin = time.monotonic()
    waiting = [tuple(files[n : n + BATCH]) for n in range(0, len(files), BATCH)]
    while waiting:
        alone: list[tuple[Path, ...]] = []
        for batch, found in run_in_workers(
            _look_at, waiting, min(workers, len(waiting)), stop, limit_s=LIMIT_S, failed=_failed
        ):
            if len(found) < len(batch):
                alone += [(file,) for file in batch]
            for file, one in zip(batch, found, strict=False):
                looked[file] = replace(one, slices=tuple(_sharing(s, shared) for s in one.slices))
            rate = len(looked) / max(time.monotonic() - begin, 1e-3)
            reporter.progress("scan", len(looked) / len(files), f"{len(looked)} headers, {rate:.0f} files/s")
        waiting = alone
    return looked


def _sharing(one: Slice, shared: dict[Any, Any]) -> Slice:
    """Return a slice that shares what is equal with others, because a tree has very many."""
    common = {key: getattr(one, key) for key in COMMON}
    return replace(one, **{key: shared.setdefault((key, value), value) for key, value in common.items()})


def _look_at(files: tuple[Path, ...]) -> tuple[tuple[Path, ...], list[Looked]]:
    return files, [_looked(file) for file in files]


def _failed(files: tuple[Path, ...], reason: str) -> tuple[tuple[Path, ...], list[Looked]]:
    """Return a file with the reason, or nothing of several: one of them did it."""
    return files, [Looked(problem=f"{files[0]}: {reason}")] if len(files) == 1 else []


def why_no_file(path: Path) -> str:
    """Return why a path cannot be opened as a file, without opening it; or nothing."""
    if path.is_file():
        return ""
    if path.is_dir():
        try:
            os.listdir(path)
        except OSError as error:
            return "no permission to read it" if isinstance(error, PermissionError) else str(error)
    return f"{path} is no file: a folder, pipe, socket or device" if path.exists() else f"no such file: {path}"


def _looked(file: Path) -> Looked:
    try:
        if problem := why_no_file(file):
            return Looked(problem=problem)
        found = slices_of(file)
    except PermissionError:
        return Looked(problem=f"no permission to read {file}")
    except InputError as error:
        return Looked(problem=error.message, hint=error.hint)
    except OSError as error:
        return Looked(problem=str(error))
    except Exception as error:
        # one file that nobody thought of must not stop a hundred thousand others
        return Looked(problem=f"{file}: {type(error).__name__}: {' '.join(str(error).split())}")
    return Looked(kind=found) if isinstance(found, str) else Looked(tuple(found))


def find_all_series(looked: Mapping[Path, Looked]) -> list[Series]:
    """Return the CT series, complete or not; acquisitions that are volumes of their own, and copies, are apart."""
    by_series: dict[tuple[str, ...], dict[Path, list[Slice]]] = {}
    for file, found in looked.items():
        if found.slices:
            folders = by_series.setdefault(found.slices[0].series, {})
            folders.setdefault(file.parent, []).extend(found.slices)
    return [one for folders in by_series.values() for part in _joined(folders) for one in acquisitions(part)]


def _joined(folders: dict[Path, list[Slice]]) -> Iterable[list[Slice]]:
    """Join the folders that a series is spread over, from the deepest up; copies of it stay apart."""
    parts = {folder: [slices] for folder, slices in folders.items()}
    while len(parts) > 1:
        deepest = max(len(folder.parts) for folder in parts)
        above: dict[Path, list[list[Slice]]] = {}
        for folder, found in parts.items():
            above.setdefault(folder.parent if len(folder.parts) == deepest else folder, []).extend(found)
        parts = {folder: _join(found) for folder, found in above.items()}
    return next(iter(parts.values()))


def _join(parts: list[list[Slice]]) -> list[list[Slice]]:
    """Join parts of a series, unless they differ in their grid, or most slices of a large one are in others too."""
    if len(parts) == 1:
        return parts
    first = parts[0][0]
    is_same = all(same_grid(s, first) for part in parts for s in part)
    places = [{tuple(round(v, 2) for v in s.position) for s in part} for part in parts]
    count = Counter(place for part in places for place in part)
    is_copied = any(
        len(part) >= OWN_VOLUME and 2 * sum(count[place] > 1 for place in part) > len(part) for part in places
    )
    return parts if is_copied or not is_same else [[s for part in parts for s in part]]
