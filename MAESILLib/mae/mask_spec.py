"""What a mask is asked for, and how many tokens it leaves visible; needs no torch."""

import math
from dataclasses import dataclass

from MAESILLib.config import STRATEGY_NAMES
from MAESILLib.runtime.errors import InputError

Grid = tuple[int, int, int]

MAX_RATIO = 0.95


@dataclass(frozen=True)
class MaskSpec:
    """What to hide: a strategy and its two ratios, each in [0, 0.95].

    Raises:
        InputError: an unknown strategy or a ratio out of range.
    """

    strategy: str = "dual"
    plane_ratio: float = 0.5
    axis_ratio: float = 0.5

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGY_NAMES:
            raise InputError(f"unknown mask strategy '{self.strategy}'", f"choose one of {', '.join(STRATEGY_NAMES)}")
        for name in ("plane_ratio", "axis_ratio"):
            value = getattr(self, name)
            if not 0 <= value <= MAX_RATIO:
                raise InputError(f"{name} is {value}", f"choose a value from 0 to {MAX_RATIO}")


def visible_count(grid: Grid, spec: MaskSpec) -> int:
    """Return how many tokens of ``grid`` the mask leaves visible; the same for every draw."""
    depth, plane = grid[0], grid[1] * grid[2]
    n_plane = kept_count(plane, spec.plane_ratio)
    n_dual = depth * kept_count(n_plane, spec.axis_ratio)
    counts = {
        "dual": n_dual,
        "uniform": n_dual,
        "group": n_dual,
        "block": n_dual,
        "product": kept_count(depth, spec.axis_ratio) * n_plane,
        "tube": depth * kept_count(plane, 1 - (1 - spec.plane_ratio) * (1 - spec.axis_ratio)),
        "none": depth * plane,
    }
    return counts[spec.strategy]


def kept_count(count: int, ratio: float) -> int:
    """How many of ``count`` stay visible; never none, because an encoder needs something to see."""
    return max(1, math.floor(count * (1 - ratio) + 0.5))
