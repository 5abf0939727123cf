"""Training steps of each preset on a card, beside MONAI's MaskedAutoEncoderViT and the card's own ceilings.

A step is the real one: batches of the loader, windowing, noise, masks, core, teacher, harmonic fill and completion,
read-out, backward, clipping, AdamW, the weight average, all with three quarters hidden; ``mixture`` is a row with the
mask ratios that training draws, whose steps take different times. Floating-point operations are those that torch
counts in forward and backward of the core alone (attention's backward with what it computes again; on a CPU without
attention), so that the share of the ceiling is what the rest leaves; the ceiling is a bf16 product of 8192x8192
matrices of random numbers, measured in the same run.

    python Testing/Benchmarks/bench_gpu.py [--data CACHE] [--presets tiny small base]

Without a cache it makes one of random volumes. ``--device cpu`` shows that it runs.
"""

import argparse
import statistics
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_training_step import monai_network
from torch.utils.flop_counter import FlopCounterMode

from MAESILLib.config import from_dict
from MAESILLib.data.cache import Cache, CacheEntry, read_cache, store_volume, write_index
from MAESILLib.mae.masking import MaskSpec, draw_visible, generator_for, hidden_from_visible
from MAESILLib.mae.model import MaskedAutoencoder
from MAESILLib.runtime.device import choose_device, device_name, peak_memory_mib
from MAESILLib.training.trainer import Trainer

BATCHES = {"tiny": 64, "small": 64, "base": 32}


