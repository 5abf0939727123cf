"""Evaluation of one CT of 512x512x100 voxels in every mode, beside the harmonic fill alone.

python Testing/Benchmarks/bench_evaluate.py [--slice-mm 0.8 1.5 2.5] [--threads 2]

The volume is generated: 0.75 mm pixels and slices of the given thickness: 256x256 voxels in a plane of the
model's grid and 53, 100 or 167 planes. Each line is a process of its own, start and imports included.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import ENVIRONMENT, parser_of, scaled, write_volume

from MAESILLib.ct.reading import read_volume
from MAESILLib.runtime.resources import sample_ct

FILL = """
import sys
import numpy as np
import torch
from MAESILLib.data.cache import read_cache
from MAESILLib.evaluation.evaluate import protocol
from MAESILLib.mae.harmonic import harmonic_fill
from MAESILLib.reconstruct.plan import masks_of_volume, superpatch_masks
from MAESILLib.mae.superpatch import partition, token_grid
from MAESILLib.ct.volume import hu_to_unit
cache = read_cache(sys.argv[1])
(entry,) = cache.entries
unit = hu_to_unit(np.asarray(cache.open(entry)), (-1000.0, 1000.0))
boxes = partition(unit.shape, (128,) * 3, (8,) * 3)
for plan in protocol(0).values():
    if plan.mask.strategy == "none":
        continue
    masks = [superpatch_masks(token_grid(b.size, (8,) * 3), plan, entry.name, b.index) for b in boxes]
    for mask in masks_of_volume(unit.shape, boxes, masks, (8,) * 3):
        harmonic_fill(torch.from_numpy(unit)[None, None], torch.from_numpy(~mask)[None, None])
"""


def write_ct(folder: Path, slice_mm: float) -> Path:
    """Write the lower end of the sample, enlarged to 512x512x100 voxels."""
    volume = read_volume(sample_ct())
    hu = volume.hu[: round(100 * slice_mm / volume.geometry.spacing_dhw[0])]
    return write_volume(folder / "ct.nii.gz", scaled(hu, (100, 512, 512)), (slice_mm, 0.75, 0.75))


def seconds(*command: object, threads: int) -> float:
    """Run a command of this Python and return its wall time."""
    begin = time.perf_counter()
    environment = {**ENVIRONMENT, "OMP_NUM_THREADS": str(threads)}
    subprocess.run([sys.executable, *map(str, command)], check=True, env=environment, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def main() -> None:
    """Print a line for each thickness."""
    parser = parser_of(__doc__)
    parser.add_argument("--slice-mm", type=float, nargs="+", default=[0.8, 1.5, 2.5])
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    print(f"evaluation of a 512 x 512 x 100 CT, {args.threads} threads, wall s")
    print(f"{'slices':<10}{'all modes':>10}{'and page':>10}{'fills alone':>13}{'ratio':>7}")
    for slice_mm in args.slice_mm:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            ct, cache = write_ct(folder, slice_mm), folder / "cache"
            common = ("--progress", "off", "--threads", args.threads)
            seconds("-m", "MAESILLib", "prepare", ct, "--output", cache, "--progress", "off", threads=args.threads)
            evaluate = ("-m", "MAESILLib", "evaluate", "--data", cache, "--split", "all", "--device", "cpu", *common)
            plain = seconds(*evaluate, "--output", folder / "plain", "--no-figures", threads=args.threads)
            whole = seconds(*evaluate, "--output", folder / "page", "--html", threads=args.threads)
            fills = seconds("-c", FILL, cache, threads=args.threads)
        print(f"{slice_mm:<4g} mm   {plain:>10.1f}{whole:>10.1f}{fills:>13.1f}{plain / fills:>7.2f}")


if __name__ == "__main__":
    main()
