"""``maesil demo``: the main job on a generated sample, or on a CT of one's own, with the embedded checkpoint."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from MAESILLib.commands.common import add_mask_arguments, plan_from, set_up_device
from MAESILLib.commands.reconstruct import add_output_arguments, table
from MAESILLib.events import Reporter
from MAESILLib.stopping import StopRequest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's own arguments."""
    parser.add_argument("--output", default="demo", metavar="DIR", help="folder for the results")
    parser.add_argument("--input", metavar="FILE", help="a CT of your own instead of the generated one")
    add_mask_arguments(parser)
    add_output_arguments(parser)


def run(args: argparse.Namespace, reporter: Reporter, stop: StopRequest) -> None:
    """Run the command."""
    from MAESILLib.phantom import phantom_volume
    from MAESILLib.reading import read_volume
    from MAESILLib.resources import embedded_checkpoint
    from MAESILLib.results import Outputs, reconstruct_volume
    from MAESILLib.writing import write_volume

    plan = plan_from(args)
    device = set_up_device(args)
    stop.check()
    checkpoint = embedded_checkpoint()
    folder = Path(args.output)
    reporter.progress("sample", 0.0)
    volume = read_volume(args.input) if args.input else phantom_volume(args.seed, stop=stop)
    reporter.progress("sample", 1.0)
    stop.check()
    begin = time.monotonic()
    outputs = Outputs(folder, args.format, args.figure, args.compress)
    metrics = reconstruct_volume(volume, checkpoint, plan, outputs, device, reporter, stop, begin)
    if not args.input:
        # beside its results, so that they can be compared in a viewer
        write_volume(folder / f"input.{args.format}", volume.hu, volume.geometry, compress=args.compress)
        reporter.artifact("input", folder / f"input.{args.format}")
    if args.progress != "json":
        print(table(metrics))
        print(f"results are in {folder}{': see figure.png' if args.figure else ''}")
