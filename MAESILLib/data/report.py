"""The report of a preparation: what was done, what was refused and why, and how fast it went."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from MAESILLib.data.cache import Cache

SCHEMA = "maesil-prepare-report/1"
SHOWN = 10
"""Refused sources that are printed for each reason; the report's file has them all."""
ALIKE = (
    ("the same data as", "the same data as another source"),
    ("its patient is in ", "a patient on both sides of the split"),
    ("the reader died", "the reader died"),
)


@dataclass(frozen=True)
class RefusedSource:
    """A source that was refused, why, and the kind of reason that it shares with others."""

    source: str
    reason: str
    kind: str


@dataclass(frozen=True)
class Report:
    """What a run did.

    Attributes:
        inputs: sources of this run (of its shard).
        finished: whether it got to its end.
        prepared: sources that gave a volume in this run.
        already_there: sources whose volume an earlier run stored.
        refused: sources that cannot be used.
        source_megabytes: of the sources that were prepared, 10^6 bytes.
        stored_megabytes: of the volumes that were prepared, 10^6 bytes.
        seconds: wall time.
        volumes: in the cache now.
        patients: in the cache now.
        cache_megabytes: of all its volumes, 10^6 bytes.
        unfinished: what is missing of the cache.
    """

    finished: bool
    shard: str
    workers: int
    inputs: int
    prepared: int
    already_there: int
    refused: tuple[RefusedSource, ...]
    source_megabytes: float
    stored_megabytes: float
    seconds: float
    volumes: int
    patients: int
    cache_megabytes: float
    unfinished: tuple[str, ...]

    @property
    def cts_per_hour(self) -> float:
        """Volumes prepared, per hour of wall time."""
        return self.prepared / self.seconds * 3600 if self.seconds else 0.0

    @property
    def megabytes_per_second(self) -> float:
        """Megabytes of sources prepared, per second of wall time."""
        return self.source_megabytes / self.seconds if self.seconds else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        speed = {
            "cts_per_hour": round(self.cts_per_hour, 1),
            "megabytes_per_second": round(self.megabytes_per_second, 2),
        }
        values = {**asdict(self), **speed, "refused": len(self.refused)}
        return {"schema": SCHEMA, **values, "refused_by_reason": self._by_reason()}

    def _by_reason(self) -> list[dict[str, Any]]:
        return [
            {"kind": kind, "count": len(rows), "sources": [{"source": r.source, "reason": r.reason} for r in rows]}
            for kind, rows in grouped(self.refused)
        ]


def kind_of(source: str, reason: str) -> str:
    """Return a reason without what is particular to one source: paths, numbers, and what to do about it."""
    for beginning, kind in ALIKE:
        if reason.startswith(beginning):
            return kind
    text = reason.replace(source, "it").split(". ")[0]
    text = re.sub(r"\S*[/\\]\S*", "a file", text)
    return re.sub(r"-?\d+(\.\d+)?", "N", text)


def grouped(refused: Iterable[RefusedSource]) -> list[tuple[str, list[RefusedSource]]]:
    """Return refused sources by kind of reason, the most frequent kind first."""
    groups: dict[str, list[RefusedSource]] = {}
    for one in refused:
        groups.setdefault(one.kind, []).append(one)
    return sorted(groups.items(), key=lambda group: (-len(group[1]), group[0]))


def cache_bytes(cache: Cache) -> int:
    """Return the bytes of a cache's voxels."""
    return sum(e.shape_dhw[0] * e.shape_dhw[1] * e.shape_dhw[2] * 2 for e in cache.entries)


def cache_text(cache: Cache) -> str:
    """Return in a line what a cache holds, and what is missing of it."""
    splits = {name: sum(e.split == name for e in cache.entries) for name in ("train", "val", "")}
    named = ", ".join(f"{count} {name or 'undecided'}" for name, count in splits.items() if count)
    patients = len({e.patient for e in cache.entries})
    counts = f"{len(cache.entries)} volumes of {patients} patients ({named})"
    size = f"{cache.spacing_mm:g} mm, {cache_bytes(cache) / 2**20:.0f} MiB"
    return "\n".join([f"{counts}, {size}", *(f"unfinished: {line}" for line in cache.unfinished)])


def refused_text(refused: Iterable[RefusedSource]) -> str:
    """Return refused sources as lines, by kind of reason; nothing if there are none."""
    groups = grouped(refused)
    if not groups:
        return ""
    lines = [f"refused {sum(len(rows) for _, rows in groups)}:"]
    for kind, rows in groups:
        lines.append(f"  {len(rows)} x {kind}")
        lines += [f"    {row.source}: {row.reason}" for row in rows[:SHOWN]]
        if len(rows) > SHOWN:
            lines.append(f"    and {len(rows) - SHOWN} more")
    return "\n".join(lines)


def refused_sources(cache: Cache) -> tuple[RefusedSource, ...]:
    """Return what a cache's index says was refused."""
    return tuple(RefusedSource(r.source, r.reason, kind_of(r.source, r.reason)) for r in cache.refused)


def report_text(report: Report) -> str:
    """Return what a run did, in lines for people."""
    counts = {"prepared": report.prepared, "already there": report.already_there, "refused": len(report.refused)}
    done = ", ".join(f"{word} {count}" for word, count in counts.items() if count) or "nothing to do"
    of = f"of {report.inputs} inputs" + (f" (shard {report.shard})" if report.shard != "1/1" else "")
    speed = f"{report.cts_per_hour:.0f} CTs/h, {report.megabytes_per_second:.1f} MB/s read"
    workers = f"{report.workers} worker{'s' if report.workers != 1 else ''}"
    lines = [f"{done} {of} in {report.seconds:.1f} s" + (f": {speed}, {workers}" if report.prepared else "")]
    return "\n".join([*lines, *filter(None, [refused_text(report.refused)])])
