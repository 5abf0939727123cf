"""Reading random 128^3 crops from a cache, beside reading the whole compressed volume for each crop.

python Testing/Benchmarks/bench_crops.py [--shape 200 512 512]
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from common import parser_of, write_volume

from MAESILLib.ct.reading import read_volume
from MAESILLib.data.cache import Cache, CacheEntry, store_volume
from MAESILLib.data.sampling import CropSampler


def milliseconds(read: Callable[[int], object], repeats: int) -> float:
    """Return the median time of one crop."""
    read(0)
    times = []
    for number in range(1, repeats + 1):
        begin = time.perf_counter()
        read(number)
        times.append(time.perf_counter() - begin)
    return statistics.median(times) * 1e3


def main() -> None:
    """Print both times and their ratio."""
    parser = parser_of(__doc__)
    parser.add_argument("--shape", type=int, nargs=3, default=(200, 512, 512))
    args = parser.parse_args()
    shape = (args.shape[0], args.shape[1], args.shape[2])
    rng = np.random.default_rng(0)
    hu = (rng.standard_normal(shape, np.float32) * 20 + 40).astype(np.int16)
    hu[:, :64] = -1000
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        entry = CacheEntry("v", shape, "p", "train", "0", 0.9, crc32=store_volume(folder, "v", hu))
        write_volume(folder / "v.nii.gz", hu, (1.5, 1.5, 1.5))
        cache = Cache(folder, 1.5, (entry,))
        chosen = {"volume_weighting": 0.5, "min_foreground": 0.2, "flip": True, "seed": 0}
        sampler = CropSampler(cache, cache.entries, patch_size=(8, 8, 8), **chosen)
        own = milliseconds(lambda sample: sampler.crop(sample, (128, 128, 128)), 50)
        whole = milliseconds(lambda _: read_volume(folder / "v.nii.gz").hu[:128, :128, :128].copy(), 3)
    print(
        f"one 128^3 crop of a {shape} volume, ms: cache {own:.1f}, whole .nii.gz {whole:.0f}, ratio {whole / own:.0f}"
    )


if __name__ == "__main__":
    main()
