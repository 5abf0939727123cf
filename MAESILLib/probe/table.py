"""Metrics of each patient and structure, their means and the encoder's differences, and the files of a probe."""

import statistics
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from MAESILLib.metrics.catalogue import markdown_table
from MAESILLib.probe.features import ENCODER, HAND_MADE, POSITION, RANDOM, RAW
from MAESILLib.probe.fit import SOFT_TISSUE, Floats, Labels, interval, macro
from MAESILLib.runtime.files import csv_text, staged, write_json, write_text

POINTS, LABEL_MAPS = "points", "label maps"
AUROC, BALANCED, SIDED, DICE = "AUROC", "balanced accuracy", "AUROC, sides kept", "Dice, {} labelled"
ALL, SOFT, APART = "all", "soft tissue", "apart"
ORDER = (ENCODER, RANDOM, HAND_MADE, RAW, POSITION)
FILES = ("probe.json", "probe.csv", "probe.md")
Line = dict[str, Any]


class Row(NamedTuple):
    """A metric of one feature in one patient and structure: a line of probe.csv."""

    source: str
    window: int
    metric: str
    feature: str
    patient: str
    structure: str
    value: float


def rows_of(source: str, window: int, metric: str, feature: str, table: Floats, labels: Labels) -> list[Row]:
    """Return a row for each value of a table (P, S) that is defined."""
    return [
        Row(source, window, metric, feature, labels.patients[p], labels.structures[s], float(table[p, s]))
        for p, s in np.argwhere(np.isfinite(table))
    ]


def mean_of_random(rows: Sequence[Row]) -> list[Row]:
    """Put means in place of the encoders with random weights; the encoder comes first, then the baselines."""
    values: dict[Row, list[float]] = defaultdict(list)
    for row in rows:
        feature = RANDOM if row.feature.startswith(RANDOM) else row.feature
        values[row._replace(feature=feature, value=0)].append(row.value)
    means = [row._replace(value=float(np.mean(found))) for row, found in values.items()]
    return sorted(means, key=lambda row: ORDER.index(row.feature))


def summarise(rows: Sequence[Row], apart: Collection[str], seed: int) -> list[Line]:
    """Return macro means with intervals, and the encoder minus each baseline, for all, soft tissue and apart."""
    tables: dict[tuple[str, int, str, str], list[Row]] = defaultdict(list)
    for row in rows:
        tables[row[:4]].append(row)
    groups: dict[str, Callable[[Row], bool]] = {
        ALL: lambda row: True,
        SOFT: lambda row: row.structure in SOFT_TISSUE,
        APART: lambda row: row.patient in apart,
    }
    lines = []
    for key, every in tables.items():
        for group, belongs in groups.items():
            chosen = [row for row in every if belongs(row)]
            if not chosen or (group != ALL and len(chosen) == len(every)):
                continue
            values = _by_patient(chosen)
            line: Line = dict(zip(Row._fields, key, strict=False))
            line |= {"patients": len(values), "structures": values.shape[1], "group": group}
            line |= {"value": macro(values), **interval([values], seed)}
            if line["feature"] != ENCODER:
                own = _by_patient([row for row in tables[(*key[:3], ENCODER)] if belongs(row)])
                ends = interval([own, values], seed)
                line |= {"difference": macro(own) - macro(values)}
                line |= {f"difference_{end}": value for end, value in ends.items()}
            lines.append(line)
    return lines


def _by_patient(rows: Sequence[Row]) -> Floats:
    """Return the values as (P, S), NaN where there is none."""
    patients, p = np.unique([row.patient for row in rows], return_inverse=True)
    structures, s = np.unique([row.structure for row in rows], return_inverse=True)
    table = np.full((len(patients), len(structures)), np.nan)
    table[p, s] = [row.value for row in rows]
    return table


def write(result: dict[str, Any], folder: Path) -> list[Path]:
    """Write the files of a probe into ``folder``, all or none; return their paths.

    Raises:
        InputError: the folder cannot be written to.
    """
    rows = [dict(zip(Row._fields, row, strict=True)) for row in result["rows"]]
    with staged(folder, last=FILES[0]) as staging:
        write_json(staging / FILES[0], {key: value for key, value in result.items() if key != "rows"})
        write_text(staging / FILES[1], csv_text(rows))
        write_text(staging / FILES[2], page(result))
    return [folder / name for name in FILES]