def wait(device: torch.device) -> None:
    """Wait until the device has done everything."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(action: Any, device: torch.device, repeats: int) -> float:
    """Return the median time of an action."""
    times = []
    for number in range(repeats + 2):
        wait(device)
        began = time.perf_counter()
        action()
        wait(device)
        if number >= 2:
            times.append(time.perf_counter() - began)
    return statistics.median(times)


def ceilings(device: torch.device) -> dict[str, float]:
    """Measure the card: TFLOP/s of a bf16 matrix product, TB/s of a copy (read and written)."""
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    product = torch.empty_like(a)
    block = torch.randn(2**28 if device.type == "cuda" else 2**22, device=device)
    copy = torch.empty_like(block)
    return {
        "tflops": 2 * size**3 / seconds_of(lambda: torch.mm(a, b, out=product), device, 20) / 1e12,
        "tb_per_s": 2 * 4 * block.numel() / seconds_of(lambda: copy.copy_(block), device, 20) / 1e12,
    }


def random_cache(folder: Path, side: int) -> Cache:
    """Make a cache of six noisy volumes."""
    rng = np.random.default_rng(0)
    entries = []
    for number in range(6):
        hu = rng.integers(-200, 200, (side, side, side), dtype=np.int16)
        crc32 = store_volume(folder, f"v{number}", hu)
        split = "train" if number else "val"
        entries.append(
            CacheEntry(f"v{number}", hu.shape, f"p{number}", split, f"v{number}", str(number), 1.0, crc32=crc32)
        )
    write_index(Cache(folder, 1.5, tuple(entries)))
    return read_cache(folder)


@dataclass(frozen=True)
class Variant:
    """How a step is run."""

    compiled: bool = True
    mixture: bool = False

    def label(self, preset: str) -> str:
        """Return the name of its row."""
        parts = [preset, "compiled" if self.compiled else "eager"]
        return ", ".join([*parts, *(["mixture"] if self.mixture else [])])


def measure(
    name: str, cache: Cache, device: torch.device, args: argparse.Namespace, variant: Variant
) -> dict[str, Any]:
    """Time the steps of one preset."""
    train = {
        "steps": 10**6,
        "batch_size": args.batch or BATCHES[name],
        "compile": variant.compiled,
        "validation_superpatches": 1,
        "loader_threads": args.threads,
    }
    torch._dynamo.reset()
    mask = {} if variant.mixture else {"strategies": ["dual"], "ratios": [0.75]}
    config = from_dict({"preset": name, "train": train, "mask": mask})
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(config, cache, folder, device=device)
    steps = 3 * args.steps if variant.mixture else args.steps
    warm_up = 3 * args.warm_up if variant.mixture else args.warm_up
    with closing(trainer._loader()) as loader:
        began = time.perf_counter()
        for step in range(warm_up):
            trainer._update(loader, step)
        wait(device)
        warmed_up = time.perf_counter() - began
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        trainer.waited = 0.0
        began = time.perf_counter()
        for step in range(warm_up, warm_up + steps):
            trainer._update(loader, step)
        wait(device)
        seconds = (time.perf_counter() - began) / steps
        waited = trainer.waited / steps
    size = config.train.batch_size
    return {
        "parameters_m": sum(p.numel() for p in trainer.model.parameters()) / 1e6,
        "batch": size,
        "samples_per_s": size / seconds,
        "ms_per_step": 1000 * seconds,
        "gflop_per_sample": None if variant.mixture else flops(config, device) / 1e9,
        "wait_share": waited / seconds,
        "peak_mib": peak_memory_mib(device),
        "warm_up_s": warmed_up,
    }


def flops(config: Any, device: torch.device) -> float:
    """Count the operations of forward and backward of the core for one crop."""
    model = MaskedAutoencoder(config.model, len(config.preprocessing.windows_hu)).to(device)
    d, h, w = (s // p for s, p in zip(config.train.crop_size, config.model.patch_size, strict=True))
    visible = draw_visible((d, h, w), MaskSpec("dual", 0.5, 0.5), 1, generator_for(0)).to(device)
    hidden = hidden_from_visible(visible, d * h * w)
    decoded = hidden[:, : round(hidden.shape[1] * config.train.decoded_ratio)]
    image = torch.rand(1, len(config.preprocessing.windows_hu), *config.train.crop_size, device=device)
    with FlopCounterMode(display=False) as counter, torch.autocast(device.type, torch.bfloat16):
        model(image, visible, decoded).patches.sum().backward()
    return float(counter.get_total_flops())


def measure_monai(name: str, device: torch.device, args: argparse.Namespace) -> dict[str, Any] | None:
    """Time MONAI's network at the same encoder size, inputs at hand; None where MONAI is not installed."""
    config = from_dict({"preset": name})
    try:
        # it does not run under autocast
        model = monai_network(config).to(device, torch.bfloat16)
    except ImportError:
        return None
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    size = args.batch or max(1, BATCHES[name] // 4)
    windows = len(config.preprocessing.windows_hu)
    image = torch.rand(size, windows, *config.train.crop_size, device=device, dtype=torch.bfloat16)

    def step() -> None:
        predicted, mask = model(image)
        loss = ((predicted.float() - 0.5).square().mean(-1) * mask).sum() / mask.sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = seconds_of(step, device, max(1, args.steps // 2))
    return {
        "parameters_m": sum(p.numel() for p in model.parameters()) / 1e6,
        "batch": size,
        "samples_per_s": size / seconds,
        "ms_per_step": 1000 * seconds,
        "peak_mib": peak_memory_mib(device),
    }


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", metavar="CACHE")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--presets", nargs="+", default=["small", "base", "tiny"], choices=list(BATCHES))
    parser.add_argument("--batch", type=int, default=0, help="superpatches; 0: by preset")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warm-up", type=int, default=8)
    parser.add_argument("--threads", type=int, default=12, help="that make batches")
    parser.add_argument("--eager", action="store_true", help="measure without torch.compile alone")
    parser.add_argument("--no-monai", action="store_true", help="leave out the peer")
    args = parser.parse_args()
    device = choose_device(args.device)
    torch.backends.cuda.matmul.allow_tf32 = False
    peak = ceilings(device)
    print(f"{device_name(device)}, torch {torch.__version__}")
    cudnn = torch.backends.cudnn.version()
    if device.type == "cuda":
        # before 9.15 cuDNN had no fast 3D convolutions in half precision, and torch went round it
        print(f"cuDNN {cudnn}{' IS TOO OLD: 3D convolutions are slow' if (cudnn or 0) < 91500 else ''}")
    print(f"bf16 product {peak['tflops']:.0f} TFLOP/s, copy {peak['tb_per_s']:.2f} TB/s")
    columns = ("params M", "batch", "samples/s", "ms/step", "TFLOP/s", "of peak", "wait", "peak MiB", "warm-up s")
    print(f"{'':38}" + "".join(f"{column:>11}" for column in columns), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        cache = read_cache(args.data) if args.data else random_cache(Path(folder), 160)
        for name in args.presets:
            for variant in variants(args.eager):
                label = variant.label(name)
                try:
                    row = measure(name, cache, device, args, variant)
                except Exception as error:
                    # a table with a hole is worth more than none
                    print(f"{label:38}  {type(error).__name__}: {' '.join(str(error).split())[:150]}", flush=True)
                    continue
                if row["gflop_per_sample"] is not None:
                    row["tflops"] = row["gflop_per_sample"] * row["samples_per_s"] / 1000
                    row["of_peak"] = row["tflops"] / peak["tflops"]
                print_row(label, row)
            monai = None if args.no_monai else measure_monai(name, device, args)
            if monai is not None:
                print_row(f"{name}, MONAI", monai)


def variants(eager: bool) -> list[Variant]:
    """Return how each preset is run, what matters most first."""
    if eager:
        return [Variant(compiled=False), Variant(compiled=False, mixture=True)]
    return [Variant(), Variant(mixture=True), Variant(compiled=False)]


def print_row(label: str, row: dict[str, Any]) -> None:
    """Print one line of the table."""
    keys = ("parameters_m", "batch", "samples_per_s", "ms_per_step", "tflops", "of_peak", "wait_share", "peak_mib")
    formats = (".1f", "d", ".1f", ".1f", ".1f", ".1%", ".1%", ".0f", ".1f")
    cells = [format(row[k], f) if k in row else "" for k, f in zip((*keys, "warm_up_s"), formats, strict=True)]
    print(f"{label:38}" + "".join(f"{cell:>11}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
