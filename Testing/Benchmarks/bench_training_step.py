"""One training step of a preset next to MONAI's MaskedAutoEncoderViT: CPU seconds of a crop, and peak memory.

Crops of 64^3 with three quarters hidden, batch 16, fp32, 2 threads or a card, the same encoder size. ``maesil`` is the
step of ``maesil pretrain``: reading crops, masks, augmentation, core, teacher, completion, read-out, AdamW and the
average; ``core`` is the same without teacher, completion and read-out. ``monai`` has its default decoder, AdamW, and
its input at hand. Each runs in a process of its own, so that its peak memory is its own.

    python Testing/Benchmarks/bench_training_step.py [--preset small] [--batch 16] [--crop 64] [--steps 5]
    python Testing/Benchmarks/bench_training_step.py --device cuda --precision bf16 --compile --batch 64 --steps 50
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1] / "support"))
THREADS = 2
CORE = {"teacher_weight": 0.0, "completion": False, "readout": False}


def measure(which: str, args: argparse.Namespace) -> dict[str, float]:
    """Return medians of CPU and wall seconds of a crop, peak memory and parameters."""
    import torch

    from MAESILLib.config import from_dict
    from MAESILLib.runtime.device import choose_device, peak_memory_mib

    device = choose_device(args.device)
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    train = {"batch_size": args.batch, "crop_size": [args.crop] * 3, "precision": args.precision}
    train |= {"cooldown_share": 0.0, "compile": args.compile, "validation_superpatches": 1}
    train |= CORE if which == "core" else {}
    mask = {"strategies": ["dual"], "ratios": [0.75]}
    config = from_dict({"preset": args.preset, "train": train, "mask": mask})
    with tempfile.TemporaryDirectory() as folder:
        model, step = monai(config, device) if which == "monai" else maesil(config, Path(folder), device)
        for _ in range(3):
            step(0)
        cpu, wall = [], []
        for number in range(1, args.steps + 1):
            begin_cpu, begin = time.process_time(), time.perf_counter()
            step(number)
            if device.type == "cuda":
                torch.cuda.synchronize()
            cpu.append((time.process_time() - begin_cpu) / args.batch)
            wall.append((time.perf_counter() - begin) / args.batch)
    return {
        "parameters_m": sum(p.numel() for p in model.parameters()) / 1e6,
        "cpu_s": statistics.median(cpu),
        "wall_s": statistics.median(wall),
        "peak_mib": peak_memory_mib(device) or 0.0,
    }


def maesil(config: Any, folder: Path, device: Any) -> tuple[Any, Callable[[int], object]]:
    """Return our network and its training step, on stand-in volumes."""
    from training_factory import make_cache

    from MAESILLib.training.trainer import Trainer

    side = max(96, config.train.crop_size[0])
    cache = make_cache(folder / "cache", [(side, side, side)] * 6, ["train"] * 5 + ["val"])
    trainer = Trainer(config, cache, folder / "run", device=device)
    loader = trainer._loader()
    return trainer.model, lambda number: trainer._update(loader, number)


def monai(config: Any, device: Any) -> tuple[Any, Callable[[int], object]]:
    """Return MONAI's network at the same encoder size, with its own default decoder, and its training step."""
    import torch
    from monai.networks.nets import MaskedAutoEncoderViT

    model = config.model
    network = MaskedAutoEncoderViT(
        in_channels=len(config.preprocessing.windows_hu),
        img_size=config.train.crop_size,
        patch_size=model.patch_size,
        hidden_size=model.encoder_width,
        # as many weights as a gated MLP of 8/3 the width
        mlp_dim=4 * model.encoder_width,
        num_layers=model.encoder_depth,
        num_heads=model.encoder_width // model.head_width,
        masking_ratio=0.75,
    )
    # it does not run under autocast
    like = {"device": device, "dtype": torch.bfloat16 if config.train.precision == "bf16" else torch.float32}
    network = network.to(**like)
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    image = torch.rand(config.train.batch_size, len(config.preprocessing.windows_hu), *config.train.crop_size, **like)

    def step(_: int) -> None:
        predicted, mask = network(image)
        target = torch.zeros_like(predicted)
        ((predicted - target).square().mean(-1) * mask).sum().div(mask.sum()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return network, step


def main() -> None:
    """Measure each in its own process, and print them with their ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="small")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--crop", type=int, default=64, help="voxels a side")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--which", choices=("maesil", "core", "monai"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.which:
        print(json.dumps(measure(args.which, args)))
        return
    print(
        f"one training step, preset {args.preset}, batch {args.batch}, crops of {args.crop}^3, {THREADS} threads, "
        f"{args.precision}"
    )
    print(f"{'':8}{'params M':>10}{'CPU s/crop':>12}{'wall s/crop':>13}{'peak MiB':>10}")
    rows = {}
    for which in ("maesil", "core", "monai"):
        output = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--which", which], check=True, stdout=subprocess.PIPE, text=True
        ).stdout
        row = rows[which] = json.loads(output.splitlines()[-1])
        values = f"{row['parameters_m']:10.2f}{row['cpu_s']:12.3f}{row['wall_s']:13.3f}{row['peak_mib']:10.0f}"
        print(f"{which:8}{values}", flush=True)
    # on a card the CPU only waits
    seconds, word = ("cpu_s", "CPU") if args.device == "cpu" else ("wall_s", "wall")
    for which in ("maesil", "core"):
        time_ratio, memory_ratio = (rows["monai"][key] / rows[which][key] for key in (seconds, "peak_mib"))
        print(f"monai takes {time_ratio:.1f} times the {word} time of {which}, and {memory_ratio:.1f} times its memory")


if __name__ == "__main__":
    main()
