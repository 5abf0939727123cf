"""Tables of rows, one for each model, volume and setting: summaries, differences, and files in JSON, CSV, Markdown."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from MAESILLib.metrics.catalogue import CATALOGUE, markdown_table, metric_key, mode_of, value_of
from MAESILLib.metrics.statistics import mean_sd, paired_difference
from MAESILLib.runtime.files import csv_text, write_json, write_text

COLUMNS = (
    "harmonic",
    "baseline_biharmonic_psnr_masked_db",
    "baseline_nearest_psnr_masked_db",
    "baseline_mean_psnr_masked_db",
    "mae",
    "ssim",
    "border_index",
    "baseline_harmonic_border_index",
)
"""Metrics of the Markdown table, after the PSNR."""

WITHOUT_COMPLETION = "Hidden patches are the decoder's own (`--no-completion`)."
WITHOUT_LPIPS = "LPIPS is left out: its weights are not at hand (`--lpips FOLDER`)."

METRICS = {
    "psnr_db": (CATALOGUE["psnr_masked_db"].heading, CATALOGUE["psnr_masked_db"]),
    "ssim": (CATALOGUE["ssim_composite"].heading, CATALOGUE["ssim_composite"]),
    "lpips": (CATALOGUE["lpips"].title, CATALOGUE["lpips"]),
}
"""Metrics of which differences are taken, by their names there: titles, and how they are written."""


def headings(metrics: Sequence[str]) -> list[str]:
    """Return the headings of columns of metrics, named as :func:`MAESILLib.metrics.catalogue.metric_key` takes them."""
    return [CATALOGUE[metric_key(metric, "masked")].heading for metric in metrics]


def cells(row: dict[str, Any], metrics: Sequence[str]) -> list[str]:
    """Return the metrics of a row or a summary under :func:`headings`; nothing for one without a value."""
    keys = [metric_key(metric, mode_of(row)) for metric in metrics]
    return [CATALOGUE[key].number(row.get(key)) for key in keys]


def summarise(rows: list[dict[str, Any]], by: Sequence[str] = ("checkpoint", "setting")) -> list[dict[str, Any]]:
    """Return mean and standard deviation over volumes for each combination of the columns ``by``."""
    summary = []
    for values in dict.fromkeys(tuple(row[key] for key in by) for row in rows):
        chosen = [row for row in rows if tuple(row[key] for key in by) == values]
        line: dict[str, Any] = {**dict(zip(by, values, strict=True)), "volumes": len(chosen)}
        for key in dict.fromkeys(k for row in chosen for k in row if k != "mask_ratio"):
            numbers = [row[key] for row in chosen if isinstance(row.get(key), float)]
            # a metric is summarised if every volume has it
            if len(numbers) == len(chosen):
                mean, sd = mean_sd(numbers)
                line |= {key: round(mean, 4), f"{key}_sd": None if sd is None else round(sd, 4)}
        margins = [margin for row in chosen if (margin := over_harmonic(row)) is not None]
        if margins:
            line["over_harmonic_db"] = round(mean_sd(margins)[0], 4)
            line["least_over_harmonic_db"] = round(min(margins), 4)
        summary.append(line)
    return summary


def over_harmonic(row: dict[str, Any]) -> float | None:
    """Return the PSNR above that of the harmonic fill in dB; None where one of them has no value."""
    made, fill = value_of(row, "psnr"), value_of(row, "harmonic")
    return None if made is None or fill is None else made - fill


def differences(
    rows: list[dict[str, Any]], patients: dict[str, str], by: str = "checkpoint", within: Sequence[str] = ("setting",)
) -> list[dict[str, Any]]:
    """Return each further checkpoint minus the first, paired by volume, for every setting and metric.

    Args:
        patients: of each volume; intervals resample them.
        by: column whose values are compared.
        within: columns in which compared rows are alike.
    """
    found: dict[Any, dict[str, float]] = defaultdict(dict)
    for row in rows:
        for name in METRICS:
            value = value_of(row, name.removesuffix("_db"))
            if value is not None:
                found[row[by], tuple(row[key] for key in within), name][row["volume"]] = value
    lines = []
    first, *others = dict.fromkeys(row[by] for row in rows)
    for other in others:
        for group in dict.fromkeys(tuple(row[key] for key in within) for row in rows):
            for name in METRICS:
                if pair := paired_difference(found[other, group, name], found[first, group, name], patients):
                    rounded = {k: round(v, 5) if isinstance(v, float) else v for k, v in pair.items()}
                    where = {by: other, "minus": first, **dict(zip(within, group, strict=True)), "metric": name}
                    lines.append(where | rounded)
    return lines


def write(result: dict[str, Any], folder: Path, name: str, text: str) -> list[Path]:
    """Write the files ``name``.json (``result``), .csv (its rows) and .md (``text``) into ``folder``; return them."""
    paths = [folder / f"{name}.{suffix}" for suffix in ("json", "csv", "md")]
    write_json(paths[0], result)
    write_text(paths[1], csv_text(result["rows"]))
    write_text(paths[2], text)
    return paths


def protocol_text(result: dict[str, Any]) -> str:
    """Return what an evaluation measured, and how."""
    data, window = result["data"], result["window_hu"]
    window_hu = window if isinstance(window, str) else f"{window[0]:g} to {window[1]:g} HU"
    commit = f", commit {result['commit']}" if result["commit"] else ""
    if result["masks"] is None:
        masks = f"mask seed {result['settings'][0]['seed']}"
    else:
        masks = f"masks of {result['masks']['name']} ({result['masks']['sha256'][:12]})"
    sentences = [
        f"{len(data['volumes'])} volumes (split {data['split']}, data {data['fingerprint']}), "
        f"{result['spacing_mm']:g} mm, window {window_hu}, {masks}, "
        f"{result['precision']} on {result['device']}, MAESIL {result['library_version']}{commit}."
    ]
    sentences += [] if result["completion"] else [WITHOUT_COMPLETION]
    sentences += [] if result["lpips"] else [WITHOUT_LPIPS]
    return " ".join(sentences)


def markdown(result: dict[str, Any]) -> str:
    """Return the summaries of an evaluation as a Markdown table, and the differences between checkpoints."""
    lines = [protocol_text(result), "Mean over volumes. Hidden: every hidden voxel, from one pass; whole: every voxel."]
    for checkpoint in result["checkpoints"]:
        if checkpoint["trained_on"]:
            lines.append(f"{checkpoint['name']} was TRAINED on {len(checkpoint['trained_on'])} of these volumes.")
    columns = [*COLUMNS, *(["lpips"] if result["lpips"] else [])]
    rows = []
    for row in result["summary"]:
        (psnr,) = cells(row, ["psnr"])
        hidden_and_whole = [psnr, ""] if mode_of(row) == "masked" else ["", psnr]
        rows.append([row["checkpoint"], row["setting"], *hidden_and_whole, *cells(row, columns)])
    header = ["checkpoint", "setting", "PSNR hidden (dB)", "PSNR whole (dB)", *headings(columns)]
    lines += ["", *markdown_table(header, rows)]
    if result["differences"]:
        lines += [
            "",
            f"Differences from {result['differences'][0]['minus']}: mean over patients, 95 % interval by bootstrap "
            "over patients, volumes on which it is higher.",
            "",
            *differences_table(result["differences"], ("checkpoint", "setting")),
        ]
    return "\n".join(lines) + "\n"


def differences_table(lines: list[dict[str, Any]], columns: Sequence[str]) -> list[str]:
    """Return a Markdown table of :func:`differences`, after the columns that name them."""
    rows = []
    for line in lines:
        title, metric = METRICS[line["metric"]]
        digits = metric.digits
        interval = "" if line["low"] is None else f"{line['low']:+.{digits}f} to {line['high']:+.{digits}f}"
        above = f"{line['above']} of {line['volumes']}"
        rows.append([*(line[c] for c in columns), title, f"{line['mean']:+.{digits}f}", interval, above])
    return markdown_table([*columns, "metric", "difference", "95 %", "higher"], rows)
