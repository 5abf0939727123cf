"""An evaluation's tables: summaries over volumes, checkpoints side by side, and the files JSON, CSV and Markdown."""

from __future__ import annotations

import csv
import io
import statistics
from pathlib import Path
from typing import Any

from MAESILLib.evaluation.statistics import paired_difference
from MAESILLib.files import write_json, write_text

HEADER = (
    "checkpoint",
    "setting",
    "PSNR hidden (dB)",
    "PSNR whole (dB)",
    "harmonic fill (dB)",
    "nearest (dB)",
    "mean (dB)",
    "MAE (HU)",
    "SSIM",
    "border index",
    "of harmonic",
)

WITHOUT_LPIPS = "LPIPS is left out: its weights are not at hand (`--lpips FOLDER`)."


def mode_of(row: dict[str, Any]) -> str:
    """Return what a row's figures refer to: ``masked``, ``complete`` or ``autoencoding``."""
    return next((kind for kind in ("complete", "autoencoding") if f"psnr_{kind}_db" in row), "masked")


def headline(row: dict[str, Any]) -> float | None:
    """Return the PSNR of a row or a summary in dB that its mode is about."""
    value: float | None = row.get(f"psnr_{mode_of(row)}_db")
    return value


def headline_ssim(row: dict[str, Any]) -> float | None:
    """Return the SSIM of a row or a summary: of the composite where a share is hidden, else of the whole volume."""
    kind = mode_of(row)
    value: float | None = row.get("ssim_composite" if kind == "masked" else f"ssim_{kind}")
    return value


def harmonic(row: dict[str, Any]) -> float | None:
    """Return the PSNR of the harmonic fill beside :func:`headline`; None where nothing is hidden."""
    value: float | None = row.get(f"baseline_harmonic_psnr_{'complete' if mode_of(row) == 'complete' else 'masked'}_db")
    return value


