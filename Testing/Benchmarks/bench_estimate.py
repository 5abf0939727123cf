"""What reconstructions take beside what the panel says they will take (MAESILLib/estimate.py).

python Testing/Benchmarks/bench_estimate.py VOLUME...
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from MAESILLib.checkpoint_info import read_info  # noqa: E402 (after the path)
from MAESILLib.estimate import START_S, reconstruction_cost  # noqa: E402
from MAESILLib.resources import embedded_checkpoint  # noqa: E402

MODES = {
    "single": [],
    "complete": ["--coverage", "complete"],
    "complete, 20 % hidden": ["--coverage", "complete", "--plane-ratio", "0.2", "--axis-ratio", "0"],
    "overlap 0.5": ["--overlap", "0.5"],
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("volumes", nargs="+", type=Path)
    model = read_info(embedded_checkpoint()).model
    print(f"{'':44}{'s':>7}{'said':>7}{'MiB':>8}{'said':>8}")
    for path in parser.parse_args().volumes:
        for mode, options in MODES.items():
            metrics = reconstruct(path, options)
            cost = reconstruction_cost(
                model,
                source_voxels=math.prod(metrics["input"]["size"]),
                model_shape=tuple(metrics["model_grid"]["size_dhw"]),
                hidden_share=metrics["mask"]["hidden_share"],
                is_complete=metrics["mask"]["coverage"] == "complete",
                overlap=metrics["mask"]["overlap"],
            )
            print(
                f"{path.name[:20]:21}{mode:23}{metrics['seconds']:7.1f}{cost.seconds - START_S:7.1f}"
                f"{metrics['peak_memory_mib']:8.0f}{cost.memory_mib:8.0f}",
                flush=True,
            )


def reconstruct(path: Path, options: list[str]) -> dict:
    """Reconstruct as the panel does; return metrics.json."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "MAESILLib", "reconstruct", str(path), "--output", folder, *options]
        command += ["--no-figure", "--no-compress", "--progress", "off"]
        subprocess.run(command, check=True, cwd=REPOSITORY, stdout=subprocess.DEVNULL)
        return json.loads((Path(folder) / "metrics.json").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
