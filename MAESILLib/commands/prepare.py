"""``maesil prepare``: CTs in, a cache for training out, and a report of what was refused and why."""

import argparse
import os
from pathlib import Path

from MAESILLib.commands.common import add_reading_arguments, given_from
from MAESILLib.config import from_dict
from MAESILLib.data.layouts import LAYOUTS, find_cases, find_layout, overlaps
from MAESILLib.data.sources import Source, find_sources
from MAESILLib.runtime.errors import InputError
from MAESILLib.runtime.events import Reporter
from MAESILLib.runtime.stopping import StopRequest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="files, folders, DICOM trees, or a CSV/JSON manifest with 'file' and optionally 'name', 'patient', "
        "'split' (train or val), 'dataset', 'licence', 'labels'; with --layout, folders of that public data set",
    )
    parser.add_argument("--output", required=True, metavar="CACHE", help="cache folder; resumed if it exists")
    parser.add_argument(
        "--layout", choices=LAYOUTS, help="inputs are folders of this public data set, see docs/Datasets.md"
    )
    parser.add_argument(
        "--split",
        choices=("train", "val", "test"),
        help="with --layout: this split alone; train and val if not given. Test cases become the cache's val",
    )
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="number of worker processes (default: all cores). 0 reads in this process: a crash of a reader ends "
        "it, and a reader that hangs is not stopped",
    )
    parser.add_argument(
        "--shard",
        default="1/1",
        metavar="I/N",
        help="prepare the I-th of N parts of the inputs; all parts may run at the same time, into the same CACHE",
    )
    parser.add_argument("--verify", action="store_true", help="read all stored volumes and prepare damaged ones again")
    parser.add_argument("--spacing", type=float, default=1.5, metavar="MM", help="isotropic voxel size in mm")
    parser.add_argument(
        "--link",
        metavar="FILE",
        help="write names and paths of the inputs to a CSV file; the cache has numbers and no paths",
    )
    add_reading_arguments(parser, "--input-spacing")


def run(args: argparse.Namespace, reporter: Reporter, stop: StopRequest) -> None:
    from MAESILLib.data.index import parse_shard
    from MAESILLib.data.prepare import prepare
    from MAESILLib.data.report import cache_text, report_text
    from MAESILLib.runtime.system import available_cores

    preprocessing = from_dict({"preprocessing": {"spacing_mm": args.spacing}}, "--spacing").preprocessing
    shard = parse_shard(args.shard)
    workers = available_cores() if args.workers is None else args.workers
    cache, report, paths = prepare(
        _sources(args, workers, reporter, stop),
        args.output,
        preprocessing.spacing_mm,
        workers=workers,
        shard=shard,
        verify=args.verify,
        given=given_from(args),
        link=Path(args.link) if args.link else None,
        reporter=reporter,
        stop=stop,
    )
    for line in overlaps(entry.dataset for entry in cache.entries):
        reporter.warning(line)
    reporter.artifact("cache", args.output)
    if args.progress != "json":
        print(cache_text(cache))
        print(report_text(report, paths))
        print(f"all inputs: {Path(args.output) / shard.file_name('report', '.csv')}")


def _sources(args: argparse.Namespace, workers: int, reporter: Reporter, stop: StopRequest) -> list[Source]:
    if args.layout is not None:
        return _cases(args, workers, reporter, stop)
    if args.split is not None:
        raise InputError("--split is of a --layout", "name the layout, or give a manifest with the column 'split'")
    sources = find_sources(args.inputs, workers, reporter, stop)
    # a manifest that names patients or splits is not to be corrected
    for name in sorted({find_layout(s.path) for s in sources if not s.patient and not s.split} - {""}):
        reporter.warning(
            f"some inputs are laid out like {name}: if they are, --layout {name} keeps patients, splits, licence and "
            "labels, and leaves out test cases and other modalities"
        )
    return sources


def _cases(args: argparse.Namespace, workers: int, reporter: Reporter, stop: StopRequest) -> list[Source]:
    sources: dict[tuple[str, str], Source] = {}
    for folder in args.inputs:
        cases, found = find_cases(args.layout, folder, args.split, workers, reporter, stop)
        reporter.info("listing", dataset=args.layout, folder=folder, cases=len(cases), found=found)
        if args.progress == "bar":
            counts = ", ".join(f"{number} {split}" for split, number in found.items())
            reporter.text(f"{folder}: {len(cases)} CT of {args.layout} to prepare; found {counts}")
        for case in cases:
            sources.setdefault((os.path.realpath(case.path), case.label), case)
    return list(sources.values())
