"""Whether a training computes in bf16: asked of the card, measured on a CPU.

With AVX-512 BF16 or AMX a CPU is about twice as fast in bf16, without them it emulates it, ten times slower. What
it can do is no flag that torch gives on all systems, so a transformer block is timed.
"""

import time

import torch

from MAESILLib.mae.blocks import Block
from MAESILLib.runtime.device import has_bf16, precision_context

WORTH_IT = 1.2
"""How many times as fast as fp32 bf16 has to be."""
EMULATED = 0.6
"""How many times as fast one crop is at most where bf16 is emulated; by 16 crops it would take seconds to tell."""


def choose_bf16(precision: str, device: torch.device) -> tuple[bool, str]:
    """Choose the precision for ``train.precision``; return whether it is bf16, and why."""
    if precision != "auto":
        return precision == "bf16", "as train.precision says"
    if device.type != "cpu":
        return has_bf16(device), f"what {device} has"
    ratio = bf16_speedup()
    return ratio >= WORTH_IT, f"bf16 is {ratio:.2g} times as fast as fp32 on this CPU"


def bf16_speedup() -> float:
    """Time forward and backward passes of a block of preset small on 16 crops of 128 tokens, as a step has them.

    In CPU time of one thread, which other processes hardly change; takes about half a second.
    """
    cpu, threads = torch.device("cpu"), torch.get_num_threads()
    block, tokens = Block(192, 48), torch.randn(16, 128, 192)

    def seconds(bf16: bool, crops: int) -> float:
        began = time.thread_time()
        with precision_context(cpu, bf16):
            total = block(tokens[:crops]).float().sum()
        total.backward()
        return time.thread_time() - began

    def speedup(crops: int) -> float:
        fp32, bf16 = (min(seconds(bf16, crops) for _ in range(2)) for bf16 in (False, True))
        return fp32 / bf16

    torch.set_num_threads(1)
    try:
        # the first passes set things up, too
        of_one = speedup(1)
        return of_one if of_one < EMULATED else speedup(16)
    finally:
        torch.set_num_threads(threads)
