"""``maesil prepare``: CTs in, a cache for training out, and a report of what was refused and why."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from MAESILLib.commands.common import add_layout_arguments, chosen_cases
from MAESILLib.errors import InputError
from MAESILLib.events import Reporter
from MAESILLib.stopping import StopRequest

if TYPE_CHECKING:
    from MAESILLib.data.sources import Source


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's own arguments."""
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="files, folders, DICOM trees, or a CSV/JSON manifest with 'file' and perhaps 'patient', 'split' "
        "(train or val), 'dataset', 'licence', 'labels'; with --layout, folders of that data set",
    )
    parser.add_argument("--output", required=True, metavar="CACHE", help="folder of the cache; may be continued")
    add_layout_arguments(parser)
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
    from MAESILLib.data.datasets.layouts import overlaps
    from MAESILLib.data.prepare import prepare
    from MAESILLib.data.report import cache_text, report_text
    from MAESILLib.data.shards import parse_shard
    from MAESILLib.data.workers import available_cores

    preprocessing = from_dict({"preprocessing": {"spacing_mm": args.spacing}}, "--spacing").preprocessing
    shard = parse_shard(args.shard)
    done = prepare(
        _sources(args, reporter),
        args.output,
        preprocessing,
        workers=available_cores() if args.workers is None else args.workers,
        shard=shard,
        verify=args.verify,
        reporter=reporter,
        stop=stop,
    )
    for line in overlaps(entry.dataset for entry in done.cache.entries):
        reporter.warning(line)
    reporter.artifact("cache", args.output)
    if args.progress != "json":
        print(cache_text(done.cache))
        print(report_text(done.report))


def _sources(args: argparse.Namespace, reporter: Reporter) -> list[Source]:
    from MAESILLib.data.datasets.layouts import recognise, source_of
    from MAESILLib.data.datasets.text import listing_text
    from MAESILLib.data.sources import find_sources

    if args.layout is None:
        if args.split is not None:
            raise InputError("--split is of a --layout", "name the layout, or give a manifest with the column 'split'")
        for given in args.inputs:
            dataset = recognise(given)
            if dataset is not None:
                reporter.warning(
                    f"{given} looks like {dataset.key} ({dataset.name}): --layout {dataset.key} keeps its patients, "
                    "split, licence and labels, and leaves out what is no CT or a test case"
                )
        return find_sources(args.inputs)
    sources: dict[str, Source] = {}
    for given in args.inputs:
        listing = chosen_cases(given, args.layout, args.split, reporter)
        if args.progress == "bar":
            reporter.text(listing_text(listing))
        for case in listing.cases:
            sources.setdefault(os.path.realpath(case.image), source_of(case))
    return list(sources.values())
