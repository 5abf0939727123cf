"""``maesil sample``: the generated CT of ``maesil demo`` as a file."""

from __future__ import annotations

import argparse
from pathlib import Path

from MAESILLib.events import Reporter
from MAESILLib.stopping import StopRequest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's own arguments."""
    parser.add_argument("--output", required=True, metavar="FILE", help="a .nrrd, .nii.gz or .mha file")
    parser.add_argument(
        "--compress", action=argparse.BooleanOptionalAction, default=True, help="compress .nrrd and .mha"
    )


def run(args: argparse.Namespace, reporter: Reporter, stop: StopRequest) -> None:
    """Run the command."""
    from MAESILLib.files import check_folder
    from MAESILLib.phantom import phantom_volume
    from MAESILLib.writing import write_volume

    stop.check()
    path = Path(args.output)
    check_folder(path.parent)
    reporter.progress("sample", 0.0)
    volume = phantom_volume(args.seed, stop=stop)
    stop.check()
    write_volume(path, volume.hu, volume.geometry, compress=args.compress)
    reporter.progress("sample", 1.0)
    reporter.artifact("volume", path)
