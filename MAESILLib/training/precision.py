"""Whether a training computes in bf16: asked of the card, measured on a CPU.

With AVX-512 BF16 or AMX a CPU is about twice as fast in bf16, without them it emulates it, ten times slower. What
it can do is no flag that torch gives on all systems, so a transformer block is timed.
"""

from __future__ import annotations

import math
import time

import torch

from MAESILLib.mae.blocks import Block
from MAESILLib.runtime.device import precision_context, use_bf16

WORTH_IT = 1.2
"""How many times as fast as fp32 bf16 has to be."""
BUDGET_S = 0.2


def choose_bf16(precision: str, device: torch.device) -> tuple[bool, str]:
    """Choose the precision for ``train.precision``; return whether it is bf16, and why."""
    if precision != "auto":
        return precision == "bf16", "as train.precision says"
    if device.type != "cpu":
        return use_bf16(precision, device), f"what {device} has"
    ratio = bf16_speedup()
    return ratio >= WORTH_IT, f"bf16 is {ratio:.2g} times as fast as fp32 on this CPU"


def bf16_speedup() -> float:
    """Time forward and backward passes of a block of preset small on this CPU; takes less than half a second."""
    cpu = torch.device("cpu")
    block, tokens = Block(192, 48), torch.randn(1, 128, 192)

    def seconds(bf16: bool, count: int = 128) -> float:
        began = time.perf_counter()
        with precision_context(cpu, bf16):
            total = block(tokens[:, :count]).float().sum()
        total.backward()
        return time.perf_counter() - began

    # the first pass sets things up
    best = {bf16: math.inf * seconds(bf16, 8) for bf16 in (False, True)}
    end = time.perf_counter() + BUDGET_S
    while math.isinf(best[True]) or time.perf_counter() < end:
        best = {bf16: min(before, seconds(bf16)) for bf16, before in best.items()}
    return best[False] / best[True]
