"""One training step (forward + backward) of a preset beside MONAI's MaskedAutoEncoderViT.

Same superpatch, patch, share of visible tokens and encoder size; batch 1, fp32, 2 threads. Each network runs
in a process of its own, so that its peak memory is its own.

    python Testing/Benchmarks/bench_training_step.py [--preset base] [--steps 5]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time


def measure(which: str, preset_name: str, steps: int) -> dict[str, float]:
    """Return medians of CPU and wall seconds of a step, peak memory and parameters."""
    import torch

    from MAESILLib.config import from_dict
    from MAESILLib.device import choose_device, peak_memory_mib

    torch.set_num_threads(2)
    torch.manual_seed(0)
    device = choose_device("cpu")
    config = from_dict({"preset": preset_name})
    image = torch.rand(1, 1, *config.model.superpatch_size)
    model, step = (maesil if which == "maesil" else monai)(config, image)
    step()
    cpu, wall = [], []
    for _ in range(steps):
        begin_cpu, begin = time.process_time(), time.perf_counter()
        step()
        cpu.append(time.process_time() - begin_cpu)
        wall.append(time.perf_counter() - begin)
    return {
        "parameters_m": sum(p.numel() for p in model.parameters()) / 1e6,
        "cpu_s": statistics.median(cpu),
        "wall_s": statistics.median(wall),
        "peak_mib": peak_memory_mib(device) or 0.0,
    }


def maesil(config, image):  # type: ignore[no-untyped-def]
    """Our core, with the loss of training."""
    from MAESILLib.mae.model import MaskedAutoencoder
    from MAESILLib.masking import MaskSpec, draw_visible, generator_for, hidden_from_visible
    from MAESILLib.training.loss import core_loss

    windows = len(config.preprocessing.windows_hu)
    model = MaskedAutoencoder(config.model, windows)
    image = image.expand(-1, windows, -1, -1, -1)
    grid = tuple(s // p for s, p in zip(config.model.superpatch_size, config.model.patch_size, strict=True))
    visible = draw_visible(grid, MaskSpec("dual", 0.5, 0.5), 1, generator_for(0))
    hidden = hidden_from_visible(visible, grid[0] * grid[1] * grid[2])
    decoded = hidden[:, : round(hidden.shape[1] * config.train.decoded_ratio)]

    def step() -> None:
        model.zero_grad(set_to_none=True)
        core_loss(model(image, visible, decoded), image, None, config.model.patch_size, 0.0)[0].backward()

    return model, step


def monai(config, image):  # type: ignore[no-untyped-def]
    """MONAI's network at the same encoder size, with its own default decoder."""
    import torch
    from monai.networks.nets import MaskedAutoEncoderViT

    model = MaskedAutoEncoderViT(
        in_channels=1,
        img_size=config.model.superpatch_size,
        patch_size=config.model.patch_size,
        hidden_size=config.model.encoder_width,
        # two matrices; our SwiGLU has three, of 8/3 of the width
        mlp_dim=4 * config.model.encoder_width,
        num_layers=config.model.encoder_depth,
        num_heads=config.model.encoder_width // config.model.head_width,
        masking_ratio=0.75,
    )

    def step() -> None:
        model.zero_grad(set_to_none=True)
        predicted, mask = model(image)
        target = torch.zeros_like(predicted)
        ((predicted - target).square().mean(-1) * mask).sum().div(mask.sum()).backward()

    return model, step


def main() -> None:
    """Measure both, each in its own process, and print them with their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="base")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--which", choices=("maesil", "monai"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.which:
        print(json.dumps(measure(args.which, args.preset, args.steps)))
        return
    results = {}
    for which in ("maesil", "monai"):
        command = [sys.executable, __file__, "--preset", args.preset, "--steps", str(args.steps), "--which", which]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        results[which] = json.loads(output.splitlines()[-1])
    print(f"one training step, preset {args.preset}, batch 1, fp32, 2 threads, 75 % hidden")
    print(f"{'':8}{'params M':>10}{'CPU s':>8}{'wall s':>8}{'peak MiB':>10}")
    for which, row in results.items():
        values = f"{row['parameters_m']:10.1f}{row['cpu_s']:8.2f}{row['wall_s']:8.2f}{row['peak_mib']:10.0f}"
        print(f"{which:8}{values}")
    ours, theirs = results["maesil"], results["monai"]
    time_ratio, memory_ratio = theirs["cpu_s"] / ours["cpu_s"], theirs["peak_mib"] / ours["peak_mib"]
    print(f"ratio: {time_ratio:.1f} in CPU time, {memory_ratio:.1f} in memory")


if __name__ == "__main__":
    main()
