"""Preparing a cache: check CTs, bring them onto the model's grid, store them, side by side and in shards.

One bad file never stops the rest: it is refused with its reason, and the index says so. Which volumes the cache
holds, and under which names, follows from the list of sources alone: not from how many workers or shards
prepared them, nor from which was done first.
"""

import hashlib
import time
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from MAESILLib.ct.scan import NOTHING, Given
from MAESILLib.data.cache import LABELS, TABLE, VOLUMES, Cache, read_cache
from MAESILLib.data.index import WHOLE, Run, Shard, append, read_index
from MAESILLib.data.names import plan_names, plan_numbers
from MAESILLib.data.one_source import Outcome, Setup, Task, prepare_source, refused
from MAESILLib.data.records import CacheEntry, Record, hash_of, hash_of_patient, without_paths
from MAESILLib.data.report import report_of
from MAESILLib.data.sources import Source
from MAESILLib.data.workers import READ_LIMIT_S, run_in_workers
from MAESILLib.runtime.errors import InputError, MAESILError
from MAESILLib.runtime.events import Reporter
from MAESILLib.runtime.files import check_folder, csv_text, write_json, write_text
from MAESILLib.runtime.lock import LOCK, in_use, lock_holder, only_writer
from MAESILLib.runtime.stopping import StopRequest


def prepare(
    sources: list[Source],
    folder: Path | str,
    spacing_mm: float,
    *,
    workers: int = 1,
    shard: Shard = WHOLE,
    verify: bool = False,
    given: Given = NOTHING,
    link: Path | None = None,
    reporter: Reporter | None = None,
    stop: StopRequest | None = None,
) -> tuple[Cache, dict[str, Any], dict[str, str]]:
    """Prepare the sources of a shard into ``folder``; resume where an earlier call was interrupted.

    Args:
        sources: the whole list, the same for every shard.
        workers: processes; 0 runs in this process, without a time limit.
        verify: read what is stored already to the end, and prepare again what is damaged.
        given: what a user states of inputs that do not state it themselves.
        link: CSV file for the names of all volumes and the paths of their sources, which the cache does not hold.

    Returns:
        the cache as it is now, with what other shards have prepared so far; what this run did; and the path of each
        source by the name of its volume.

    Raises:
        InputError: the folder holds a cache of another spacing or something else, another process prepares it, or
            every source was refused.
        CancelledError: a stop was asked for; what is prepared stays.
        DiskFullError: the disk is full; what is prepared stays.
    """
    folder, reporter, stop = Path(folder), reporter or Reporter(), stop or StopRequest()
    if workers < 0:
        raise InputError(f"{workers} workers", "give a number from 0")
    if link is not None and folder.resolve() in link.resolve().parents:
        raise InputError(f"--link {link} lies in the cache, which has no paths", "choose a file outside")
    check_folder(folder)
    inputs = hashlib.sha256("\n".join(plan_names([Path(s.key) for s in sources])).encode()).hexdigest()[:16]
    with only_writer(folder, shard.file_name(LOCK, ""), inputs):
        _check_other_shards(folder, inputs)
        records, runs = read_index(folder)
        if runs and runs[0].spacing_mm != spacing_mm:
            raise InputError(
                f"{folder} was prepared at {runs[0].spacing_mm} mm, not {spacing_mm} mm", "choose another output folder"
            )
        plan = plan_tasks(sources, records)
        paths = {task.name: task.source.key for task in plan}
        if link is not None:
            write_text(link, csv_text([{"name": name, "source": path} for name, path in paths.items()]))
        stop.check()
        run = Run(1 + max((earlier.number for earlier in runs), default=0), shard, inputs, spacing_mm)
        setup = Setup(folder, spacing_mm, verify, given)
        cache, report = _work(setup, run, plan[shard.number - 1 :: shard.of], workers, records, reporter, stop)
    if not cache.entries and shard == WHOLE:
        name, reason = next(iter(cache.refused.items()))
        raise InputError(
            f"none of {len(sources)} inputs could be used; {paths.get(name, name)}: {reason}",
            f"see {folder / 'report.json'}",
        )
    return cache, report, paths


def _check_other_shards(folder: Path, inputs: str) -> None:
    """Refuse to prepare another list beside a shard that is at work: both would give the same numbers."""
    for path in folder.glob(f"{LOCK}*"):
        holder = lock_holder(path)
        if holder and holder["work"] != inputs:
            raise in_use(folder, path, holder)


def plan_tasks(sources: list[Source], records: dict[str, Record]) -> list[Task]:
    """Return a task for each source, with what the index has of it.

    Args:
        records: of the index, by source.
    """
    known = [records.get(hash_of("source", source.key)) for source in sources]
    known_names = [record.name if record else "" for record in known]
    taken = {record.name.casefold() for record in records.values()}
    names = plan_numbers([source.given for source in sources], known_names, taken)
    listed = {record.source for record in known if record}
    # what came from other sources was there first
    first = 1 + max((r.order for r in records.values() if r.source not in listed), default=-1)
    tasks = []
    for order, (source, record, name) in enumerate(zip(sources, known, names, strict=True), start=first):
        if record is not None and record.entry is not None:
            entry = _updated(record.entry, source)
            # refused, it is read again
            stamp = "" if record.reason else record.stamp
            tasks.append(Task(source, name, order, entry, stamp, record.warnings))
        else:
            tasks.append(Task(source, name, order))
    return tasks


