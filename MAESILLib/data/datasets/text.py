"""Data sets and listings in lines for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from MAESILLib.data.datasets.description import Dataset, LeftOut, Listing

SHOWN = 5
"""Paths that are printed for each reason."""
TEST_CASES = "test cases are left out; --split test takes them alone, as the cache's val"


def table(datasets: Iterable[Dataset]) -> str:
    """Return a line for each set."""
    rows = [("name", "scans", "part of the body", "licence"), *((d.key, d.scans, d.body, d.licence) for d in datasets)]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = ["  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[3]]).rstrip() for row in rows]
    hint = "maesil datasets NAME says more: layout, labels, where to get it, how to cite. Check terms at the source."
    return "\n".join([*lines, "", hint])


def details(dataset: Dataset) -> str:
    """Return all that is said of a set."""
    values = [f"{value} {name}" for value, name in dataset.label_values]
    fields = [
        ("scans", [f"{dataset.scans}; {dataset.body}"]),
        ("modality", [dataset.modality]),
        ("layout", dataset.tree),
        ("labels", [dataset.labels, *values]),
        ("patients", [dataset.patients]),
        ("split", [dataset.splits, *([TEST_CASES] if "test" in dataset.splits else [])]),
        ("licence", [f"{dataset.licence}, stated at: {dataset.licence_at}", "check the terms there before use"]),
        ("page", [dataset.source]),
        ("get it", dataset.get),
        ("cite", [dataset.citation]),
        ("overlaps", [f"{', '.join(dataset.overlaps)}: {dataset.overlap}"] if dataset.overlaps else []),
        ("prepare", [f"maesil prepare --layout {dataset.key} FOLDER --output CACHE"]),
    ]
    lines = [f"{dataset.key}: {dataset.name}"]
    for name, texts in fields:
        lines += [f"  {name if number == 0 else '':9} {text}" for number, text in enumerate(texts)]
    return "\n".join(lines)


def listing_text(listing: Listing) -> str:
    """Return in lines what a folder holds, and what was left out by reason."""
    splits = Counter(case.split or "undecided" for case in listing.cases)
    patients = len({case.patient for case in listing.cases})
    labelled = sum(bool(case.labels) for case in listing.cases)
    named = ", ".join(f"{count} {name}" for name, count in sorted(splits.items()))
    head = f"{listing.folder}: {listing.dataset.key}, {len(listing.cases)} CT of {patients} patients ({named})"
    return "\n".join([f"{head}, {labelled} with labels", *_left_out_lines(listing.left_out)])


def _left_out_lines(left_out: Iterable[LeftOut]) -> list[str]:
    groups: dict[str, list[LeftOut]] = {}
    for one in left_out:
        groups.setdefault(one.reason, []).append(one)
    lines = [f"left out {sum(map(len, groups.values()))}:"] if groups else []
    for reason, group in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])):
        lines.append(f"  {len(group)} x {reason}")
        lines += [f"    {one.path}" for one in group[:SHOWN]]
        lines += [f"    and {len(group) - SHOWN} more"] if len(group) > SHOWN else []
    return lines
