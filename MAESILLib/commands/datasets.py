"""``maesil datasets``: the public CT data sets that are known, and the cases in a folder of one."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from MAESILLib.commands.common import add_layout_arguments, chosen_cases
from MAESILLib.errors import InputError
from MAESILLib.events import Reporter
from MAESILLib.stopping import StopRequest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's own arguments."""
    parser.add_argument(
        "what", nargs="?", metavar="NAME|FOLDER", help="a data set to describe, or a folder whose cases to list"
    )
    add_layout_arguments(parser)
    parser.add_argument("--manifest", metavar="OUT.csv", help="write the cases as a manifest for maesil prepare")


def run(args: argparse.Namespace, reporter: Reporter, stop: StopRequest) -> None:
    """Run the command."""
    from MAESILLib.data.datasets.catalogue import DATASETS
    from MAESILLib.data.datasets.layouts import find_dataset
    from MAESILLib.data.datasets.text import details, table

    stop.check()
    asks_for_cases = any((args.layout, args.split, args.manifest))
    if args.what is None:
        if asks_for_cases:
            raise InputError("--layout, --split and --manifest are of a folder", "give the FOLDER")
        reporter.info("datasets", datasets=[asdict(dataset) for dataset in DATASETS.values()])
        text = table(DATASETS.values())
    elif asks_for_cases or (args.what not in DATASETS and Path(args.what).exists()):
        text = _cases(args, reporter)
    else:
        dataset = find_dataset(args.what)
        reporter.info("dataset", **asdict(dataset))
        text = details(dataset)
    # the result is what was asked for, so people get it in every mode
    if args.progress != "json":
        print(text)


def _cases(args: argparse.Namespace, reporter: Reporter) -> str:
    from MAESILLib.data.datasets.layouts import recognise
    from MAESILLib.data.datasets.manifest import write_manifest
    from MAESILLib.data.datasets.text import listing_text

    dataset = recognise(args.what) if args.layout is None else None
    layout = args.layout or (dataset.key if dataset else None)
    if layout is None:
        raise InputError(
            f"{args.what} is not laid out like a data set that is known", "name one with --layout; see maesil datasets"
        )
    listing = chosen_cases(args.what, layout, args.split, reporter)
    if args.manifest:
        write_manifest(args.manifest, listing)
        reporter.artifact("manifest", args.manifest)
    return listing_text(listing)