def _updated(entry: CacheEntry, source: Source) -> CacheEntry:
    """Take over what a manifest says of a volume that is in the cache already."""
    stated = {key: getattr(source, key) for key in ("split", "dataset", "licence")}
    stated["patient"] = hash_of_patient(source.patient) if source.patient else ""
    stated["patient_name"] = source.patient
    return replace(entry, **{key: text for key, text in stated.items() if text})


def _work(
    setup: Setup,
    run: Run,
    tasks: list[Task],
    workers: int,
    records: dict[str, Record],
    reporter: Reporter,
    stop: StopRequest,
) -> tuple[Cache, dict[str, Any]]:
    """Prepare the sources of a shard; whatever ends it, what is prepared is in the index and reported."""
    begin = time.monotonic()
    outcomes: list[Outcome] = []
    problem: MAESILError | None = None
    _remove_partial(setup.folder, tasks)
    append(setup.folder, run.shard, run)
    reporter.progress("prepare", 0.0)
    done = 0
    work = partial(prepare_source, setup) if workers else partial(prepare_source, setup, stop=stop)
    found = run_in_workers(work, tasks, workers, stop, limit_s=READ_LIMIT_S, failed=refused)
    try:
        with closing(found):
            for outcome in found:
                source, record = outcome.task.source, outcome.record
                for warning in record.warnings if outcome.is_new else ():
                    reporter.warning(f"{source.key}: {warning}")
                if record.reason:
                    reporter.warning(f"refused {source.key}: {record.reason}")
                record = _private(record, source)
                outcomes.append(replace(outcome, record=record))
                if records.get(record.source) != record:
                    append(setup.folder, run.shard, record)
                done += len(source.files)
                if len(outcomes) < len(tasks):
                    note = f"{done / (time.monotonic() - begin):.0f} files/s {Path(source.key).name}"
                    reporter.progress("prepare", len(outcomes) / len(tasks), note)
                    stop.check()
        run = replace(run, is_complete=True)
        append(setup.folder, run.shard, run)
        reporter.progress("prepare", 1.0)
    except MAESILError as error:
        problem = error
    cache, report = _finish(setup.folder, run, tasks, outcomes, workers, time.monotonic() - begin, reporter)
    if problem is not None:
        raise problem
    return cache, report


def _remove_partial(folder: Path, tasks: list[Task]) -> None:
    """Remove what processes that were killed left half-written of these volumes; others may be at work on others."""
    files = {f"{task.name}{suffix}" for task in tasks for suffix in (".npy", TABLE, LABELS)}
    for left in (folder / VOLUMES).glob(".*.partial.*"):
        if left.name.split(".partial.", 1)[1] in files:
            left.unlink(missing_ok=True)


def _private(record: Record, source: Source) -> Record:
    """Return a record as the index keeps it."""
    if not (record.reason or record.warnings):
        return record
    series = (source.series.label,) if source.series else ()
    paths = (source.key, str(source.path), source.labels, *map(str, source.files), *series)
    warnings = tuple(without_paths(warning, *paths) for warning in record.warnings)
    return replace(record, reason=without_paths(record.reason, *paths), warnings=warnings)


def _finish(
    folder: Path, run: Run, tasks: list[Task], outcomes: list[Outcome], workers: int, seconds: float, reporter: Reporter
) -> tuple[Cache, dict[str, Any]]:
    """Return the cache, and report what the run did."""
    # workers that were stopped
    _remove_partial(folder, tasks)
    cache = read_cache(folder, allow_empty=True)
    # other refusals were reported in their turn
    for outcome in outcomes:
        if not outcome.record.reason and (reason := cache.refused.get(outcome.task.name)):
            reporter.warning(f"refused {outcome.task.source.key}: {reason}")
    first_of: dict[str, CacheEntry] = {}
    for entry in cache.entries:
        if (first := first_of.setdefault(entry.voxels_sha256, entry)) != entry and entry.voxels_sha256:
            reporter.warning(f"{entry.name} has the same voxels as {first.name}, of another patient or place")
    report = report_of(run, cache, tasks, outcomes, workers=workers, seconds=seconds)
    path, table = (folder / run.shard.file_name("report", suffix) for suffix in (".json", ".csv"))
    write_json(path, report)
    write_text(table, csv_text(report["table"]))
    # a line of very many inputs is too long for whoever follows
    reporter.info("preparation", **{key: value for key, value in report.items() if key != "table"})
    reporter.artifact("report", path)
    reporter.artifact("table", table)
    return cache, report
