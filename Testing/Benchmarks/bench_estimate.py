"""CPU time and memory of reconstructions, next to what MAESILLib/estimate.py expects of one core.

    python Testing/Benchmarks/bench_estimate.py VOLUME... [--checkpoint FILE]

CPU seconds with one thread: other work on the machine changes them little.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from MAESILLib.checkpoint_info import read_info  # noqa: E402 (after the path)
from MAESILLib.estimate import reconstruction_cost  # noqa: E402
from MAESILLib.resources import embedded_checkpoint  # noqa: E402

MODES = {
    "single": [],
    "complete": ["--coverage", "complete"],
    "complete, 20 % hidden": ["--coverage", "complete", "--plane-ratio", "0.2", "--axis-ratio", "0"],
    "overlap 0.5": ["--overlap", "0.5"],
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("volumes", nargs="+", type=Path)
    parser.add_argument("--checkpoint", type=Path, default=embedded_checkpoint())
    args = parser.parse_args()
    model = read_info(args.checkpoint).model
    print(f"{'':44}{'CPU s':>8}{'expected':>9}{'MiB':>7}{'expected':>9}")
    for path in args.volumes:
        for mode, options in MODES.items():
            seconds, metrics = reconstruct(path, args.checkpoint, options)
            cost = reconstruction_cost(
                model,
                source_voxels=math.prod(metrics["input"]["size"]),
                model_shape=tuple(metrics["model_grid"]["size_dhw"]),
                mask_ratio=metrics["mask"]["mask_ratio"],
                is_complete=metrics["mask"]["coverage"] == "complete",
                overlap=metrics["mask"]["overlap"],
                cores=1,
            )
            memory = f"{metrics['peak_memory_mib']:7.0f}{cost.memory_mib:9.0f}"
            print(f"{path.name[:20]:21}{mode:23}{seconds:8.1f}{cost.seconds:9.1f}{memory}", flush=True)


def reconstruct(path: Path, checkpoint: Path, options: list[str]) -> tuple[float, dict]:
    """Reconstruct as the panel does, with one thread; return CPU seconds and metrics.json."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "MAESILLib", "reconstruct", str(path), "--output", folder, *options]
        command += ["--checkpoint", str(checkpoint), "--threads", "1", "--no-figure", "--no-compress"]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([*command, "--progress", "off"], check=True, cwd=REPOSITORY, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        metrics = json.loads((Path(folder) / "metrics.json").read_text(encoding="utf-8"))
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, metrics


if __name__ == "__main__":
    main()