def page(result: dict[str, Any]) -> str:
    """Return the page of a probe as Markdown; it begins with whether the encoder beats each baseline."""
    metrics = result["metrics"]
    headlines = [m for m in metrics if (m["metric"], m["group"], m["feature"]) == (AUROC, ALL, ENCODER)]
    lines = [*(_verdict(one, metrics) for one in headlines), "", _pretrained(result), "", _made_with(result)]
    for one in headlines:
        source, window = one["source"], one["window"]
        chosen = [m for m in metrics if (m["source"], m["window"]) == (source, window)]
        lines += ["", f"## {source.capitalize()}, window of {window} voxels", "", *_metrics(chosen)]
        lines += ["", *_structures(result["rows"], source, window)]
    if result["notes"]:
        lines += ["", "Notes:", "", *(f"- {note}" for note in result["notes"])]
    return "\n".join(lines) + "\n"


def _verdict(own: Line, metrics: list[Line]) -> str:
    """Return the sentence that says by how much the encoder's AUROC is above each baseline's."""
    same = ("source", "window", "metric", "group")
    against = [m for m in metrics if m is not own and all(m[key] == own[key] for key in same)]
    verdicts = "; ".join(f"{_verb(one)} {one['feature']}: {_signed(one)}" for one in against)
    return (
        f"At a window of {own['window']} voxels ({own['source']}, {own['structures']} structures, {own['patients']} "
        f"patients) the encoder's AUROC is {own['value']:.3f}; it {verdicts} (95 % interval, paired over patients)."
    )


def _verb(line: Line) -> str:
    if line["difference_low"] is None:
        return "cannot be told from"
    return "beats" if line["difference_low"] > 0 else "is below" if line["difference_high"] < 0 else "is level with"


def _signed(line: Line) -> str:
    low, high = line["difference_low"], line["difference_high"]
    return f"{line['difference']:+.3f}" + ("" if low is None else f" ({low:+.3f} to {high:+.3f})")


def _pretrained(result: dict[str, Any]) -> str:
    seen, patients = result["checkpoint"]["pretrained_on"], result["data"]["patients"]
    if seen is None:
        return "The checkpoint does not state which patients' images it was pretrained on."
    names = f" ({', '.join(seen)})" if seen else ""
    return f"Pretraining used images, without labels, of {len(seen)} of the {len(patients)} patients{names}."


def _made_with(result: dict[str, Any]) -> str:
    checkpoint, data, settings = result["checkpoint"], result["data"], result["settings"]
    counts = "; ".join(f"{source}: {n} of {data['volumes'][source]} volumes" for source, n in data["tokens"].items())
    return (
        f"Encoder of {checkpoint['name']} ({checkpoint['sha256'][:12]}), frozen. Tokens of {counts}. Random weights: "
        f"mean of {settings['random']} encoders of the same shape. Apart: {', '.join(data['apart']) or 'none'}. Seed "
        f"{settings['seed']}, library {result['library_version']}, commit {result['commit'] or 'not known'}."
    )


def _metrics(lines: list[Line]) -> list[str]:
    rows = []
    for line in lines:
        interval = "" if line["low"] is None else f" ({line['low']:.3f} to {line['high']:.3f})"
        difference = "" if line["feature"] == ENCODER else _signed(line)
        cells = (line["metric"], line["group"], str(line["patients"]), line["feature"])
        rows.append([*cells, f"{line['value']:.3f}{interval}", difference])
    return markdown_table(["metric", "of", "patients", "feature", "mean (95 % interval)", "encoder minus it"], rows)


def _structures(rows: list[Row], source: str, window: int) -> list[str]:
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if (row.source, row.window, row.metric) == (source, window, AUROC):
            values[row.structure][row.feature].append(row.value)
    features = list(next(iter(values.values())))
    cells = [
        [name, str(len(one[ENCODER])), *(f"{statistics.fmean(one[f]):.3f}" for f in features)]
        for name, one in sorted(values.items())
    ]
    return markdown_table([f"{AUROC} of", "patients", *features], cells)
