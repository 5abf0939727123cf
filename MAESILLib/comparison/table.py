"""The table of the comparison: mean and deviation over volumes by method, mode and data set, and paired differences."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from MAESILLib.comparison.measuring import AUTOENCODING
from MAESILLib.comparison.reference import COSINES
from MAESILLib.comparison.runs import MAESIL, title_of
from MAESILLib.errors import InputError
from MAESILLib.evaluation.statistics import paired_difference, spread
from MAESILLib.evaluation.tables import WITHOUT_LPIPS
from MAESILLib.files import read_json, write_json, write_text

FIGURES = {
    "psnr_db": ("PSNR (dB)", 2),
    "ssim": ("SSIM", 4),
    "lpips": ("LPIPS, lower is better", 3),
    "mae_hu": ("MAE (HU)", 1),
}
"""Figures of the tables: title and digits."""
ALL = "all volumes"
COSINES_TOLD = (
    " cosines: each patch by as many of its lowest cosines as MAESIL has numbers for it, nothing learnt; where "
    "model.direct_head is on, MAESIL's auto-encoding starts there."
)


def summarise(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return mean and deviation over volumes for each method, mode and data set, and for all volumes together."""
    lines = []
    for method, mode in _unique((row["method"], row["mode"]) for row in rows):
        chosen = [row for row in rows if (row["method"], row["mode"]) == (method, mode)]
        for dataset in (*_unique(row["dataset"] for row in chosen), ALL):
            part = [row for row in chosen if dataset in (ALL, row["dataset"])]
            line = {"method": method, "mode": mode, "dataset": dataset, "volumes": len(part)}
            for key in (*FIGURES, "border_index"):
                values = [row[key] for row in part if row[key] is not None]
                if len(values) == len(part):
                    found = spread(values)
                    line[key], line[f"{key}_sd"] = found.mean, found.sd
            lines.append(line)
    return lines


def differences(rows: list[dict[str, Any]], seed: int = 0) -> list[dict[str, Any]]:
    """Return MAESIL's auto-encoding minus each other method, paired by volume, for each data set and all together.

    Args:
        seed: of the bootstrap over patients.
    """
    own = [row for row in rows if row["method"] == MAESIL and row["mode"] == AUTOENCODING]
    patients = {row["volume"]: row["patient"] for row in rows}
    lines = []
    for method in _unique(row["method"] for row in rows if row["method"] != MAESIL):
        theirs = [row for row in rows if row["method"] == method]
        for dataset in (*_unique(row["dataset"] for row in own), ALL):
            for key in ("psnr_db", "ssim", "lpips"):
                first, second = (
                    {r["volume"]: r[key] for r in of if dataset in (ALL, r["dataset"]) and r[key] is not None}
                    for of in (own, theirs)
                )
                found = paired_difference(first, second, patients, seed)
                if found is not None:
                    lines.append({"method": method, "dataset": dataset, "figure": key, **vars(found)})
    return lines


def markdown(result: dict[str, Any]) -> str:
    """Return the tables of a comparison as Markdown."""
    budget, data = result["budget"], result["data"]
    lines = [
        f"Every method that learns: {budget['samples']} superpatches of {budget['crop_size']} in {budget['updates']} "
        f"updates, seed {budget['seed']}, from the {data['training_volumes']} training volumes of data "
        f"{data['fingerprint']}; measured on {len(data['volumes'])} volumes of other patients, "
        f"{result['spacing_mm']:g} mm, window {result['window_hu'][0]:g} to {result['window_hu'][1]:g} HU. "
        f"Library {result['library_version']}" + (f", commit {result['commit']}." if result["commit"] else "."),
        "",
        *_methods_table(result["methods"]),
        "",
        *_trials(result),
        *_figures_table(result),
        "",
        "Mean (sd) over volumes. auto-encoding: the whole input is seen; complete: each patch predicted from passes "
        "that hid it; dual 0.75: hidden patches alone. Only auto-encoding compares the methods."
        + (COSINES_TOLD if any(method["method"] == COSINES for method in result["methods"]) else ""),
    ]
    if result["differences"]:
        lines += [
            "",
            *_differences_table(result["differences"]),
            "",
            "Mean over patients, 95 % interval by bootstrap over patients (none for a single patient), and on how many "
            "volumes MAESIL is higher.",
        ]
    if not result["lpips"]:
        lines += ["", WITHOUT_LPIPS]
    return "\n".join(lines) + "\n"


