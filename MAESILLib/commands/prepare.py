"""``maesil prepare``: CTs in, a cache for training out, and a report of what was refused and why."""

from __future__ import annotations

import argparse

from MAESILLib.events import Reporter
from MAESILLib.stopping import StopRequest


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
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes; all cores if not given. 1 works in this process, which a crash of a reader ends",
    )
    parser.add_argument(
        "--shard",
        default="1/1",
        metavar="I/N",
        help="prepare the I-th of N parts of the inputs: all parts may run at the same time, into the same CACHE",
    )
    parser.add_argument("--verify", action="store_true", help="read what is there already, and repair what is damaged")
    parser.add_argument("--spacing", type=float, default=1.5, metavar="MM", help="isotropic voxel size in mm")


def run(args: argparse.Namespace, reporter: Reporter, stop: StopRequest) -> None:
    """Run the command."""
    from MAESILLib.config import from_dict
    from MAESILLib.data.prepare import find_sources, prepare
    from MAESILLib.data.report import cache_text, report_text
    from MAESILLib.data.shards import parse_shard
    from MAESILLib.data.workers import available_cores

    preprocessing = from_dict({"preprocessing": {"spacing_mm": args.spacing}}, "--spacing").preprocessing
    shard = parse_shard(args.shard)
    done = prepare(
        find_sources(args.inputs),
        args.output,
        preprocessing,
        workers=available_cores() if args.workers is None else args.workers,
        shard=shard,
        verify=args.verify,
        reporter=reporter,
        stop=stop,
    )
    reporter.artifact("cache", args.output)
    if args.progress != "json":
        print(cache_text(done.cache))
        print(report_text(done.report))
