"""The index files of a cache: written whole, with a journal beside them that grows by a line for each source.

    CACHE/index.json, CACHE/index.shard-2-of-8.json         records, and what was decided from them
    CACHE/journal.jsonl, CACHE/journal.shard-2-of-8.jsonl   records since the index was written

Writing an index takes as long as it has records, so it is written at a run's begin and end only. A last line that a
crash tore is passed over: that source is done again. Every shard writes its own files, so nobody waits for a lock.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from MAESILLib import __version__
from MAESILLib.data.records import Decision, Record, decide, entry_of, from_json, to_json, without_volume
from MAESILLib.data.shards import Progress, Shard, shard_of_index
from MAESILLib.errors import InputError
from MAESILLib.files import explain_os_error, read_json, write_text

SCHEMA = "maesil-cache/3"


@dataclass(frozen=True)
class IndexFile:
    """What one index and its journal hold."""

    path: Path
    spacing_mm: float
    progress: Progress
    library_version: str
    records: dict[str, Record]
    """By source."""


def index_paths(folder: Path) -> list[Path]:
    """Return the index files of a folder, those written last at the end; none if it is no cache."""
    found = [path for path in folder.glob("index*.json") if shard_of_index(path.name)]
    return sorted(found, key=lambda path: (path.stat().st_mtime_ns, path.name))


def read_index_file(path: Path) -> IndexFile:
    """Read an index and its journal.

    Raises:
        InputError: it is damaged, or one of another version.
    """
    shard = shard_of_index(path.name)
    assert shard is not None
    # before the index: what is missing here because the index was just written is there
    journal = list(_read_journal(path.with_name(shard.journal_name)))
    index = read_json(path)
    schema = index.get("schema") if isinstance(index, dict) else None
    if schema != SCHEMA:
        raise InputError(
            f"{path} has schema {schema!r}, this version reads {SCHEMA!r}", "prepare the data again in another folder"
        )
    try:
        records = {record.source: record for record in _records_of(index)} | {r.source: r for r in journal}
        progress = Progress(shard, bool(index["complete"]), str(index["inputs"]))
        return IndexFile(path, float(index["spacing_mm"]), progress, str(index["library_version"]), records)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path} is damaged: {error}", "prepare the data again in another folder") from None


def join(files: Iterable[IndexFile]) -> dict[str, Record]:
    """Return all records by source; where two files know a source, the one written last counts.

    Raises:
        InputError: they were prepared with different spacings.
    """
    records: dict[str, Record] = {}
    first: IndexFile | None = None
    for file in files:
        first = first or file
        if file.spacing_mm != first.spacing_mm:
            raise InputError(
                f"{file.path} was prepared at {file.spacing_mm} mm, {first.path.name} at {first.spacing_mm} mm",
                "prepare each in a folder of its own",
            )
        records.update(file.records)
    return records


def write_index_file(path: Path, spacing_mm: float, inputs: str, is_complete: bool, decision: Decision) -> None:
    """Write an index, whole or not at all: one line for each volume and each refusal."""
    head = {"schema": SCHEMA, "library_version": __version__, "spacing_mm": spacing_mm}
    head |= {"complete": is_complete, "inputs": inputs}
    lines = [f" {json.dumps(key)}: {json.dumps(value)}," for key, value in head.items()]
    lines += _table("volumes", map(_volume_row, decision.taken), ",")
    lines += _table("set_aside", map(_volume_row, decision.set_aside), ",")
    lines += _table("refused", (_refused_row(record, reason) for record, reason in decision.refused), "")
    write_text(path, "\n".join(["{", *lines, "}", ""]))


def _table(name: str, rows: Iterable[dict[str, Any]], end: str) -> list[str]:
    lines = [f"  {json.dumps(row, allow_nan=False)}," for row in rows]
    if lines:
        lines[-1] = lines[-1][:-1]
    return [f" {json.dumps(name)}: [", *lines, f" ]{end}"]


def _volume_row(record: Record) -> dict[str, Any]:
    assert record.entry is not None
    row = {**asdict(record.entry), "order": record.order, "stamp": record.stamp}
    if not row["labels"]:
        # earlier versions read a cache that has none
        del row["labels"]
    return row


def _refused_row(record: Record, reason: str) -> dict[str, Any]:
    row = {"source": record.source, "reason": reason, "order": record.order, "stamp": record.stamp}
    # where it is decided from other records, it is decided again when they are read
    return row | {"decided": not record.reason, "sha256": record.sha256}


def _records_of(index: dict[str, Any]) -> Iterator[Record]:
    stored: dict[str, Record] = {}
    for row in (*index["volumes"], *index["set_aside"]):
        values = dict(row)
        order, stamp = int(values.pop("order")), str(values.pop("stamp"))
        entry = entry_of(values)
        stored[entry.source] = Record(entry.source, order, stamp, entry=entry)
    yield from stored.values()
    for row in index["refused"]:
        reason = "" if row["decided"] else str(row["reason"])
        record = Record(row["source"], int(row["order"]), row["stamp"], row["sha256"], reason=reason)
        if record.source not in stored:
            yield record
        elif reason:
            yield replace(stored[record.source], stamp=record.stamp, reason=reason)


def _read_journal(path: Path) -> Iterator[Record]:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return
    for line in lines:
        try:
            yield from_json(json.loads(line))
        except (KeyError, TypeError, ValueError):
            # torn by a crash: the source is done again
            continue


class Ledger:
    """The records of a shard while it is prepared; a context manager.

    Args:
        folder: of the cache.
        inputs: hash of the list of sources.
        records: what is known so far, by source.
        remove: called with the name of each volume that is a duplicate, when the index does without it.
    """

    def __init__(
        self,
        folder: Path,
        shard: Shard,
        spacing_mm: float,
        inputs: str,
        records: dict[str, Record],
        remove: Callable[[str], None],
    ) -> None:
        self.index, self.journal = folder / shard.index_name, folder / shard.journal_name
        self.spacing_mm, self.inputs, self.records, self._remove = spacing_mm, inputs, records, remove
        self.decision = Decision()
        self._lines: TextIO | None = None

    def __enter__(self) -> Ledger:
        # what the journal of an earlier run says is in the records, or its index is gone
        self.fold(is_complete=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def add(self, record: Record) -> None:
        """Keep what became of a source; it survives the end of this process.

        Raises:
            DiskFullError: the disk is full.
        """
        self.records[record.source] = record
        try:
            if self._lines is None:
                self._lines = open(self.journal, "a", encoding="utf-8")  # noqa: SIM115 (closed in __exit__)
            # one write, so that nothing comes between
            self._lines.write(json.dumps(to_json(record)) + "\n")
            self._lines.flush()
        except OSError as error:
            raise explain_os_error(error, self.journal) from error

    def fold(self, is_complete: bool) -> None:
        """Write the index and empty the journal.

        Raises:
            DiskFullError: the disk is full; the journal stays.
        """
        duplicates = decide(self.records.values()).duplicates
        for record in duplicates:
            self.records[record.source] = without_volume(record)
        self.decision = decide(self.records.values())
        write_index_file(self.index, self.spacing_mm, self.inputs, is_complete, self.decision)
        self._close()
        self.journal.unlink(missing_ok=True)
        kept = {record.entry.name for record in self.records.values() if record.entry is not None}
        for record in duplicates:
            if record.entry is not None and record.entry.name not in kept:
                self._remove(record.entry.name)

    def _close(self) -> None:
        if self._lines is not None:
            self._lines.close()
            self._lines = None
