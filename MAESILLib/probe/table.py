"""The files of a probe: JSON, CSV and a page, all of them or none."""

from __future__ import annotations

import csv
import io
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from MAESILLib.probe.features import ENCODER
from MAESILLib.probe.probe import ALL, AUROC
from MAESILLib.runtime.files import staged, write_json, write_text

FILES = ("probe.json", "probe.csv", "probe.md")
Line = dict[str, Any]


def write(result: dict[str, Any], folder: Path) -> list[Path]:
    """Write the files of a probe into ``folder``, all or none; return their paths.

    Raises:
        InputError: the folder cannot be written to.
        DiskFullError: the disk is full.
    """
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(result["rows"][0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(result["rows"])
    with staged(folder, last=FILES[0]) as staging:
        write_json(staging / FILES[0], {key: value for key, value in result.items() if key != "rows"})
        write_text(staging / FILES[1], text.getvalue())
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
    return _table(["metric", "of", "patients", "feature", "mean (95 % interval)", "encoder minus it"], rows)


def _structures(rows: list[Line], source: str, window: int) -> list[str]:
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if (row["source"], row["window"], row["metric"]) == (source, window, AUROC):
            values[row["structure"]][row["feature"]].append(row["value"])
    features = list(next(iter(values.values())))
    cells = [
        [name.replace("|", "\\|"), str(len(one[ENCODER])), *(f"{statistics.fmean(one[f]):.3f}" for f in features)]
        for name, one in sorted(values.items())
    ]
    return _table([f"{AUROC} of", "patients", *features], cells)


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(header)} |", "|---" * len(header) + "|", *(f"| {' | '.join(row)} |" for row in rows)]
