"""``maesil demo``: reconstruct the sample CT with the embedded checkpoint."""

import argparse

from MAESILLib.commands import reconstruct
from MAESILLib.commands.common import add_completion_argument, add_mask_arguments
from MAESILLib.runtime.events import Reporter
from MAESILLib.runtime.stopping import StopRequest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", default="demo", metavar="DIR", help="folder for the results")
    add_mask_arguments(parser)
    add_completion_argument(parser)
    reconstruct.add_output_arguments(parser)


def run(args: argparse.Namespace, reporter: Reporter, stop: StopRequest) -> None:
    from MAESILLib.runtime.resources import sample_ct

    args.inputs = [str(sample_ct())]
    args.checkpoint = args.series = args.name = args.input_spacing = None
    args.hu_offset, args.fill_gaps = 0.0, False
    reconstruct.run(args, reporter, stop)
    if args.progress != "json":
        print(f"results of {args.inputs[0]} are in {args.output}{': see figure.png' if args.figure else ''}")