def remove_former(folder: Path) -> None:
    """Remove the figures that an earlier comparison in ``folder`` names: they would stand beside another's tables."""
    try:
        names = [str(name) for name in read_json(folder / "comparison.json")["figures"]]
    except (InputError, KeyError, TypeError):
        return
    for name in names:
        for suffix in ("png", "pdf"):
            (folder / f"figure-{name}.{suffix}").unlink(missing_ok=True)


def write(result: dict[str, Any], folder: Path) -> list[Path]:
    """Write comparison.json, .csv and .md into ``folder``; return their paths."""
    paths = [folder / f"comparison.{suffix}" for suffix in ("json", "csv", "md")]
    write_json(paths[0], result)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(result["rows"][0]), restval="")
    writer.writeheader()
    writer.writerows(result["rows"])
    write_text(paths[1], text.getvalue())
    write_text(paths[2], markdown(result))
    return paths


def _methods_table(methods: list[dict[str, Any]]) -> list[str]:
    rows = [
        [
            m["title"],
            f"`{m['network']}`",
            f"{m['parameters'] / 1e6:.2f} M" if m["parameters"] else "none",
            m["latent"],
            "" if m["learning_rate"] is None else f"{m['learning_rate']:g}",
            f"{m['training_seconds']} s" if m["updates"] else "none",
        ]
        for m in methods
    ]
    return _table(["method", "network", "parameters", "code of a superpatch", "learning rate", "training"], rows)


def _trials(result: dict[str, Any]) -> list[str]:
    wanted = result["budget"]["search"]
    if wanted is None:
        return ["One learning rate for all methods, not searched: it may suit some of them better than others.", ""]
    rates = ", ".join(f"{rate:g}" for rate in wanted["rates"])
    ends = {min(wanted["rates"]), max(wanted["rates"])}
    at_end = [method["title"] for method in result["methods"] if method["learning_rate"] in ends]
    beyond = f" At an end of them, so that a rate beyond may be better: {', '.join(at_end)}." if at_end else ""
    return [
        f"Learning rates: for each method the one of {rates} with the least loss in the second half of a trial of "
        f"{wanted['steps']} updates, on training samples.{beyond}",
        "",
    ]


def _figures_table(result: dict[str, Any]) -> list[str]:
    summary = result["summary"]
    datasets = _unique(line["dataset"] for line in summary)
    keys = [key for key in FIGURES if any(key in line for line in summary)]
    # one column of figures for each data set would be too wide: one row for each
    rows = []
    for line in sorted(summary, key=lambda one: datasets.index(one["dataset"])):
        cells = [f"{line['dataset']} ({line['volumes']})", title_of(line["method"]), line["mode"]]
        rows.append(cells + [_with_sd(line, key) for key in keys])
    return _table(["data set (volumes)", "method", "mode", *(FIGURES[key][0] for key in keys)], rows)


def _differences_table(lines: list[dict[str, Any]]) -> list[str]:
    rows = []
    for line in lines:
        title, digits = FIGURES[line["figure"]]
        interval = "" if line["low"] is None else f"{line['low']:+.{digits}f} to {line['high']:+.{digits}f}"
        above = f"{line['above']} of {line['volumes']}"
        mean = f"{line['mean']:+.{digits}f}"
        rows.append([f"MAESIL - {title_of(line['method'])}", line["dataset"], title, mean, interval, above])
    return _table(["difference", "data set", "figure", "mean", "95 %", "higher"], rows)


def _with_sd(line: dict[str, Any], key: str) -> str:
    if key not in line:
        return ""
    digits = FIGURES[key][1]
    sd = line[f"{key}_sd"]
    return f"{line[key]:.{digits}f}" + ("" if sd is None else f" ({sd:.{digits}f})")


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(header)} |", "|---" * len(header) + "|", *(f"| {' | '.join(row)} |" for row in rows)]


def _unique(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))
