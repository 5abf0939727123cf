"""A picture of how figures spread over volumes: one line a setting, one dot a volume, as SVG."""

from __future__ import annotations

import math
from html import escape
from typing import Any

from MAESILLib.evaluation.tables import harmonic, headline

COLOURS = ("#1f6feb", "#c9510c", "#2da44e", "#8250df", "#bf3989", "#6e7781")
WIDTH, LEFT, RIGHT, TOP, BOTTOM = 860, 170, 20, 8, 34
LANE = 18
"""Pixels of one checkpoint's dots, or the harmonic fill's."""
GROUP_GAP = 12


def colour_of(checkpoint: int) -> str:
    """Return the colour of a checkpoint by its number."""
    return COLOURS[checkpoint % len(COLOURS)]


def distribution_svg(rows: list[dict[str, Any]]) -> str:
    """Return the PSNR of every volume: a group of lanes for each setting, a lane for each checkpoint and the fill."""
    checkpoints = list(dict.fromkeys(row["checkpoint"] for row in rows))
    settings = list(dict.fromkeys(row["setting"] for row in rows))
    values = [v for row in rows for v in (headline(row), harmonic(row)) if v is not None]
    if not values:
        return "<p class=note>No figure is finite.</p>"
    low, high = math.floor(min(values)) - 1, math.ceil(max(values)) + 1

    def across(value: float) -> float:
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    parts, top = [], float(TOP)
    for setting in settings:
        chosen = [row for row in rows if row["setting"] == setting]
        begin = top
        for number, checkpoint in enumerate(checkpoints):
            of_it = [(r["volume"], headline(r)) for r in chosen if r["checkpoint"] == checkpoint]
            parts += _lane([(n, v) for n, v in of_it if v is not None], top + LANE / 2, colour_of(number), True, across)
            top += LANE
        fills = [(r["volume"], harmonic(r)) for r in chosen if r["checkpoint"] == checkpoints[0]]
        if any(value is not None for _, value in fills):
            parts += _lane([(n, v) for n, v in fills if v is not None], top + LANE / 2, "#8a939d", False, across)
            top += LANE
        parts.append(
            f'<text x="{LEFT - 12}" y="{(begin + top) / 2 + 4:.1f}" text-anchor="end">{escape(setting)}</text>'
        )
        top += GROUP_GAP
    bottom = top - GROUP_GAP + 4
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100) if (high - low) / s <= 12 or s == 100)
    grid = []
    for tick in range(math.ceil(low / step) * step, high + 1, step):
        x = across(tick)
        grid.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom:.1f}" stroke="#e4e8ec"/>')
        grid.append(f'<text x="{x:.1f}" y="{bottom + 15:.1f}" text-anchor="middle" fill="#5b6570">{tick}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    grid.append(f'<text x="{middle}" y="{bottom + 30:.1f}" text-anchor="middle" fill="#5b6570">PSNR (dB)</text>')
    height = bottom + BOTTOM
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" height="{height:.0f}" role="img" '
        f'aria-label="PSNR of every volume by setting">{"".join(grid)}{"".join(parts)}</svg>'
    )


def _lane(values: list[tuple[str, float]], y: float, colour: str, is_filled: bool, across: Any) -> list[str]:
    """Return the dots of one lane and a stroke at their mean."""
    if not values:
        return []
    style = f'fill="{colour}" fill-opacity=".65"' if is_filled else f'fill="none" stroke="{colour}" stroke-width="1.4"'
    dots = [
        f'<circle cx="{across(value):.1f}" cy="{y:.1f}" r="4.2" {style}>'
        f"<title>{escape(name)}: {value:.2f} dB</title></circle>"
        for name, value in values
    ]
    mean = across(sum(value for _, value in values) / len(values))
    stroke = (
        f'<line x1="{mean:.1f}" x2="{mean:.1f}" y1="{y - 8:.1f}" y2="{y + 8:.1f}" stroke="{colour}" stroke-width="2"/>'
    )
    return [*dots, stroke]
