"""``maesil prepare``: CTs in, a cache for training out, and a table of what was refused and why."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from MAESILLib.events import Reporter
from MAESILLib.stopping import StopRequest

if TYPE_CHECKING:
    from MAESILLib.data.cache import Cache


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's own arguments."""
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="files, folders, DICOM trees, or a CSV/JSON manifest with 'file' and perhaps 'patient', 'split' "
        "(train or val), 'dataset', 'licence'",
    )
    parser.add_argument("--output", required=True, metavar="CACHE", help="folder of the cache; may be continued")
    parser.add_argument("--spacing", type=float, default=1.5, metavar="MM", help="isotropic voxel size in mm")


def run(args: argparse.Namespace, reporter: Reporter, stop: StopRequest) -> None:
    """Run the command."""
    from MAESILLib.config import from_dict
    from MAESILLib.data.prepare import find_sources, prepare

    stop.check()
    preprocessing = from_dict({"preprocessing": {"spacing_mm": args.spacing}}, "--spacing").preprocessing
    cache = prepare(find_sources(args.inputs), args.output, preprocessing, reporter=reporter, stop=stop)
    reporter.artifact("cache", args.output)
    if args.progress != "json":
        print(summary(cache))


def summary(cache: Cache) -> str:
    """Return what a cache holds and what was refused, as text for people."""
    size = sum(e.shape_dhw[0] * e.shape_dhw[1] * e.shape_dhw[2] * 2 for e in cache.entries)
    splits = {name: sum(e.split == name for e in cache.entries) for name in ("train", "val", "")}
    named = ", ".join(f"{count} {name or 'undecided'}" for name, count in splits.items() if count)
    patients = len({e.patient for e in cache.entries})
    counts = f"{len(cache.entries)} volumes of {patients} patients ({named})"
    lines = [f"{counts}, {cache.spacing_mm:g} mm, {size / 2**20:.0f} MiB"]
    if cache.refused:
        lines.append(f"refused {len(cache.refused)}:")
        lines += [f"  {r.source}: {r.reason}" for r in cache.refused]
    return "\n".join(lines)
