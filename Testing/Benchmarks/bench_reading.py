"""Reading a CT of 512 x 512 x 400 voxels to HU, beside SimpleITK's bare reading; memory of preparing many such series.

python Testing/Benchmarks/bench_reading.py [--slices 400] [--repeats 5] [--series 5 20]

Every read is a process of its own, ours and SimpleITK's in turn; imports do not count. Ratios are medians of the pairs.
Memory is the peak of what the process holds, in sizes of the volume as int16.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from common import ENVIRONMENT, REPOSITORY, parser_of, scaled_sample, with_noise, write_volume

sys.path.insert(0, str(REPOSITORY / "Testing" / "support"))
from volume_factory import write_dicom

SPACING_DHW = (0.8, 0.75, 0.75)
MEASURED = r"""
import json, re, sys, time
{imports}
path = sys.argv[1]
begin = time.process_time(), time.perf_counter()
read = {read}
cpu, wall = time.process_time() - begin[0], time.perf_counter() - begin[1]
# what getrusage says began with the process that started this one
peak = int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1]) / 1024
print(json.dumps([cpu, wall, peak]))
"""
OURS = MEASURED.format(
    imports="import nibabel, pydicom, pydicom.pixels\nfrom MAESILLib.ct.reading import read_volume",
    read="read_volume(path)",
)
SERIES = "sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(path))"
FILE = "sitk.ReadImage(path)"


def cost_of(code: str, path: Path) -> list[float]:
    """Return CPU seconds, wall seconds and peak memory in MiB of a read in a process of its own."""
    command = [sys.executable, "-c", code, str(path)]
    return json.loads(subprocess.run(command, capture_output=True, check=True, env=ENVIRONMENT).stdout)


def compare(name: str, path: Path, peer: str, repeats: int, volume_mib: float) -> None:
    """Print a line: what reading costs, and how many times what SimpleITK takes."""
    code = MEASURED.format(imports="import SimpleITK as sitk", read=peer)
    # once before, so that the files are in memory for both
    cost_of(code, path)
    pairs = [(cost_of(OURS, path), cost_of(code, path)) for _ in range(repeats)]
    cpu, wall = (statistics.median(ours[n] / theirs[n] for ours, theirs in pairs) for n in range(2))
    own, other = (np.median([pair[n] for pair in pairs], axis=0) for n in range(2))
    print(f"{name:10} {own[0]:7.2f} {other[0]:11.2f} {cpu:6.2f}x {own[1]:8.2f} {other[1]:11.2f} {wall:6.2f}x", end="")
    print(f" {own[2] / volume_mib:9.2f} {other[2] / volume_mib:11.2f}", flush=True)


def copies(series: Path, folder: Path, count: int) -> Path:
    """Make series that differ in one slice each; the other files are links."""
    for number in range(count):
        copy = folder / f"patient{number}"
        shutil.copytree(series, copy, copy_function=os.link)
        first = next(copy.iterdir())
        changed = bytearray(first.read_bytes())
        changed[-2 * (number + 1)] ^= 1
        first.unlink()
        first.write_bytes(changed)
    return folder


def peak_of(command: list[str]) -> float:
    """Run a command; return the most MiB that it and its children held together, each shared page shared out."""
    process = psutil.Popen(command, stdout=subprocess.DEVNULL, env=ENVIRONMENT)
    peak = 0
    while process.poll() is None:
        held = 0
        for one in (process, *process.children(recursive=True)):
            try:
                held += one.memory_full_info().pss
            except psutil.Error:
                continue
        peak = max(peak, held)
        time.sleep(0.05)
    assert process.returncode == 0
    return peak / 2**20


def main() -> None:
    """Print a line for each format, and the memory of `prepare` for each number of series."""
    parser = parser_of(__doc__)
    parser.add_argument("--slices", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--series", type=int, nargs="*", default=[5, 20])
    args = parser.parse_args()
    hu = with_noise(scaled_sample((args.slices, 512, 512)), 0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_volume(folder / "ct.nii.gz", hu, SPACING_DHW)
        write_dicom(folder / "series", hu + np.int16(1024), spacing_dhw=SPACING_DHW)
        volume_mib = hu.nbytes / 2**20
        del hu
        print(f"512 x 512 x {args.slices} voxels, {volume_mib:.0f} MiB as int16, medians of {args.repeats}")
        print("            CPU s   SimpleITK   ratio   wall s   SimpleITK   ratio    memory   SimpleITK")
        compare("series", folder / "series", SERIES, args.repeats, volume_mib)
        compare(".nii.gz", folder / "ct.nii.gz", FILE, args.repeats, volume_mib)
        for count in args.series:
            sources = copies(folder / "series", folder / f"{count}", count)
            options = ["--output", str(folder / f"cache{count}"), "--progress", "off"]
            peak = peak_of([sys.executable, "-m", "MAESILLib", "prepare", str(sources), *options])
            print(f"prepare, {count} series: {peak:.0f} MiB at the most, {peak / volume_mib:.2f} volumes", flush=True)


if __name__ == "__main__":
    main()
