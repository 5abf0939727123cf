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
from MAESILLib.data.cache import TABLE, VOLUMES, Cache, read_cache
from MAESILLib.data.index import WHOLE, Run, Shard, append, locked, read_index
from MAESILLib.data.names import marked, plan_names
from MAESILLib.data.one_source import Outcome, Setup, Task, prepare_source, refused
from MAESILLib.data.records import CacheEntry, Record, by_hash, hash_of_patient
from MAESILLib.data.report import report_of
from MAESILLib.data.sources import Source
from MAESILLib.data.workers import run_in_workers
from MAESILLib.runtime.errors import InputError, MAESILError
from MAESILLib.runtime.events import Reporter
from MAESILLib.runtime.files import check_folder, csv_text, write_json, write_text
from MAESILLib.runtime.stopping import StopRequest

LIMIT_S = 1800.0
"""For reading and storing a CT."""


def prepare(
    sources: list[Source],
    folder: Path | str,
    spacing_mm: float,
    *,
    workers: int = 1,
    shard: Shard = WHOLE,
    verify: bool = False,
    given: Given = NOTHING,
    reporter: Reporter | None = None,
    stop: StopRequest | None = None,
) -> tuple[Cache, dict[str, Any]]:
    """Prepare the sources of a shard into ``folder``; resume where an earlier call was interrupted.

    Args:
        sources: the whole list, the same for every shard.
        workers: processes; 0 runs in this process, without a time limit.
        verify: read what is stored already to the end, and prepare again what is damaged.
        given: what a user states of inputs that do not state it themselves.

    Returns:
        the cache as it is now, with what other shards have prepared so far, and what this run did.

    Raises:
        InputError: the folder holds a cache of another spacing or something else, another process prepares it, or
            every source was refused.
        CancelledError: a stop was asked for; what is prepared stays.
        DiskFullError: the disk is full; what is prepared stays.
    """
    folder, reporter, stop = Path(folder), reporter or Reporter(), stop or StopRequest()
    if workers < 0:
        raise InputError(f"{workers} workers", "give a number from 0")
    check_folder(folder)
    with locked(folder, shard, reporter.warning):
        records, runs = read_index(folder)
        if runs and runs[0].spacing_mm != spacing_mm:
            raise InputError(
                f"{folder} was prepared at {runs[0].spacing_mm} mm, not {spacing_mm} mm", "choose another output folder"
            )
        names = plan_names([Path(source.key) for source in sources])
        listed = {source.key for source in sources}
        others = [record for record in records.values() if record.source not in listed]
        # what came from other sources was there first
        first = 1 + max((record.order for record in others), default=-1)
        tasks = plan_tasks(sources, names, records, first)[shard.number - 1 :: shard.of]
        stop.check()
        held = by_hash((record.entry for record in others if record.entry), {})
        setup = Setup(folder, spacing_mm, verify, held, given)
        inputs = hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]
        run = Run(1 + max((earlier.number for earlier in runs), default=0), shard, inputs, spacing_mm)
        cache, report = _work(setup, run, tasks, workers, records, reporter, stop)
    if not cache.entries and shard == WHOLE:
        source, reason = next(iter(cache.refused.items()))
        raise InputError(
            f"none of {len(sources)} inputs could be used; {source}: {reason}", f"see {folder / 'report.json'}"
        )
    return cache, report


def plan_tasks(sources: list[Source], names: list[str], records: dict[str, Record], first: int) -> list[Task]:
    """Return a task for each source, with what the index has of it.

    Args:
        names: of the volumes, as far as the index has no other source of that name.
        records: of the index, by source.
        first: place of the first source.
    """
    holders = {r.entry.name.casefold(): r.source for r in records.values() if r.entry is not None}
    tasks = []
    for order, (source, name) in enumerate(zip(sources, names, strict=True), start=first):
        record = records.get(source.key)
        if record is not None and record.entry is not None:
            entry = _updated(record.entry, source)
            # refused, it is read again
            stamp = "" if record.reason else record.stamp
            tasks.append(Task(source, entry.name, order, entry, stamp, record.warnings))
        else:
            is_taken = holders.get(name.casefold(), source.key) != source.key
            tasks.append(Task(source, marked(name, Path(source.key)) if is_taken else name, order))
    return tasks


def _updated(entry: CacheEntry, source: Source) -> CacheEntry:
    """Take over what a manifest says of a volume that is in the cache already."""
    stated = {key: getattr(source, key) for key in ("split", "dataset", "licence", "labels")}
    stated["patient"] = hash_of_patient(source.patient) if source.patient else ""
    stated["is_patient_stated"] = bool(source.patient)
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
    append(setup.folder, run.shard, run)
    reporter.progress("prepare", 0.0)
    files, done = {task.source.key: len(task.source.files) for task in tasks}, 0
    work = partial(prepare_source, setup) if workers else partial(prepare_source, setup, check_stop=stop.check)
    found = run_in_workers(work, tasks, workers, stop, limit_s=LIMIT_S, failed=refused)
    try:
        with closing(found):
            for outcome in found:
                record = outcome.record
                outcomes.append(outcome)
                if records.get(record.source) != record:
                    append(setup.folder, run.shard, record)
                for warning in record.warnings if outcome.source_bytes else ():
                    reporter.warning(f"{record.source}: {warning}")
                if record.reason:
                    reporter.warning(f"refused {record.source}: {record.reason}")
                done += files[record.source]
                if len(outcomes) < len(tasks):
                    note = f"{done / (time.monotonic() - begin):.0f} files/s {Path(record.source).name}"
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


def _finish(
    folder: Path, run: Run, tasks: list[Task], outcomes: list[Outcome], workers: int, seconds: float, reporter: Reporter
) -> tuple[Cache, dict[str, Any]]:
    """Remove half-written files; return the cache, and report what the run did."""
    # of processes that were killed; of these volumes alone, because others may run
    files = {f"{task.name}{suffix}" for task in tasks for suffix in (".npy", TABLE)}
    for left in (folder / VOLUMES).glob(".*.partial.*"):
        if left.name.split(".partial.", 1)[1] in files:
            left.unlink(missing_ok=True)
    cache = read_cache(folder, allow_empty=True)
    # other refusals were reported in their turn
    usable = {outcome.record.source for outcome in outcomes if not outcome.record.reason}
    for source, reason in cache.refused.items():
        if source in usable:
            reporter.warning(f"refused {source}: {reason}")
    held: dict[str, list[CacheEntry]] = {}
    for entry in cache.entries:
        if (first := held.setdefault(entry.voxels_sha256, [entry])[0]) != entry and entry.voxels_sha256:
            reporter.warning(f"{entry.source} has the same voxels as {first.source}, of another patient or place")
    report = report_of(run, cache, tasks, outcomes, workers=workers, seconds=seconds)
    path, table = (folder / run.shard.file_name("report", suffix) for suffix in (".json", ".csv"))
    write_json(path, report)
    write_text(table, csv_text(report["table"]))
    # a line of very many inputs is too long for whoever follows
    reporter.info("preparation", **{key: value for key, value in report.items() if key != "table"})
    reporter.artifact("report", path)
    reporter.artifact("table", table)
    return cache, report
