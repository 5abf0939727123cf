"""Preparing CTs with 1 and 2 workers, beside the floor: reading the same files with SimpleITK in one process.

python Testing/Benchmarks/bench_prepare.py [FOLDER] [--workers 1 2]

Every line is a process of its own, start and imports included. CPU seconds are those of all its processes, and say
more than wall time where others use the machine; wall time holds what waits for the disk.
"""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import ENVIRONMENT, REPOSITORY, parser_of, scaled_sample, with_noise, write_volume

from MAESILLib.data.one_source import stamp_of
from MAESILLib.data.sources import find_sources

REAL_CT = REPOSITORY.parent / "shared" / "ct"
PEER = """
import sys
import SimpleITK as sitk
from pathlib import Path
for name in sys.stdin.read().splitlines():
    files = name
    if Path(name).is_dir():
        files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(name)
    sitk.ReadImage(files)
"""


def cost_of(command: list[str], text: str = "") -> tuple[float, float]:
    """Run a command to its end; return wall and CPU seconds of it and the processes that it started."""
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, input=text, text=True, check=True, env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def enlarged(folder: Path) -> Path:
    """Write the sample as a scanner would: 6 of 512 x 512 x 60 voxels of 0.75 x 0.75 x 3 mm, each with other noise."""
    hu = scaled_sample((60, 512, 512))
    for seed in range(6):
        write_volume(folder / f"ct{seed}.nii.gz", with_noise(hu, seed), (3.0, 0.75, 0.75))
    return folder


def main() -> None:
    """Print a table: CTs an hour, megabytes of sources a second, and the cost beside the floor's."""
    parser = parser_of(__doc__)
    parser.add_argument("folder", nargs="?", type=Path, help="CTs; real ones beside the checkout, or enlarged samples")
    parser.add_argument("--workers", type=int, nargs="+", default=(1, 2))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = args.folder or (REAL_CT if REAL_CT.is_dir() else enlarged(Path(name)))
        sources = find_sources([folder])
        megabytes = sum(stamp_of(source)[0] for source in sources) / 1e6
        print(f"{len(sources)} CTs, {megabytes:.0f} MB")
        print("                     CTs/h   MB/s   wall s   CPU s   CPU of the read")
        listed = "\n".join(str(source.path) for source in sources)
        # once before, so that all files are in memory for everybody
        cost_of([sys.executable, "-c", PEER], listed)
        floor = cost_of([sys.executable, "-c", PEER], listed)
        lines = [("SimpleITK, read only", floor)]
        for workers in args.workers:
            cache = ["--output", str(Path(name) / f"cache{workers}"), "--workers", str(workers), "--progress", "off"]
            command = [sys.executable, "-m", "MAESILLib", "prepare", str(folder), *cache]
            lines.append((f"prepare, {workers} worker{'s' if workers > 1 else ''}", cost_of(command)))
        for what, (wall, cpu) in lines:
            speed = f"{len(sources) / wall * 3600:6.0f} {megabytes / wall:6.1f}"
            print(f"{what:20} {speed} {wall:8.1f} {cpu:7.1f} {cpu / floor[1]:13.2f}x")


if __name__ == "__main__":
    main()
