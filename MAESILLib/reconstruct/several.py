"""Several inputs in one call: which they are, where the results of each lie, and which are done already."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from MAESILLib.ct.reading import volume_stem
from MAESILLib.data.names import marked, plan_names
from MAESILLib.data.one_source import stamp_of
from MAESILLib.data.sources import Source, find_sources
from MAESILLib.metrics.catalogue import CATALOGUE
from MAESILLib.reconstruct.results import KINDS, METRICS
from MAESILLib.runtime.errors import CancelledError, DiskFullError, InputError, MAESILError
from MAESILLib.runtime.events import Reporter
from MAESILLib.runtime.files import check_folder, read_json
from MAESILLib.runtime.stopping import StopRequest

MANIFESTS = (".csv", ".json")


def find_inputs(given: list[Path]) -> tuple[list[Source], bool]:
    """Return the CTs in files and folders, and whether they are one input: a file, or a folder of one DICOM study.

    In folders, results of former calls and DICOM without a CT are passed over. What is missing, a folder without any CT
    or with several series of a study, stays: reading it says so.

    Raises:
        InputError: a manifest cannot be used.
    """
    is_alone = len(given) == 1
    if is_alone and not given[0].is_dir() and given[0].suffix.lower() not in MANIFESTS:
        return [Source(given[0])], True
    sources: dict[str, Source] = {}
    for path in given:
        try:
            found = [one for one in find_sources([path]) if path.is_file() or not _is_passed_over(one)]
        except InputError:
            if path.is_file():
                raise
            found = []
        sources |= {one.key: one for one in found or [Source(path)]}
    studies = {_study(one) for one in sources.values()}
    if is_alone and given[0].is_dir() and None not in studies and len(studies - {""}) <= 1:
        (only, *others) = sources.values()
        return [Source(given[0], series=None if others else only.series)], True
    return list(sources.values()), False


def _is_passed_over(source: Source) -> bool:
    is_result = volume_stem(source.path) in KINDS and (source.path.parent / METRICS).exists()
    return is_result or (source.series is None and bool(source.beside))


def _study(source: Source) -> str | None:
    """Return the StudyInstanceUID of a DICOM series, "" of a folder of what is none, None of a volume file."""
    if source.series is None:
        return "" if source.path.is_dir() else None
    return source.series.slices[0].study_uid


def reconstruct_each(
    sources: list[Source],
    output: Path,
    options: Mapping[str, Any],
    reconstruct: Callable[[Source, Path, dict[str, Any]], object],
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
    rows: list[dict[str, Any]] = []
    failures: list[MAESILError] = []
    names = plan_names([Path(source.key) for source in sources])
    for number, (source, name) in enumerate(zip(sources, names, strict=True), start=1):
        stop.check()
        former = _metrics(output / name)
        request = former.get("request")
        if former and not (isinstance(request, dict) and request.get("source") == source.key):
            name = marked(name, Path(source.key))
            former = _metrics(output / name)
        folder = output / name
        reporter.info("input", number=number, inputs=len(sources), path=source.key, folder=str(folder))
        if reporter.mode == "bar":
            reporter.text(f"{number} of {len(sources)}: {source.key}")
        try:
            if source.problem:
                raise InputError(source.problem)
            # a folder without any CT is read, to say so
            stamp = "" if source.series is None and source.path.is_dir() else stamp_of(source)[1]
            request = {"source": source.key, "stamp": stamp, **options}
            if former.get("request") != request:
                reconstruct(source, folder, request)
            rows.append(_row(folder, source))
        except (CancelledError, DiskFullError):
            raise
        except Exception as error:
            # what nobody thought of must not stop the others
            text = f"{type(error).__name__}: {' '.join(str(error).split())}"
            failures.append(error if isinstance(error, MAESILError) else InputError(text))
            reporter.failure(source.key, str(failures[-1]))
    return rows, failures


def _metrics(folder: Path) -> dict[str, Any]:
    """Return what metrics.json of a result holds; {} where there is none."""
    try:
        found = read_json(folder / METRICS)
    except (InputError, OSError):
        return {}
    return found if isinstance(found, dict) else {}


def _row(folder: Path, source: Source) -> dict[str, Any]:
    metrics = _metrics(folder)
    # the peak of memory is that of the process, which later inputs share with earlier ones
    keys = [key for key in CATALOGUE if key in metrics and key != "peak_memory_mib"]
    return {"result": folder.name, "input": source.key, **{key: metrics[key] for key in keys}}
