"""What the rows of a probe say together: figures over patients, differences between features, the few-label curve."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from MAESILLib.evaluation.statistics import paired_difference, spread
from MAESILLib.probe.figures import by_patient

FIGURES = ("auroc", "average_precision")
CHANCE = "positive_share"
MEAN = "mean over classes"
"""Stands for the mean over the classes that a volume shows, where there are several."""
OWN = "maesil"

Row = dict[str, Any]


def summarise(rows: list[Row]) -> list[Row]:
    """Return, for each class and feature with all training cases, mean and deviation over patients."""
    lines = []
    full = [row for row in rows if row["all_cases"]]
    for name in _classes(full):
        for feature in _unique(row["feature"] for row in full):
            chosen = [row for row in full if row["feature"] == feature]
            line: Row = {
                "class": name,
                "feature": feature,
                "blocks": sorted({r["block"] for r in chosen if r["block"]}),
            }
            for key in (*FIGURES, CHANCE):
                found = spread(list(by_patient(_by_volume(chosen, name, key), _patients(rows)).values()))
                line |= {"patients": found.volumes, key: round(found.mean, 5)}
                line[f"{key}_sd"] = None if found.sd is None else round(found.sd, 5)
            lines.append(line)
    return lines


def differences(rows: list[Row], seed: int = 0) -> list[Row]:
    """Return the own feature minus each other, with all training cases, paired by volume.

    Args:
        seed: of the bootstrap over patients.
    """
    lines = []
    full = [row for row in rows if row["all_cases"]]
    for name in _classes(full):
        for other in _unique(row["feature"] for row in full if row["feature"] != OWN):
            for key in FIGURES:
                first, second = (
                    _by_volume([row for row in full if row["feature"] == feature], name, key)
                    for feature in (OWN, other)
                )
                found = paired_difference(first, second, _patients(rows), seed)
                if found is not None:
                    rounded = {k: round(v, 5) if isinstance(v, float) else v for k, v in vars(found).items()}
                    lines.append({"class": name, "minus": other, "figure": key, **rounded})
    return lines


def curve(rows: list[Row]) -> list[Row]:
    """Return, for each class, feature and number of cases, mean and deviation over draws of the mean over patients."""
    lines = []
    patients = _patients(rows)
    for name in _classes(rows):
        of_class = rows if name == MEAN else [row for row in rows if row["class"] == name]
        for feature in _unique(row["feature"] for row in rows):
            groups: dict[tuple[bool, int], dict[int, list[Row]]] = defaultdict(lambda: defaultdict(list))
            for row in of_class:
                if row["feature"] == feature:
                    # every class has a number of its own for all
                    count = 0 if row["all_cases"] else row["cases"]
                    groups[row["all_cases"], count][row["draw"]].append(row)
            for (is_all, _), draws in sorted(groups.items()):
                of_draws = list(draws.values())
                cases = statistics.median([row["cases"] for draw in of_draws for row in draw])
                line: Row = {"class": name, "feature": feature, "cases": round(cases), "all_cases": is_all}
                line["draws"] = len(of_draws)
                for key in FIGURES:
                    means = [
                        statistics.fmean(by_patient(_by_volume(draw, name, key), patients).values())
                        for draw in of_draws
                    ]
                    found = spread(means)
                    line[key], line[f"{key}_sd"] = (
                        round(found.mean, 5),
                        None if found.sd is None else round(found.sd, 5),
                    )
                lines.append(line)
    return lines


def _classes(rows: list[Row]) -> list[str]:
    found = _unique(row["class"] for row in rows)
    return [*found, MEAN] if len(found) > 1 else found


def _patients(rows: list[Row]) -> dict[str, str]:
    return {row["volume"]: row["patient"] for row in rows}


def _by_volume(rows: list[Row], name: str, key: str) -> dict[str, float]:
    """Return a figure of each volume: the mean over seeds and, for :data:`MEAN`, over the classes it shows."""
    found: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if name in (MEAN, row["class"]):
            found[row["volume"]].append(row[key])
    return {volume: statistics.fmean(values) for volume, values in found.items()}


def _unique(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))
