"""The files of a probe: JSON, CSV, Markdown and the few-label curve, all of them or none."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from MAESILLib.files import staged, write_json, write_text
from MAESILLib.probe.curve import draw_curve
from MAESILLib.probe.summary import CHANCE, FIGURES

TITLES = {"auroc": "AUROC", "average_precision": "AP"}
FILES = ("probe.json", "probe.csv", "probe.md", "curve.png")


def write(result: dict[str, Any], folder: Path) -> list[Path]:
    """Write the files of a probe into ``folder``, all or none; return their paths.

    Raises:
        InputError: the folder cannot be written to.
        DiskFullError: the disk is full.
    """
    with staged(folder, last=FILES[0]) as staging:
        write_json(staging / FILES[0], result)
        write_text(staging / FILES[1], _csv(result["rows"]))
        write_text(staging / FILES[2], markdown(result))
        draw_curve(staging / FILES[3], result)
    return [folder / name for name in FILES]


def _csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def markdown(result: dict[str, Any]) -> str:
    """Return the tables of a probe as Markdown."""
    data, checkpoint = result["data"], result["checkpoint"]
    commit = f", commit {result['commit']}" if result["commit"] else ""
    lines = [
        f"Encoder of {checkpoint['name']} ({checkpoint['sha256'][:12]}), frozen; {len(data['training_volumes'])} "
        f"labelled training volumes, {len(data['volumes'])} of held-out patients, data {data['fingerprint']}, seed "
        f"{result['settings']['seed']}. Library {result['library_version']}{commit}.",
    ]
    if checkpoint["trained_on"]:
        lines.append(f"The encoder was TRAINED on {len(checkpoint['trained_on'])} of the held-out volumes.")
    lines += ["", *_summary(result), "", *_differences(result), "", *_few_labels(result), "", *_choices(result), ""]
    lines += [f"- {key}: {text}" for key, text in result["protocol"].items()]
    notes = [*result["notes"], *_left_out(data["left_out"])]
    if notes:
        lines += ["", "Notes:", "", *(f"- {note}" for note in notes)]
    return "\n".join(lines) + "\n"


def _summary(result: dict[str, Any]) -> list[str]:
    header = ["class", "feature", "block", "AUROC", "AP", "AP of chance", "patients"]
    rows = [
        [
            _cell(line["class"]),
            line["feature"],
            ", ".join(map(str, line["blocks"])),
            *(_with_sd(line, key) for key in FIGURES),
            f"{line[CHANCE]:.3f}",
            str(line["patients"]),
        ]
        for line in result["summary"]
    ]
    return [*_table(header, rows), "", "Probes fitted on all training cases; mean (sd) over held-out patients."]


def _differences(result: dict[str, Any]) -> list[str]:
    rows = []
    for line in result["differences"]:
        interval = "" if line["low"] is None else f"{line['low']:+.3f} to {line['high']:+.3f}"
        difference = f"maesil - {line['minus']}"
        higher = f"{line['above']} of {line['volumes']}"
        rows.append(
            [_cell(line["class"]), difference, TITLES[line["figure"]], f"{line['mean']:+.3f}", interval, higher]
        )
    text = "Paired: mean over patients, 95 % interval by bootstrap over patients, volumes on which maesil is higher."
    return [*_table(["class", "difference", "figure", "mean", "95 %", "higher"], rows), "", text]


def _few_labels(result: dict[str, Any]) -> list[str]:
    rows = [
        [
            _cell(line["class"]),
            line["feature"],
            f"{line['cases']} (all)" if line["all_cases"] else str(line["cases"]),
            str(line["draws"]),
            *(_with_sd(line, key) for key in FIGURES),
        ]
        for line in result["curve"]
    ]
    text = "Mean (sd) over draws of the training cases, each the mean over held-out patients."
    return [*_table(["class", "feature", "cases", "draws", "AUROC", "AP"], rows), "", text]


def _choices(result: dict[str, Any]) -> list[str]:
    rows = []
    for choice in result["choices"]:
        title = f"random, seed {choice['seed']}" if choice["name"] == "random" else choice["name"]
        for block, value in choice["by_block"].items():
            # as JSON has it, the number of a block is text
            number = int(block)
            chosen = "yes" if number == choice["block"] else ""
            rows.append([title, str(number or ""), f"{value:.3f}", chosen])
    text = "Cross-validation across all training cases, mean over patients (and classes), with the best C of each."
    return [*_table(["feature", "block", "AUROC", "chosen"], rows), "", text]


def _left_out(left_out: list[dict[str, str]]) -> list[str]:
    reasons: dict[str, list[str]] = {}
    for one in left_out:
        reasons.setdefault(one["reason"], []).append(one["volume"])
    return [f"left out ({why}): {', '.join(volumes)}" for why, volumes in reasons.items()]


def _with_sd(line: dict[str, Any], key: str) -> str:
    sd = line[f"{key}_sd"]
    return f"{line[key]:.3f}" + ("" if sd is None else f" ({sd:.3f})")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(header)} |", "|---" * len(header) + "|", *(f"| {' | '.join(row)} |" for row in rows)]
