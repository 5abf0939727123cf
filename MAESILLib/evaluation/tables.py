"""Tables of rows, one for each model, volume and setting: summaries, differences, and files in JSON, CSV, Markdown."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from MAESILLib.metrics.catalogue import CATALOGUE, metric_key, mode_of
from MAESILLib.metrics.statistics import paired_difference, spread
from MAESILLib.runtime.files import write_json, write_text

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


def psnr_key(row: dict[str, Any]) -> str:
    """Return the key of the PSNR that a row's mode is about."""
    return metric_key("psnr", mode_of(row))


def ssim_key(row: dict[str, Any]) -> str:
    """Return the key of a row's SSIM: of the composite where a share is hidden, else of the whole volume."""
    return metric_key("ssim", mode_of(row))


def headline(row: dict[str, Any]) -> float | None:
    """Return the PSNR of a row or a summary in dB that its mode is about."""
    return row.get(psnr_key(row))


def headline_ssim(row: dict[str, Any]) -> float | None:
    """Return the SSIM of a row or a summary."""
    return row.get(ssim_key(row))


def harmonic(row: dict[str, Any]) -> float | None:
    """Return the PSNR of the harmonic fill beside :func:`headline`; None where nothing is hidden."""
    return row.get(metric_key("harmonic", mode_of(row)))


METRICS: dict[str, tuple[str, int, Callable[[dict[str, Any]], str]]] = {
    "psnr_db": (CATALOGUE["psnr_masked_db"].heading, CATALOGUE["psnr_masked_db"].digits, psnr_key),
    "ssim": (CATALOGUE["ssim_composite"].heading, CATALOGUE["ssim_composite"].digits, ssim_key),
    "lpips": (CATALOGUE["lpips"].title, CATALOGUE["lpips"].digits, lambda row: "lpips"),
}
"""Metrics of which differences are taken: title, digits, and their key in a row."""


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
            _add_spread(line, key, [row.get(key) for row in chosen])
        kind = "complete" if "psnr_complete_db" in chosen[0] else "masked"
        pairs = [(row.get(f"psnr_{kind}_db"), row.get(f"baseline_harmonic_psnr_{kind}_db")) for row in chosen]
        margins = [made - fill for made, fill in pairs if made is not None and fill is not None]
        if margins:
            line["over_harmonic_db"] = round(spread(margins).mean, 4)
            line["least_over_harmonic_db"] = round(min(margins), 4)
        summary.append(line)
    return summary


def _add_spread(line: dict[str, Any], key: str, values: list[Any]) -> None:
    """Add mean and deviation of numbers, if every volume has one."""
    if all(isinstance(value, float) for value in values):
        found = spread(values)
        line[key] = round(found.mean, 4)
        line[f"{key}_sd"] = None if found.sd is None else round(found.sd, 4)


def differences(
    rows: list[dict[str, Any]],
    patients: dict[str, str],
    by: str = "checkpoint",
    within: Sequence[str] = ("setting",),
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Return each further checkpoint minus the first, paired by volume, for every setting and metric.

    Args:
        patients: of each volume; intervals resample them.
        by: column whose values are compared.
        within: columns in which compared rows are alike.
        seed: of the resampling.
    """
    lines = []
    names = list(dict.fromkeys(row[by] for row in rows))
    for name in names[1:]:
        for values in dict.fromkeys(tuple(row[key] for key in within) for row in rows):
            alike = [row for row in rows if tuple(row[key] for key in within) == values]
            for metric, (_, _, key_of) in METRICS.items():
                first, second = (
                    {
                        row["volume"]: value
                        for row in alike
                        if row[by] == one and (value := row.get(key_of(row))) is not None
                    }
                    for one in (name, names[0])
                )
                found = paired_difference(first, second, patients, seed)
                if found is not None:
                    rounded = {k: round(v, 5) if isinstance(v, float) else v for k, v in vars(found).items()}
                    where = {by: name, "minus": names[0], **dict(zip(within, values, strict=True)), "metric": metric}
                    lines.append(where | rounded)
    return lines


def write(result: dict[str, Any], folder: Path, name: str, text: str) -> list[Path]:
    """Write the files ``name``.json (``result``), .csv (its rows) and .md (``text``) into ``folder``; return them."""
    paths = [folder / f"{name}.{suffix}" for suffix in ("json", "csv", "md")]
    write_json(paths[0], result)
    columns = list(dict.fromkeys(key for row in result["rows"] for key in row))
    packed = io.StringIO(newline="")
    writer = csv.DictWriter(packed, columns, restval="")
    writer.writeheader()
    writer.writerows(result["rows"])
    write_text(paths[1], packed.getvalue())
    write_text(paths[2], text)
    return paths


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    return [f"| {' | '.join(header)} |", "|---" * len(header) + "|", *(f"| {' | '.join(row)} |" for row in rows)]


def masks_of(result: dict[str, Any]) -> str:
    """Return where an evaluation's masks come from."""
    masks = result["masks"]
    if masks is None:
        return f"mask seed {result['settings'][0]['seed']}"
    return f"masks of {masks['name']} ({masks['sha256'][:12]})"


def protocol_text(result: dict[str, Any]) -> str:
    """Return what an evaluation measured, and how."""
    data, window = result["data"], result["window_hu"]
    window_hu = window if isinstance(window, str) else f"{window[0]:g} to {window[1]:g} HU"
    commit = f", commit {result['commit']}" if result["commit"] else ""
    sentences = [
        f"{len(data['volumes'])} volumes (split {data['split']}, data {data['fingerprint']}), "
        f"{result['spacing_mm']:g} mm, window {window_hu}, {masks_of(result)}, "
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
        hidden_and_whole = ["", number(headline(row))] if mode_of(row) != "masked" else [number(headline(row)), ""]
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
        title, digits, _ = METRICS[line["metric"]]
        interval = "" if line["low"] is None else f"{line['low']:+.{digits}f} to {line['high']:+.{digits}f}"
        above = f"{line['above']} of {line['volumes']}"
        rows.append([*(line[c] for c in columns), title, f"{line['mean']:+.{digits}f}", interval, above])
    return markdown_table([*columns, "metric", "difference", "95 %", "higher"], rows)


def number(value: float | None, digits: int = 2) -> str:
    """Return a value as tables write it; nothing for None."""
    return "" if value is None else f"{value:.{digits}f}"


def mean_sd(line: dict[str, Any], key: str, digits: int) -> str:
    """Return the mean of a metric in a summary, and its deviation if there is one."""
    sd = line.get(f"{key}_sd")
    return number(line.get(key), digits) + ("" if sd is None else f" ({sd:.{digits}f})")
