"""Drawing masks: microseconds a sample at batch 64 on 2 threads, beside an argsort of random numbers.

The peer is what most masked autoencoders do: random numbers for all tokens, argsort, the first ones sorted.

    python Testing/Benchmarks/bench_masks.py
"""

import statistics
import time
from collections.abc import Callable

import torch

from MAESILLib.mae.masking import STRATEGIES, MaskSpec, draw_visible, generator_for

BATCH, GRID, REPEATS = 64, (16, 16, 16), 51


def microseconds(draw: Callable[[], object]) -> float:
    """Return the median time of one sample."""
    draw()
    times = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        draw()
        times.append(time.perf_counter() - begin)
    return statistics.median(times) / BATCH * 1e6


def main() -> None:
    """Print one line for each strategy."""
    torch.set_num_threads(2)
    generator = generator_for(0)

    def peer() -> torch.Tensor:
        noise = torch.rand(BATCH, GRID[0] * GRID[1] * GRID[2], generator=generator)
        return noise.argsort(1)[:, :1024].sort(1).values

    reference = microseconds(peer)
    print(f"masks of {GRID} tokens, batch {BATCH}, 75 % hidden: us a sample, and how many times the peer takes")
    print(f"{'argsort':10}{reference:8.1f}")
    for name in STRATEGIES:
        own = microseconds(lambda name=name: draw_visible(GRID, MaskSpec(name), BATCH, generator))  # type: ignore[misc]
        print(f"{name:10}{own:8.1f}{reference / own:8.1f}x")


if __name__ == "__main__":
    main()
