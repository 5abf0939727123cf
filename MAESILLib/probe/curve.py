"""The few-label curve: figures of held-out patients over the number of training cases."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from MAESILLib.files import atomic_path
from MAESILLib.probe.summary import CHANCE, MEAN

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_CLASSES = 4
"""Of more, the mean over classes alone is drawn."""
STYLES = {
    "maesil": ("C0", "o"),
    "random": ("C1", "s"),
    "raw": ("C2", "^"),
    "pca": ("C3", "D"),
    "position": ("0.4", "v"),
}
PANELS = (("auroc", "AUROC"), ("average_precision", "average precision"))
WIDTH, HEIGHT = 7.2, 2.7
SPREAD_OUT = 1.04
"""Features lie beside each other by this factor of the number of cases, so that their bars do not hide each other."""


def draw_curve(path: Path, result: dict[str, Any]) -> None:
    """Draw AUROC and average precision over the number of training cases, a row for each class."""
    from matplotlib.figure import Figure

    classes = list(dict.fromkeys(line["class"] for line in result["curve"]))
    if len(classes) - (MEAN in classes) > MOST_CLASSES:
        classes = [MEAN]
    figure = Figure(figsize=(WIDTH, HEIGHT * len(classes)), facecolor="white", layout="constrained")
    axes = figure.subplots(len(classes), len(PANELS), squeeze=False)
    for row, name in zip(axes, classes, strict=True):
        lines = [line for line in result["curve"] if line["class"] == name]
        chance = next(line[CHANCE] for line in result["summary"] if line["class"] == name)
        for panel, (key, title), floor in zip(row, PANELS, (0.5, chance), strict=True):
            _draw_panel(panel, lines, key, floor)
            panel.set_ylabel(title, fontsize=8)
            panel.set_title(name, fontsize=8, parse_math=False)
    for panel in axes[-1]:
        panel.set_xlabel("training cases (patients)", fontsize=8)
    axes[0, 0].legend(fontsize=7, frameon=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=200)


def _draw_panel(panel: Axes, lines: list[dict[str, Any]], key: str, chance: float) -> None:
    features = list(dict.fromkeys(line["feature"] for line in lines))
    for number, feature in enumerate(features):
        chosen = [line for line in lines if line["feature"] == feature]
        chosen.sort(key=lambda line: line["cases"])
        colour, marker = STYLES[feature]
        panel.errorbar(
            [line["cases"] * SPREAD_OUT ** (number - (len(features) - 1) / 2) for line in chosen],
            [line[key] for line in chosen],
            [line[f"{key}_sd"] or 0 for line in chosen],
            color=colour,
            marker=marker,
            markersize=4,
            linewidth=1.2,
            capsize=2,
            label=feature,
        )
    panel.axhline(chance, color="0.5", linewidth=0.8, linestyle=":", label="chance")
    panel.set_xscale("log")
    ticks = {line["cases"]: f"{line['cases']}\n(all)" if line["all_cases"] else str(line["cases"]) for line in lines}
    panel.set_xticks(list(ticks), list(ticks.values()), fontsize=7)
    panel.set_xticks([], minor=True)
    panel.tick_params(axis="y", labelsize=7)
    panel.grid(axis="y", linewidth=0.3, color="0.85")
    panel.spines[["top", "right"]].set_visible(False)
