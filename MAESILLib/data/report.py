"""The report of a preparation: what was done, what was refused and why, and how fast it went."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from MAESILLib.data.cache import Cache, CacheEntry
from MAESILLib.data.index import Run
from MAESILLib.data.one_source import Outcome, Task

SCHEMA = "maesil-prepare-report/2"
NAMES: Mapping[str, str] = {}
SHOWN = 10
"""Refused sources that are printed for each reason, and others in all; the report's files have them all."""
CHANGED = ("resampled", "interpolated")
"""Words of readers' warnings about a volume that does not lie on its source's grid."""


def report_of(
    run: Run, cache: Cache, tasks: Sequence[Task], outcomes: Sequence[Outcome], *, workers: int, seconds: float
) -> dict[str, Any]:
    """Return the report of a run as plain JSON values; megabytes are 10^6 bytes, those of volumes without headers.

    Args:
        cache: as it is after the run.
        tasks: of the run's shard.
        outcomes: of the sources that the run came to.
        seconds: wall time.
    """
    by_name = {outcome.task.name: outcome for outcome in outcomes}
    refused = {name: reason for name, reason in cache.refused.items() if name in by_name}
    used = by_name.keys() - refused.keys()
    prepared = [by_name[name] for name in used if by_name[name].source_bytes]
    source_megabytes = sum(outcome.source_bytes for outcome in prepared) / 1e6
    per_second = 1 / seconds if seconds else 0.0
    return {
        "schema": SCHEMA,
        "finished": run.is_complete,
        "shard": f"{run.shard.number}/{run.shard.of}",
        "workers": workers,
        "inputs": len(tasks),
        "prepared": len(prepared),
        "already_there": len(used) - len(prepared),
        "refused": len(refused),
        "source_megabytes": round(source_megabytes, 3),
        "stored_megabytes": round(_megabytes(o.record.entry for o in prepared if o.record.entry), 3),
        "seconds": round(seconds, 3),
        "volumes": len(cache.entries),
        "patients": len({entry.patient for entry in cache.entries}),
        "cache_megabytes": round(_megabytes(cache.entries), 3),
        "unfinished": list(cache.unfinished),
        "cts_per_hour": round(3600 * len(prepared) * per_second, 1),
        "megabytes_per_second": round(source_megabytes * per_second, 2),
        "refused_by_reason": grouped(refused),
        "table": [_row(by_name[task.name], cache) for task in tasks if task.name in by_name],
    }


def _row(outcome: Outcome, cache: Cache) -> dict[str, str]:
    """Say what became of an input: taken, resampled or skipped, of which patient, and why."""
    record, entry = outcome.record, outcome.record.entry
    reason = cache.refused.get(record.name, "")
    is_changed = any(word in warning for warning in record.warnings for word in CHANGED)
    beside = outcome.task.source.beside
    return {
        "name": record.name,
        "outcome": "skipped" if reason else "resampled" if is_changed else "taken",
        "patient": patient_of(entry) if entry else "",
        "note": reason or "; ".join([*record.warnings, *([f"passed over: {beside}"] if beside else [])]),
    }


def patient_of(entry: CacheEntry) -> str:
    """Return what a patient is called: as a manifest does, else by the pseudonym."""
    return entry.patient_name or entry.patient


def _megabytes(entries: Iterable[CacheEntry]) -> float:
    """Return the size of the voxels of volumes, int16, in 10^6 bytes."""
    return sum(2 * math.prod(entry.shape_dhw) for entry in entries) / 1e6


def kind_of(reason: str) -> str:
    """Return a reason without what is particular to one source: names, numbers, and what to do about it."""
    text = re.sub(r"((same data as|with) )\S+$", r"\1another", reason.split(". ")[0])
    return re.sub(r"-?\d+(\.\d+)?", "N", text)


def grouped(refused: dict[str, str]) -> list[dict[str, Any]]:
    """Return refusals by kind of reason, the most frequent kind first: ``kind``, ``count`` and ``sources`` of each."""
    groups: dict[str, list[dict[str, str]]] = {}
    for name, reason in refused.items():
        groups.setdefault(kind_of(reason), []).append({"name": name, "reason": reason})
    ordered = sorted(groups.items(), key=lambda group: (-len(group[1]), group[0]))
    return [{"kind": kind, "count": len(rows), "sources": rows} for kind, rows in ordered]


def cache_text(cache: Cache) -> str:
    """Return in a line what a cache holds, and what is missing of it."""
    splits = {name: sum(e.split == name for e in cache.entries) for name in ("train", "val", "")}
    named = ", ".join(f"{count} {name or 'undecided'}" for name, count in splits.items() if count)
    patients = len({e.patient for e in cache.entries})
    counts = f"{len(cache.entries)} volumes of {patients} patients ({named})"
    size = f"{cache.spacing_mm:g} mm, {_megabytes(cache.entries) * 1e6 / 2**20:.0f} MiB"
    return "\n".join([f"{counts}, {size}", *(f"unfinished: {line}" for line in cache.unfinished)])


def refused_text(groups: list[dict[str, Any]], paths: Mapping[str, str] = NAMES) -> str:
    """Return grouped refusals as lines; nothing if there are none.

    Args:
        paths: of sources, by name; others are called by their names.
    """
    lines = [f"refused {sum(group['count'] for group in groups)}:"] if groups else []
    for group in groups:
        lines.append(f"  {group['count']} x {group['kind']}")
        shown = group["sources"][:SHOWN]
        lines += [f"    {paths.get(row['name'], row['name'])}: {row['reason']}" for row in shown]
        if group["count"] > SHOWN:
            lines.append(f"    and {group['count'] - SHOWN} more")
    return "\n".join(lines)


def report_text(report: dict[str, Any], paths: Mapping[str, str]) -> str:
    """Return what a run did, in lines for people; ``paths`` as in :func:`refused_text`."""
    counts = {words: report[words.replace(" ", "_")] for words in ("prepared", "already there", "refused")}
    done = ", ".join(f"{words} {count}" for words, count in counts.items() if count) or "nothing to do"
    shard = "" if report["shard"] == "1/1" else f" (shard {report['shard']})"
    line = f"{done} of {report['inputs']} inputs{shard} in {report['seconds']:.1f} s"
    if report["prepared"]:
        line += f": {report['cts_per_hour']:.0f} CTs/h, {report['megabytes_per_second']:.1f} MB/s read"
        line += f", {report['workers']} worker{'s' if report['workers'] != 1 else ''}" if report["workers"] else ""
    used = [row for row in report["table"] if row["outcome"] != "skipped"]
    rows = [f"  {r['outcome']} {paths[r['name']]}: {r['name']}, patient {r['patient']}" for r in used[:SHOWN]]
    rows = [f"{row} ({r['note']})" if r["note"] else row for row, r in zip(rows, used, strict=False)]
    more = f"  and {len(used) - SHOWN} more" if len(used) > SHOWN else ""
    return "\n".join(filter(None, [line, *rows, more, refused_text(report["refused_by_reason"], paths)]))
