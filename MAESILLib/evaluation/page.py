"""The report page of an evaluation: one HTML file with tables, distributions, and the worst and best cases.

It needs nothing beside it: styles, script and pictures are inside, and nothing is loaded from elsewhere.
"""

from __future__ import annotations

import base64
import io
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from MAESILLib.evaluation.figures import figure_path
from MAESILLib.evaluation.tables import METRICS, cells, headings, over_harmonic, protocol_text
from MAESILLib.metrics.catalogue import CATALOGUE, described, metric_key, mode_of, value_of
from MAESILLib.runtime.resources import resource_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "report.html"
CASES = 3
"""Worst and best cases of each checkpoint that are shown."""
PICTURE_WIDTH = 1000
"""Pixels."""
FILL = "harmonic fill of the same masks"
METRIC_COLUMNS = ("mae", "ssim", "border_index")
SUMMARY_COLUMNS = (
    *("harmonic", "over_harmonic_db", "least_over_harmonic_db"),
    *("baseline_biharmonic_psnr_masked_db", "baseline_nearest_psnr_masked_db", *METRIC_COLUMNS),
)
VOLUME_COLUMNS = ("psnr", "harmonic", "over_harmonic_db", *METRIC_COLUMNS)


def page(result: dict[str, Any], folder: Path) -> str:
    """Return report.html of an evaluation.

    Args:
        result: what evaluation.json holds.
        folder: of this evaluation alone: pictures that lie there are taken for its own.
    """
    loader = FileSystemLoader(resource_path("Report"))
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    lpips = ["lpips"] if result["lpips"] else []
    figure = distribution(result["rows"])
    return environment.get_template(NAME).render(
        result=result,
        protocol=protocol_text(result),
        summary=_summary(result["summary"], [*SUMMARY_COLUMNS, *lpips]),
        differences=_differences(result["differences"]),
        distribution=None if figure is None else _svg(figure),
        cases=[case for one in result["checkpoints"] for case in _cases(one["name"], result, folder)],
        volumes=_volumes(result["rows"], [*VOLUME_COLUMNS, *lpips]),
    )


def _summary(summary: list[dict[str, Any]], columns: list[str]) -> dict[str, Any]:
    """Return head and rows of the means; the first two cells of a row are text."""
    head = ["checkpoint", "setting", "volumes", *headings(["psnr"]), "sd", *headings(columns)]
    rows = []
    for line in summary:
        sd = line.get(f"{metric_key('psnr', mode_of(line))}_sd")
        psnr = [*cells(line, ["psnr"]), CATALOGUE["psnr_masked_db"].number(sd)]
        rows.append([line["checkpoint"], line["setting"], line["volumes"], *psnr, *cells(line, columns)])
    return {"head": head, "rows": rows}


def _volumes(rows: list[dict[str, Any]], columns: list[str]) -> dict[str, Any]:
    """Return head and rows of every volume; the first four cells of a row are text."""
    names = ("volume", "dataset", "checkpoint", "setting")
    found = [
        [*(row[name] for name in names), *cells(row | {"over_harmonic_db": over_harmonic(row)}, columns)]
        for row in rows
    ]
    return {"head": ["volume", "data set", "checkpoint", "setting", *headings(columns)], "rows": found}


