"""Preparing a cache: check CTs, bring them onto the model's grid, store them, side by side and in shards.

One bad file never stops the rest: it is refused with its reason, and the index says so. Which volumes the cache
holds, and under which names, follows from the list of sources alone: not from how many workers or shards
prepared them, nor from which was done first.
"""

from __future__ import annotations

import hashlib
import math
import re
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from MAESILLib import __version__
from MAESILLib.config import Preprocessing
from MAESILLib.data.cache import (
    VOLUMES,
    Cache,
    CacheEntry,
    cache_of,
    read_index,
    remove_volume,
    stored_bytes,
)
from MAESILLib.data.index import IndexFile, Ledger, index_paths, join, read_index_file
from MAESILLib.data.names import absolute, marked, plan_names
from MAESILLib.data.one_source import PREPARED, THERE, Outcome, Setup, Task, prepare_source
from MAESILLib.data.records import Record, hash_of_patient
from MAESILLib.data.report import RefusedSource, Report, cache_bytes, kind_of
from MAESILLib.data.shards import WHOLE, Shard
from MAESILLib.data.sources import Source, find_sources
from MAESILLib.data.workers import prepare_in_workers
from MAESILLib.errors import InputError, MAESILError
from MAESILLib.events import Reporter
from MAESILLib.files import check_folder, write_json
from MAESILLib.stopping import StopRequest

__all__ = ["Preparation", "Source", "find_sources", "prepare"]

FOLDED_AT_STOP = 20_000
PARTIAL = re.compile(r"\.[0-9a-f]{8}\.partial\.(.+?)(?:\.foreground)?\.npy")


@dataclass(frozen=True)
class Preparation:
    """The cache as it is after a run, with what other shards have prepared so far, and what the run did."""

    cache: Cache
    report: Report


@dataclass(frozen=True)
class Plan:
    """What a run has to do.

    Attributes:
        tasks: the sources of its shard, in their order.
        records: what its index says at the beginning.
        known_data: the place of the source that each SHA-256 in the cache came from.
        inputs: hash of the whole list of sources.
    """

    tasks: list[Task]
    records: dict[str, Record]
    known_data: dict[str, int]
    inputs: str


def prepare(
    sources: list[Source],
    folder: Path | str,
    preprocessing: Preprocessing,
    *,
    workers: int = 1,
    shard: Shard = WHOLE,
    verify: bool = False,
    reporter: Reporter | None = None,
    stop: StopRequest | None = None,
) -> Preparation:
    """Prepare the sources of a shard into ``folder``; go on where an earlier call was interrupted.

    Args:
        sources: the whole list, the same for every shard.
        workers: processes; 1 works in this one, which a crash of a reader ends.
        verify: read what is stored already to the end, and prepare again what is damaged.

    Raises:
        InputError: the folder holds a cache of another spacing or something else, or every source was refused.
        CancelledError: a stop was asked for; what is prepared stays.
        DiskFullError: the disk is full; what is prepared stays.
    """
    folder = Path(folder)
    reporter, stop = reporter or Reporter(), stop or StopRequest()
    if not math.isfinite(preprocessing.spacing_mm):
        raise InputError(f"spacing {preprocessing.spacing_mm} mm", "choose a number of mm, as 1.5")
    if workers < 1:
        raise InputError(f"{workers} workers", "give a number from 1")
    check_folder(folder)
    plan = make_plan(sources, shard, folder, preprocessing.spacing_mm)
    stop.check()
    setup = Setup(folder, preprocessing.spacing_mm, verify, plan.known_data)
    remove = partial(remove_volume, folder)
    with Ledger(folder, shard, preprocessing.spacing_mm, plan.inputs, plan.records, remove) as ledger:
        run = Run(folder, shard, workers, plan.tasks, ledger, reporter)
        preparation = run.work(setup, stop)
    if not preparation.cache.entries and shard == WHOLE:
        first = preparation.cache.refused[0]
        raise InputError(
            f"none of {len(sources)} inputs could be used; {first.source}: {first.reason}", f"see {ledger.index.name}"
        )
    return preparation


