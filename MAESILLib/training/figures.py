"""Figures of a running training: kept on the device until they are asked for, and the time they took."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from MAESILLib.training.ranks import Ranks


class Figures:
    """Collects what the updates tell of themselves.

    Attributes:
        last: the figures of the last update that was read, means over the ranks.
        left_out_in_a_row: updates up to that one that changed nothing.
    """

    def __init__(self, ranks: Ranks, step: int, names: tuple[str, ...]) -> None:
        self.ranks, self.step, self.names = ranks, step, names
        self.pending: list[torch.Tensor] = []
        self.last: dict[str, float] = {}
        self.left_out_in_a_row = 0

    def add(self, figures: torch.Tensor) -> None:
        """Take the figures of the next update, as :meth:`Update.finish` returns them; waits for nothing."""
        self.pending.append(figures)

    def read(self) -> list[int]:
        """Wait for the figures collected so far; return the updates (from 0) that were left out.

        Every rank has to call.
        """
        if not self.pending:
            return []
        rows = (self.ranks.sum(torch.stack(self.pending)) / self.ranks.size).tolist()
        left_out = []
        for row in rows:
            self.last = dict(zip(self.names, row, strict=True))
            is_left_out = self.last["skipped"] > 0
            self.left_out_in_a_row = self.left_out_in_a_row + 1 if is_left_out else 0
            if is_left_out:
                left_out.append(self.step)
            self.step += 1
        self.pending = []
        return left_out


@dataclass(frozen=True)
class Lap:
    """A stretch of training."""

    seconds: float
    samples_per_s: float
    waited_share: float
    """Share of the time in which the training waited for batches."""


class Clock:
    """Measures laps, by a clock that nobody can set."""

    def __init__(self, samples: int) -> None:
        self.time, self.samples, self.waited = time.monotonic(), samples, 0.0

    def lap(self, samples: int, waited: float) -> Lap:
        """Return the lap since the last one, given the totals of now."""
        now = time.monotonic()
        seconds = max(now - self.time, 1e-9)
        lap = Lap(seconds, (samples - self.samples) / seconds, (waited - self.waited) / seconds)
        self.time, self.samples, self.waited = now, samples, waited
        return lap
