"""Preparing a cache: check CTs, bring them onto the model's grid, store them, side by side and in shards.

One bad file never stops the rest: it is refused with its reason, and the index says so. Which volumes the cache
holds, and under which names, follows from the list of sources alone: not from how many workers or shards
prepared them, nor from which was done first.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from MAESILLib.data.cache import VOLUMES, Cache, read_cache
from MAESILLib.data.index import WHOLE, Run, Shard, append, begin_run, read_index
from MAESILLib.data.names import absolute, marked, plan_names
from MAESILLib.data.one_source import Outcome, Setup, Task, prepare_source
from MAESILLib.data.records import CacheEntry, Record, hash_of_patient
from MAESILLib.data.report import report_of
from MAESILLib.data.sources import Source
from MAESILLib.data.workers import prepare_in_workers
from MAESILLib.runtime.errors import InputError, MAESILError
from MAESILLib.runtime.events import Reporter
from MAESILLib.runtime.files import check_folder, write_json
from MAESILLib.runtime.stopping import StopRequest

PARTIAL = re.compile(r"\.[0-9a-f]{8}\.partial\.(.+?)(?:\.foreground)?\.npy")


def prepare(
    sources: list[Source],
    folder: Path | str,
    spacing_mm: float,
    *,
    workers: int = 1,
    shard: Shard = WHOLE,
    verify: bool = False,
    reporter: Reporter | None = None,
    stop: StopRequest | None = None,
) -> tuple[Cache, dict[str, Any]]:
    """Prepare the sources of a shard into ``folder``; resume where an earlier call was interrupted.

    Args:
        sources: the whole list, the same for every shard.
        workers: processes; 1 runs in this process.
        verify: read what is stored already to the end, and prepare again what is damaged.

    Returns:
        the cache as it is now, with what other shards have prepared so far, and what this run did.

    Raises:
        InputError: the folder holds a cache of another spacing or something else, or every source was refused.
        CancelledError: a stop was asked for; what is prepared stays.
        DiskFullError: the disk is full; what is prepared stays.
    """
    folder, reporter, stop = Path(folder), reporter or Reporter(), stop or StopRequest()
    if workers < 1:
        raise InputError(f"{workers} workers", "give a number from 1")
    check_folder(folder)
    records, runs = read_index(folder)
    if runs and runs[0].spacing_mm != spacing_mm:
        raise InputError(
            f"{folder} was prepared at {runs[0].spacing_mm} mm, not {spacing_mm} mm", "choose another output folder"
        )
    names = plan_names([source.path for source in sources])
    tasks = plan_tasks(sources, names, records)[shard.number - 1 :: shard.of]
    stop.check()
    listed = {absolute(source.path) for source in sources}
    stored = [record.entry for record in records.values() if record.entry and record.source not in listed]
    setup = Setup(folder, spacing_mm, verify, {entry.source_sha256: entry.source for entry in stored})
    inputs = hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]
    run = Run(1 + max((earlier.number for earlier in runs), default=0), shard, inputs, spacing_mm)
    cache, report = _Preparation(setup, run, tasks, workers, records, reporter).work(stop)
    if not cache.entries and shard == WHOLE:
        first = cache.refused[0]
        raise InputError(
            f"none of {len(sources)} inputs could be used; {first.source}: {first.reason}",
            f"see {folder / 'report.json'}",
        )
    return cache, report


def plan_tasks(sources: list[Source], names: list[str], records: dict[str, Record]) -> list[Task]:
    """Return a task for each source, with what the index has of it.

    Args:
        names: of the volumes, as far as the index has no other source of that name.
        records: of the index, by source.
    """
    paths = [absolute(source.path) for source in sources]
    listed = set(paths)
    # what came from other sources was there first
    base = 1 + max((record.order for record in records.values() if record.source not in listed), default=-1)
    holders = {r.entry.name.casefold(): r.source for r in records.values() if r.entry is not None}
    tasks = []
    for order, (source, path, name) in enumerate(zip(sources, paths, names, strict=True), start=base):
        record = records.get(path)
        if record is not None and record.entry is not None:
            entry = _updated(record.entry, source)
            # refused, it is read again
            tasks.append(Task(source, entry.name, order, entry, "" if record.reason else record.stamp))
        else:
            is_taken = holders.get(name.casefold(), path) != path
            tasks.append(Task(source, marked(name, source.path) if is_taken else name, order))
    return tasks


def _updated(entry: CacheEntry, source: Source) -> CacheEntry:
    """Take over what a manifest says of a volume that is in the cache already."""
    stated = {key: getattr(source, key) for key in ("split", "dataset", "licence", "labels")}
    stated["patient"] = hash_of_patient(source.patient) if source.patient else ""
    return replace(entry, **{key: text for key, text in stated.items() if text})


@dataclass(frozen=True)
class _Preparation:
    """One run over the sources of a shard; ``records`` is what the index had of them."""

    setup: Setup
    run: Run
    tasks: list[Task]
    workers: int
    records: dict[str, Record]
    reporter: Reporter
    begin: float = field(default_factory=time.monotonic)
    outcomes: list[Outcome] = field(default_factory=list)

    def work(self, stop: StopRequest) -> tuple[Cache, dict[str, Any]]:
        """Prepare all sources; whatever ends it, what is prepared is in the index."""
        self._remove_partial_files()
        begin_run(self.setup.folder, self.run)
        self.reporter.progress("prepare", 0.0)
        try:
            with closing(self._outcomes(stop)) as outcomes:
                for outcome in outcomes:
                    self._keep(outcome)
        except MAESILError:
            self._remove_partial_files()
            self._finish(self.run)
            raise
        complete = replace(self.run, is_complete=True)
        append(self.setup.folder, complete.shard, complete)
        self.reporter.progress("prepare", 1.0)
        return self._finish(complete)

    def _outcomes(self, stop: StopRequest) -> Generator[Outcome, None, None]:
        if self.workers > 1:
            yield from prepare_in_workers(self.setup, self.tasks, self.workers, stop)
            return
        for task in self.tasks:
            stop.check()
            yield prepare_source(self.setup, task, stop.check)

    def _keep(self, outcome: Outcome) -> None:
        record = outcome.record
        self.outcomes.append(outcome)
        if self.records.get(record.source) != record:
            append(self.setup.folder, self.run.shard, record)
        for warning in outcome.warnings:
            self.reporter.warning(warning)
        if record.reason:
            self.reporter.warning(f"refused {record.source}: {record.reason}")
        if len(self.outcomes) < len(self.tasks):
            self.reporter.progress("prepare", len(self.outcomes) / len(self.tasks), Path(record.source).name)

    def _remove_partial_files(self) -> None:
        """Remove what a process that was killed left half written; of this run's sources, because others may run."""
        names = {task.name for task in self.tasks}
        for path in (self.setup.folder / VOLUMES).glob(".*.partial.*"):
            match = PARTIAL.fullmatch(path.name)
            if match is not None and match[1] in names:
                path.unlink(missing_ok=True)

    def _finish(self, run: Run) -> tuple[Cache, dict[str, Any]]:
        """Write and report what the run did."""
        cache = read_cache(self.setup.folder, allow_empty=True)
        # other refusals were reported in their turn
        usable = {outcome.record.source for outcome in self.outcomes if not outcome.record.reason}
        for refusal in cache.refused:
            if refusal.source in usable:
                self.reporter.warning(f"refused {refusal.source}: {refusal.reason}")
        seconds = time.monotonic() - self.begin
        report = report_of(run, cache, self.outcomes, inputs=len(self.tasks), workers=self.workers, seconds=seconds)
        path = self.setup.folder / run.shard.file_name("report", ".json")
        write_json(path, report)
        self.reporter.info("preparation", **report)
        self.reporter.artifact("report", path)
        return cache, report
