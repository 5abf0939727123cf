"""The report page of an evaluation: one HTML file with tables, distributions, and the worst and best cases.

It needs nothing beside it: styles, script and pictures are inside, and nothing is loaded from elsewhere.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

from MAESILLib.evaluation.distribution import colour_of, distribution_svg
from MAESILLib.evaluation.figures import figure_path
from MAESILLib.evaluation.tables import (
    METRICS,
    WITHOUT_COMPLETION,
    harmonic,
    headline,
    headline_ssim,
    masks_of,
    mode_of,
    number,
)
from MAESILLib.files import write_text
from MAESILLib.resources import resource_path

NAME = "report.html"
CASES = 3
"""Worst and best cases of each checkpoint that are shown."""
PICTURE_WIDTH = 1000
"""Pixels."""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def write_page(result: dict[str, Any], folder: Path) -> Path:
    """Write report.html beside an evaluation's files.

    Args:
        result: what evaluation.json holds.
        folder: of this evaluation alone: pictures that lie there are taken for its own.
    """
    path = folder / NAME
    write_text(path, page(result, folder))
    return path


def page(result: dict[str, Any], folder: Path) -> str:
    """Return the page."""
    title = f"Evaluation of {', '.join(one['name'] for one in result['checkpoints'])}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        _protocol(result),
        *_warnings(result),
        "<h2>Mean over volumes</h2>",
        _table("summary", *_summary(result["summary"], result["lpips"])),
        "<p class=note>PSNR and SSIM of hidden patches where a share is hidden (dual, uniform), of every voxel for "
        "complete coverage (each patch predicted from passes that hid it) and auto-encoding (nothing hidden). The "
        "border index is 1 where no patch grid shows. A click on a column's head sorts.</p>",
        *_differences(result["differences"]),
        "<h2>Distribution over volumes</h2>",
        _legend(result),
        distribution_svg(result["rows"]),
        *_cases(result, folder),
        "<h2>Every volume</h2>",
        _filters(result["rows"]),
        _table("volumes", *_volumes(result["rows"], result["lpips"])),
    ]
    style, script = (resource_path(f"Report/report.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + f"\n<script>\n{script}</script>\n</body>\n</html>\n"
    )


def _protocol(result: dict[str, Any]) -> str:
    data, window = result["data"], result["window_hu"]
    shown = window if isinstance(window, str) else f"{window[0]:g} to {window[1]:g} HU"
    left_out = "" if result["lpips"] else " LPIPS is left out: its weights are not at hand."
    if not result["completion"]:
        left_out += f" {escape(WITHOUT_COMPLETION)}"
    commit = f", commit {result['commit']}" if result["commit"] else ""
    return (
        f"<p class=muted>{len(data['volumes'])} volumes (split {escape(data['split'])}, "
        f"data {escape(data['fingerprint'])}), "
        f"{result['spacing_mm']:g} mm, window {escape(shown)}, {escape(masks_of(result))}, "
        f"{escape(result['precision'])} on {escape(result['device'])}, MAESIL {escape(result['library_version'])}"
        f"{escape(commit)}.{left_out}</p>"
    )


def _warnings(result: dict[str, Any]) -> list[str]:
    return [
        f"<p class=warning>{escape(one['name'])} was trained on {len(one['trained_on'])} of these volumes or their "
        f"patients, first {escape(one['trained_on'][0])}: its figures say nothing about other patients.</p>"
        for one in result["checkpoints"]
        if one["trained_on"]
    ]


def _summary(summary: list[dict[str, Any]], has_lpips: bool) -> tuple[list[str], list[list[Any]]]:
    header = [
        "checkpoint",
        "setting",
        "volumes",
        "PSNR (dB)",
        "sd",
        "harmonic fill (dB)",
        "above it (dB)",
        "least (dB)",
    ]
    header += ["biharmonic (dB)", "nearest (dB)", "MAE (HU)", "SSIM", "border index", *(["LPIPS"] if has_lpips else [])]
    rows = [
        [
            line["checkpoint"],
            line["setting"],
            line["volumes"],
            number(headline(line)),
            number(line.get(f"psnr_{mode_of(line)}_db_sd")),
            number(harmonic(line)),
            number(line.get("over_harmonic_db")),
            number(line.get("least_over_harmonic_db")),
            number(line.get("baseline_biharmonic_psnr_masked_db")),
            number(line.get("baseline_nearest_psnr_masked_db")),
            number(line.get(f"mae_{mode_of(line)}_hu"), 1),
            number(headline_ssim(line), 4),
            number(line.get("border_index")),
            *([number(line.get("lpips"), 4)] if has_lpips else []),
        ]
        for line in summary
    ]
    return header, rows


def _volumes(rows: list[dict[str, Any]], has_lpips: bool) -> tuple[list[str], list[list[Any]]]:
    header = ["volume", "data set", "checkpoint", "setting", "PSNR (dB)", "harmonic fill (dB)", "above it (dB)"]
    header += ["MAE (HU)", "SSIM", "border index", *(["LPIPS"] if has_lpips else [])]
    found = []
    for row in rows:
        made, fill = headline(row), harmonic(row)
        above = None if made is None or fill is None else made - fill
        kind = mode_of(row)
        cells = [row["volume"], row["dataset"], row["checkpoint"], row["setting"], number(made), number(fill)]
        cells += [number(above), number(row.get(f"mae_{kind}_hu"), 1), number(headline_ssim(row), 4)]
        cells.append(number(row.get("border_index")))
        cells += [number(row.get("lpips"), 4)] if has_lpips else []
        found.append(cells)
    return header, found


def _differences(lines: list[dict[str, Any]]) -> list[str]:
    if not lines:
        return []
    header = ["checkpoint", "setting", "metric", "difference", "low", "high", "higher on", "volumes"]
    rows = []
    for line in lines:
        title, digits, _ = METRICS[line["metric"]]
        values = [number(line[key], digits) for key in ("mean", "low", "high")]
        rows.append([line["checkpoint"], line["setting"], title, *values, line["above"], line["volumes"]])
    return [
        "<h2>Side by side</h2>",
        _table("differences", header, rows),
        f"<p class=note>Minus {escape(lines[0]['minus'])}, paired by volume; low and high: 95 % interval by bootstrap "
        "over patients.</p>",
    ]


def _legend(result: dict[str, Any]) -> str:
    names = [one["name"] for one in result["checkpoints"]]
    marks = [f'<span><i style="background:{colour_of(n)}"></i>{escape(name)}</span>' for n, name in enumerate(names)]
    marks.append('<span><i style="border:1.5px solid #8a939d"></i>harmonic fill of the same masks</span>')
    return f"<p class=legend>{''.join(marks)}</p>"


def _cases(result: dict[str, Any], folder: Path) -> list[str]:
    """Return the worst and best volumes of each checkpoint with the setting that is drawn."""
    parts = []
    for one in result["checkpoints"]:
        rows = [r for r in result["rows"] if (r["checkpoint"], r["setting"]) == (one["name"], result["drawn"])]
        drawn = {row["volume"]: folder / figure_path(one["name"], row["volume"]) for row in rows}
        rows = [row for row in rows if headline(row) is not None and drawn[row["volume"]].is_file()]
        rows.sort(key=lambda row: headline(row) or 0.0)
        if not rows:
            continue
        # few volumes are worst and best at once
        worst = rows[: max(1, min(CASES, len(rows) // 2))]
        best = [row for row in rows[: -CASES - 1 : -1] if row not in worst]
        for name, chosen in (("Worst", worst), ("Best", best)):
            if chosen:
                parts.append(f"<h2>{name} cases of {escape(one['name'])}, {escape(result['drawn'])}</h2>")
                parts.append(f"<div class=cases>{''.join(_case(row, folder) for row in chosen)}</div>")
    return parts


def _case(row: dict[str, Any], folder: Path) -> str:
    made, fill = headline(row), harmonic(row)
    text = f"{row['volume']}: {number(made)} dB" + ("" if fill is None else f", harmonic fill {number(fill)} dB")
    picture = _jpeg(folder / figure_path(row["checkpoint"], row["volume"]))
    return f'<figure><img alt="{escape(text)}" src="{picture}"><figcaption>{escape(text)}</figcaption></figure>'


def _jpeg(path: Path) -> str:
    """Return a picture as a data URL, made smaller: a report of full-size pictures would be tens of megabytes."""
    # it comes with matplotlib
    from PIL import Image

    with Image.open(path) as image:
        small = image.convert("RGB")
        small.thumbnail((PICTURE_WIDTH, 4 * PICTURE_WIDTH))
        packed = io.BytesIO()
        small.save(packed, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(packed.getvalue()).decode("ascii")


def _filters(rows: list[dict[str, Any]]) -> str:
    parts = []
    for label, column, key in (("data set", 1, "dataset"), ("checkpoint", 2, "checkpoint"), ("setting", 3, "setting")):
        values = list(dict.fromkeys(row[key] for row in rows if row[key]))
        if len(values) > 1:
            options = "".join(f"<option>{escape(value)}</option>" for value in values)
            parts.append(
                f'<label>{label} <select data-table="volumes" data-column="{column}"><option value="">all</option>'
                f"{options}</select></label>"
            )
    return f"<div class=filters>{''.join(parts)}</div>"


def _table(name: str, header: Iterable[str], rows: list[list[Any]]) -> str:
    columns = list(header)
    numeric = [all(_is_number(row[n]) for row in rows) for n in range(len(columns))]
    marks = [" class=number" if is_numeric else "" for is_numeric in numeric]
    heads = "".join(
        f'<th scope="col"{mark}><button type="button">{escape(text)}</button></th>'
        for text, mark in zip(columns, marks, strict=True)
    )
    body = "\n".join(
        "<tr>" + "".join(f"<td{mark}>{escape(str(cell))}</td>" for cell, mark in zip(row, marks, strict=True)) + "</tr>"
        for row in rows
    )
    return (
        f'<div class=scroll><table id="{name}"><thead><tr>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'
    )


def _is_number(cell: Any) -> bool:
    try:
        return cell == "" or float(cell) == float(cell)
    except ValueError:
        return False