def make_plan(sources: list[Source], shard: Shard, folder: Path, spacing_mm: float) -> Plan:
    """Find out what is known of the sources and what there is to do.

    Raises:
        InputError: the folder holds a cache of another spacing or something else.
    """
    files = _index_files(folder, spacing_mm)
    own = next((dict(file.records) for file in files if file.progress.shard == shard), {})
    known = join(files)
    names = plan_names([source.path for source in sources])
    paths = [absolute(source.path) for source in sources]
    listed = set(paths)
    # what came from other sources was there first
    base = 1 + max((record.order for record in known.values() if record.source not in listed), default=-1)
    taken = {r.entry.name.casefold(): r.source for r in known.values() if r.entry is not None}
    tasks = []
    for position, (source, path, name) in enumerate(zip(sources, paths, names, strict=True)):
        if path in known:
            known[path] = _described(replace(known[path], order=base + position), source)
        if not shard.takes(position):
            continue
        record = known.get(path)
        if record is not None:
            own[path] = record
        tasks.append(Task(source, _name(record, name, source, taken), base + position, record))
    known_data: dict[str, int] = {}
    for record in known.values():
        if record.entry is not None:
            sha256 = record.entry.source_sha256
            known_data[sha256] = min(record.order, known_data.get(sha256, record.order))
    inputs = hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]
    return Plan(tasks, own, known_data, inputs)


def _index_files(folder: Path, spacing_mm: float) -> list[IndexFile]:
    found = [read_index_file(path) for path in index_paths(folder)]
    # an index without a volume binds nobody to its spacing
    files = [file for file in found if any(record.entry for record in file.records.values())]
    for file in files:
        if file.spacing_mm != spacing_mm:
            raise InputError(
                f"{folder} was prepared at {file.spacing_mm} mm, not {spacing_mm} mm", "choose another output folder"
            )
    return [_as_read_today(file) for file in files or found if file.spacing_mm == spacing_mm]


def _as_read_today(file: IndexFile) -> IndexFile:
    """Forget refusals by another version of the library, which may have read less, or more."""
    if file.library_version == __version__:
        return file
    kept = {source: r for source, r in file.records.items() if r.entry is not None or not r.reason}
    return replace(file, records=kept)


def _described(record: Record, source: Source) -> Record:
    """Take over what a manifest says of a volume that is in the cache already."""
    if record.entry is None:
        return record
    stated = {key: getattr(source, key) for key in ("split", "dataset", "licence", "labels")}
    stated["patient"] = hash_of_patient(source.patient) if source.patient else ""
    return replace(record, entry=replace(record.entry, **{key: text for key, text in stated.items() if text}))


def _name(record: Record | None, name: str, source: Source, taken: dict[str, str]) -> str:
    if record is not None and record.entry is not None:
        return record.entry.name
    holder = taken.get(name.casefold())
    return name if holder in (None, absolute(source.path)) else marked(name, source.path)