def summarise(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return mean and standard deviation over volumes for each checkpoint and setting."""
    keys = dict.fromkeys((row["checkpoint"], row["setting"]) for row in rows)
    summary = []
    for checkpoint, setting in keys:
        chosen = [row for row in rows if (row["checkpoint"], row["setting"]) == (checkpoint, setting)]
        line: dict[str, Any] = {"checkpoint": checkpoint, "setting": setting, "volumes": len(chosen)}
        for key in dict.fromkeys(k for row in chosen for k in row):
            values = [row[key] for row in chosen if isinstance(row.get(key), float)]
            if len(values) == len(chosen) and key != "hidden_share":
                line[key] = round(statistics.fmean(values), 4)
                line[f"{key}_sd"] = round(statistics.stdev(values), 4) if len(values) > 1 else None
        kind = "complete" if "psnr_complete_db" in chosen[0] else "masked"
        margins = [
            row[f"psnr_{kind}_db"] - row[f"baseline_harmonic_psnr_{kind}_db"]
            for row in chosen
            if None not in (row.get(f"psnr_{kind}_db"), row.get(f"baseline_harmonic_psnr_{kind}_db"))
        ]
        if margins:
            line["over_harmonic_db"] = round(statistics.fmean(margins), 4)
            line["least_over_harmonic_db"] = round(min(margins), 4)
        summary.append(line)
    return summary


def side_by_side(rows: list[dict[str, Any]], patients: dict[str, str], seed: int = 0) -> list[dict[str, Any]]:
    """Return each further checkpoint minus the first, paired by volume, in PSNR and SSIM of every setting.

    Args:
        patients: of each volume; intervals resample them.
        seed: of the resampling.
    """
    checkpoints = list(dict.fromkeys(row["checkpoint"] for row in rows))
    settings = list(dict.fromkeys(row["setting"] for row in rows))
    lines = []
    for checkpoint in checkpoints[1:]:
        for setting in settings:
            for figure, of in (("psnr_db", headline), ("ssim", headline_ssim)):
                first, second = (
                    {
                        row["volume"]: value
                        for row in rows
                        if (row["checkpoint"], row["setting"]) == (name, setting) and (value := of(row)) is not None
                    }
                    for name in (checkpoint, checkpoints[0])
                )
                found = paired_difference(first, second, patients, seed)
                if found is not None:
                    rounded = {k: round(v, 5) if isinstance(v, float) else v for k, v in vars(found).items()}
                    compared = {"checkpoint": checkpoint, "minus": checkpoints[0], "setting": setting}
                    lines.append({**compared, "figure": figure, **rounded})
    return lines


def write(result: dict[str, Any], folder: Path | str) -> list[Path]:
    """Write evaluation.json, .csv and .md into ``folder``; return their paths."""
    folder = Path(folder)
    paths = [folder / f"evaluation.{suffix}" for suffix in ("json", "csv", "md")]
    write_json(paths[0], result)
    columns = list(dict.fromkeys(key for row in result["rows"] for key in row))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, restval="")
    writer.writeheader()
    writer.writerows(result["rows"])
    write_text(paths[1], text.getvalue())
    write_text(paths[2], markdown(result))
    return paths


def markdown(result: dict[str, Any]) -> str:
    """Return the summaries as a Markdown table, and the checkpoints side by side."""
    data = result["data"]
    lines = [
        f"{len(data['volumes'])} volumes (split {data['split']}, data {data['fingerprint']}), "
        f"{result['spacing_mm']:g} mm, window {result['window_hu']}, seed {result['settings'][0]['seed']}; "
        "mean over volumes. Hidden: every hidden voxel, from one pass; whole: every voxel. "
        f"Library {result['library_version']}" + (f", commit {result['commit']}." if result["commit"] else "."),
    ]
    for checkpoint in result["checkpoints"]:
        if checkpoint["trained_on"]:
            lines.append(f"{checkpoint['name']} was TRAINED on {len(checkpoint['trained_on'])} of these volumes.")
    header = [*HEADER, *(["LPIPS"] if result["lpips"] else [])]
    lines += ["", f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for row in result["summary"]:
        cells = [row["checkpoint"], row["setting"], *_cells(row)]
        lines.append(f"| {' | '.join(cells + ([number(row.get('lpips'), 4)] if result['lpips'] else []))} |")
    if not result["lpips"]:
        lines += ["", WITHOUT_LPIPS]
    if result["differences"]:
        lines += ["", *_differences(result["differences"])]
    return "\n".join(lines) + "\n"


def _cells(row: dict[str, Any]) -> list[str]:
    is_masked = mode_of(row) == "masked"
    kind = "masked" if is_masked else mode_of(row)
    return [
        number(headline(row) if is_masked else None),
        number(None if is_masked else headline(row)),
        number(harmonic(row)),
        number(row.get("baseline_nearest_psnr_masked_db")),
        number(row.get("baseline_mean_psnr_masked_db")),
        number(row.get(f"mae_{kind}_hu"), 1),
        number(headline_ssim(row), 4),
        number(row.get("border_index")),
        number(row.get("baseline_harmonic_border_index")),
    ]


def _differences(lines: list[dict[str, Any]]) -> list[str]:
    found = [
        f"Differences from {lines[0]['minus']}: mean over patients, 95 % interval by bootstrap over patients, volumes "
        "on which it is higher.",
        "",
        "| checkpoint | setting | figure | difference | 95 % | higher |",
        "|---|---|---|---|---|---|",
    ]
    for line in lines:
        digits = 2 if line["figure"] == "psnr_db" else 4
        title = "PSNR (dB)" if line["figure"] == "psnr_db" else "SSIM"
        interval = "" if line["low"] is None else f"{line['low']:+.{digits}f} to {line['high']:+.{digits}f}"
        found.append(
            f"| {line['checkpoint']} | {line['setting']} | {title} | {line['mean']:+.{digits}f} | {interval} | "
            f"{line['above']} of {line['volumes']} |"
        )
    return found


def number(value: float | None, digits: int = 2) -> str:
    """Return a value as tables write it; nothing for None."""
    return "" if value is None else f"{value:.{digits}f}"