def _differences(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Return head and rows of the differences between checkpoints; the first three cells of a row are text."""
    rows = []
    for line in lines:
        title, metric = METRICS[line["metric"]]
        values = [metric.number(line[key]) for key in ("mean", "low", "high")]
        rows.append([line["checkpoint"], line["setting"], title, *values, line["above"], line["volumes"]])
    head = ["checkpoint", "setting", "metric", "difference", "low", "high", "higher on", "volumes"]
    return {"head": head, "rows": rows}


def distribution(rows: list[dict[str, Any]]) -> Figure | None:
    """Return a picture of the PSNR of every volume, or None if no value is finite.

    A dot is a volume, a stroke the mean; each setting has a lane for each checkpoint, in order, and one for the
    harmonic fill, which is the same for all.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    if all(value_of(row, metric) is None for row in rows for metric in ("psnr", "harmonic")):
        return None
    checkpoints, settings = (list(dict.fromkeys(row[key] for row in rows)) for key in ("checkpoint", "setting"))
    lanes = [(name, name, "psnr") for name in checkpoints] + [(FILL, checkpoints[0], "harmonic")]
    # names of files are no formulas
    with rc_context({"text.parse_math": False}):
        figure = Figure((9, 0.8 + 0.2 * len(settings) * (len(lanes) + 1)), layout="constrained")
        axes = figure.subplots()
        for lane, (label, checkpoint, metric) in enumerate(lanes):
            dots, means = [], []
            for place, setting in enumerate(settings):
                y = place + (lane + 1) / (len(lanes) + 1) - 0.5
                chosen = [r for r in rows if (r["checkpoint"], r["setting"]) == (checkpoint, setting)]
                values = [value for row in chosen if (value := value_of(row, metric)) is not None]
                dots += [(value, y) for value in values]
                means += [(statistics.fmean(values), y)] if values else []
            colour, fill = ("0.5", "none") if label == FILL else (f"C{lane}", "full")
            axes.plot(*np.reshape(dots, (-1, 2)).T, "o", color=colour, fillstyle=fill, alpha=0.65, label=label)
            axes.plot(*np.reshape(means, (-1, 2)).T, "|", color=colour, markersize=13, markeredgewidth=2)
        axes.set_yticks(range(len(settings)), settings)
        axes.set(ylim=(len(settings) - 0.5, -0.5), xlabel="PSNR (dB)")
        axes.grid(axis="x", color="0.9")
        figure.legend(loc="outside upper center", ncols=3, frameon=False)
    return figure


def _svg(figure: Figure) -> str:
    """Return a figure as a data URL, the same for the same figure."""
    from matplotlib import rc_context

    packed = io.BytesIO()
    with rc_context({"svg.hashsalt": NAME}):
        figure.savefig(packed, format="svg", metadata={"Date": None})
    return _data_url("svg+xml", packed)


def _cases(checkpoint: str, result: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Return the worst and best volumes of a checkpoint with the setting that is drawn."""
    rows = [r for r in result["rows"] if (r["checkpoint"], r["setting"]) == (checkpoint, result["drawn"])]
    rows = [r for r in rows if value_of(r, "psnr") is not None and (folder / figure_path(r)).is_file()]
    rows.sort(key=lambda row: value_of(row, "psnr") or 0.0)
    # few volumes are worst and best at once
    worst = rows[: max(1, min(CASES, len(rows) // 2))]
    best = [row for row in rows[: -CASES - 1 : -1] if row not in worst]
    return [
        {
            "title": f"{name} cases of {checkpoint}, {result['drawn']}",
            "pictures": [(_case_text(row), _jpeg(folder / figure_path(row))) for row in chosen],
        }
        for name, chosen in (("Worst", worst), ("Best", best))
        if chosen
    ]


def _case_text(row: dict[str, Any]) -> str:
    keys = [metric_key(metric, mode_of(row)) for metric in ("psnr", "harmonic")]
    return f"{row['volume']}: {', '.join(f'{title} {text}' for title, text in described(row, keys))}"


def _jpeg(path: Path) -> str:
    """Return a picture as a data URL, made smaller: a report of full-size pictures would be tens of megabytes."""
    # it comes with matplotlib
    from PIL import Image

    packed = io.BytesIO()
    with Image.open(path) as image:
        small = image.convert("RGB")
        small.thumbnail((PICTURE_WIDTH, 4 * PICTURE_WIDTH))
        small.save(packed, "JPEG", quality=85)
    return _data_url("jpeg", packed)


def _data_url(kind: str, packed: io.BytesIO) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(packed.getvalue()).decode('ascii')}"