class Run:
    """One run over the sources of a shard."""

    def __init__(
        self, folder: Path, shard: Shard, workers: int, tasks: list[Task], ledger: Ledger, reporter: Reporter
    ) -> None:
        self.folder, self.shard, self.workers = folder, shard, workers
        self.tasks, self.ledger, self.reporter = tasks, ledger, reporter
        self.outcomes: dict[str, Outcome] = {}
        self.begin = time.monotonic()

    def work(self, setup: Setup, stop: StopRequest) -> Preparation:
        """Prepare all sources; whatever ends it, what is prepared is in the index."""
        self._remove_partial_files()
        try:
            self._prepare_all(setup, stop)
        except MAESILError:
            self._remove_partial_files()
            # an index of more takes longer to write than a stop may take; the journal has it all
            if len(self.ledger.records) <= FOLDED_AT_STOP:
                self._finish(is_complete=False)
            raise
        return self._finish(is_complete=True)

    def _prepare_all(self, setup: Setup, stop: StopRequest) -> None:
        self.reporter.progress("prepare", 0.0)
        with closing(self._outcomes(setup, stop)) as outcomes:
            for done, outcome in enumerate(outcomes, start=1):
                self._keep(outcome)
                if done < len(self.tasks):
                    self.reporter.progress("prepare", done / len(self.tasks), Path(outcome.record.source).name)
        self.reporter.progress("prepare", 1.0)

    def _outcomes(self, setup: Setup, stop: StopRequest) -> Generator[Outcome, None, None]:
        if self.workers > 1:
            yield from prepare_in_workers(setup, self.tasks, self.workers, stop)
            return
        for task in self.tasks:
            stop.check()
            yield prepare_source(setup, task, stop.check)

    def _keep(self, outcome: Outcome) -> None:
        record = outcome.record
        self.outcomes[record.source] = outcome
        if self.ledger.records.get(record.source) != record:
            self.ledger.add(record)
        for warning in outcome.warnings:
            self.reporter.warning(warning)
        if record.reason:
            self.reporter.warning(f"refused {record.source}: {record.reason}")

    def _remove_partial_files(self) -> None:
        """Remove what a process that was killed left half written; of this run's sources, because others may run."""
        names = {task.name for task in self.tasks}
        if (self.folder / VOLUMES).is_dir():
            for path in (self.folder / VOLUMES).iterdir():
                match = PARTIAL.fullmatch(path.name)
                if match is not None and match[1] in names:
                    path.unlink(missing_ok=True)

    def _finish(self, is_complete: bool) -> Preparation:
        self.ledger.fold(is_complete)
        own = cache_of(self.folder, self.ledger.spacing_mm, self.ledger.decision)
        cache = read_index(self.folder) if len(index_paths(self.folder)) > 1 else own
        report = self._report(cache, is_complete)
        for row in report.refused:
            # what one source says of itself was told at its turn
            if not self.outcomes[row.source].record.reason:
                self.reporter.warning(f"refused {row.source}: {row.reason}")
        path = self.folder / self.shard.report_name
        write_json(path, report.to_json())
        self.reporter.info("preparation", **report.to_json())
        self.reporter.artifact("report", path)
        return Preparation(cache, report)

    def _report(self, cache: Cache, is_complete: bool) -> Report:
        reasons = {refusal.source: refusal.reason for refusal in cache.refused}
        sources = [source for source in map(_source_of, self.tasks) if source in self.outcomes]
        refused = tuple(RefusedSource(s, reasons[s], kind_of(s, reasons[s])) for s in sources if s in reasons)
        used = [self.outcomes[source] for source in sources if source not in reasons]
        prepared = [outcome for outcome in used if outcome.state == PREPARED]
        entries = [outcome.record.entry for outcome in prepared if outcome.record.entry is not None]
        return Report(
            finished=is_complete,
            shard=f"{self.shard.number}/{self.shard.of}",
            workers=self.workers,
            inputs=len(self.tasks),
            prepared=len(prepared),
            already_there=sum(outcome.state == THERE for outcome in used),
            refused=refused,
            source_megabytes=round(sum(outcome.source_bytes for outcome in prepared) / 1e6, 3),
            stored_megabytes=round(sum(map(_stored_bytes, entries)) / 1e6, 3),
            seconds=round(time.monotonic() - self.begin, 3),
            volumes=len(cache.entries),
            patients=len({entry.patient for entry in cache.entries}),
            cache_megabytes=round(cache_bytes(cache) / 1e6, 3),
            unfinished=cache.unfinished,
        )


def _source_of(task: Task) -> str:
    return absolute(task.source.path)


def _stored_bytes(entry: CacheEntry) -> int:
    return stored_bytes(entry.shape_dhw, np.dtype(np.int16))
