"""The report of a preparation: what was done, what was refused and why."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from MAESILLib.data.cache import Cache
from MAESILLib.data.index import Run
from MAESILLib.data.one_source import Outcome, Task

SCHEMA = "maesil-prepare-report/2"
SHOWN = 10
"""Refused sources that are printed for each reason, and others in all; the report's files have them all."""
CHANGED = ("resampled", "interpolated")
"""Words of readers' warnings about a volume that does not lie on its source's grid."""


def report_of(
    run: Run, cache: Cache, tasks: Sequence[Task], outcomes: Sequence[Outcome], *, workers: int, seconds: float
) -> dict[str, Any]:
    """Return the report of a run as plain JSON values.

    Args:
        cache: as it is after the run.
        tasks: of the run's shard.
        outcomes: of the sources that the run came to.
        seconds: wall time.
    """
    by_name = {outcome.task.name: outcome for outcome in outcomes}
    refused = {name: reason for name, reason in cache.refused.items() if name in by_name}
    prepared = sum(outcome.is_new for name, outcome in by_name.items() if name not in refused)
    return {
        "schema": SCHEMA,
        "finished": run.is_complete,
        "shard": f"{run.shard.number}/{run.shard.of}",
        "workers": workers,
        "inputs": len(tasks),
        "prepared": prepared,
        "already_there": len(by_name) - len(refused) - prepared,
        "refused": len(refused),
        "seconds": round(seconds, 3),
        "volumes": len(cache.entries),
        "patients": len({entry.patient for entry in cache.entries}),
        "refused_by_reason": {kind: len(of_kind) for kind, of_kind in grouped(refused)},
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
        "patient": entry.patient_label if entry else "",
        "note": reason or "; ".join([*record.warnings, *([f"passed over: {beside}"] if beside else [])]),
    }


def kind_of(reason: str) -> str:
    """Return a reason without what is particular to one source: names, numbers, and what to do about it."""
    text = re.sub(r"((same data as|with) )\S+$", r"\1another", reason.split(". ")[0])
    return re.sub(r"-?\d+(\.\d+)?", "N", text)


def grouped(refused: Mapping[str, str]) -> list[tuple[str, dict[str, str]]]:
    """Return refusals by kind of reason, the most frequent kind first."""
    groups: dict[str, dict[str, str]] = {}
    for name, reason in refused.items():
        groups.setdefault(kind_of(reason), {})[name] = reason
    return sorted(groups.items(), key=lambda group: (-len(group[1]), group[0]))


def cache_text(cache: Cache) -> str:
    """Return in a line what a cache holds, and what is missing of it."""
    entries = cache.entries
    splits = {name: sum(e.split == name for e in entries) for name in ("train", "val", "")}
    named = ", ".join(f"{count} {name or 'undecided'}" for name, count in splits.items() if count)
    counts = f"{len(entries)} volumes of {len({e.patient for e in entries})} patients ({named})"
    mib = sum(2 * math.prod(entry.shape_dhw) for entry in entries) / 2**20
    unfinished = (f"unfinished: {line}" for line in cache.unfinished)
    return "\n".join([f"{counts}, {cache.spacing_mm:g} mm, {mib:.0f} MiB", *unfinished])


def refused_text(refused: Mapping[str, str], paths: Mapping[str, str]) -> str:
    """Return refusals as lines, grouped; nothing if there are none.

    Args:
        paths: of sources, by name; others are called by their names.
    """
    lines = [f"refused {len(refused)}:"] if refused else []
    for kind, reasons in grouped(refused):
        lines.append(f"  {len(reasons)} x {kind}")
        lines += [f"    {paths.get(name, name)}: {reason}" for name, reason in list(reasons.items())[:SHOWN]]
        if len(reasons) > SHOWN:
            lines.append(f"    and {len(reasons) - SHOWN} more")
    return "\n".join(lines)


def report_text(report: dict[str, Any], paths: Mapping[str, str]) -> str:
    """Return what a run did, in lines for people; ``paths`` as in :func:`refused_text`."""
    counts = {words: report[words.replace(" ", "_")] for words in ("prepared", "already there", "refused")}
    done = ", ".join(f"{words} {count}" for words, count in counts.items() if count) or "nothing to do"
    shard = "" if report["shard"] == "1/1" else f" (shard {report['shard']})"
    line = f"{done} of {report['inputs']} inputs{shard} in {report['seconds']:.1f} s"
    used = [row for row in report["table"] if row["outcome"] != "skipped"]
    refused = {row["name"]: row["note"] for row in report["table"] if row["outcome"] == "skipped"}
    rows = [f"  {r['outcome']} {paths[r['name']]}: {r['name']}, patient {r['patient']}" for r in used[:SHOWN]]
    rows = [f"{row} ({r['note']})" if r["note"] else row for row, r in zip(rows, used, strict=False)]
    more = f"  and {len(used) - SHOWN} more" if len(used) > SHOWN else ""
    return "\n".join(filter(None, [line, *rows, more, refused_text(refused, paths)]))
