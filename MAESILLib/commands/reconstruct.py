"""``maesil reconstruct``: mask and reconstruct a CT; write volumes, metrics and a figure."""

import argparse
import dataclasses
import time
from pathlib import Path
from typing import Any

from MAESILLib.commands.common import (
    add_completion_argument,
    add_mask_arguments,
    add_reading_arguments,
    given_from,
    plan_from,
    set_up_device,
)
from MAESILLib.runtime.events import Reporter
from MAESILLib.runtime.stopping import StopRequest

FORMATS = ("nrrd", "nii.gz")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's own arguments."""
    parser.add_argument("input", metavar="INPUT", help="NIfTI, NRRD or MHA file, or a DICOM folder")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for the results")
    parser.add_argument("--checkpoint", metavar="C", help="a .safetensors checkpoint; the embedded one if not given")
    parser.add_argument("--series", metavar="UID", help="DICOM series: UID, number, or largest")
    add_reading_arguments(parser, "--spacing", "--input-spacing")
    parser.add_argument("--name", help="volume name, part of the mask seed; the file's if not given")
    add_mask_arguments(parser)
    add_completion_argument(parser)
    add_output_arguments(parser)


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """Add how results are written."""
    parser.add_argument("--format", choices=FORMATS, default="nrrd", help="file format of the volumes")
    parser.add_argument(
        "--compress",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compress .nrrd volumes; .nii.gz always are",
    )
    parser.add_argument("--figure", action=argparse.BooleanOptionalAction, default=True, help="write figure.png")


def run(args: argparse.Namespace, reporter: Reporter, stop: StopRequest) -> None:
    """Run the command."""
    from MAESILLib.ct.reading import read_volume
    from MAESILLib.reconstruct.results import Outputs, reconstruct_volume
    from MAESILLib.runtime.resources import embedded_checkpoint

    plan = plan_from(args)
    device = set_up_device(args)
    stop.check()
    checkpoint = Path(args.checkpoint) if args.checkpoint else embedded_checkpoint()
    begin = time.monotonic()
    reporter.progress("read", 0.0)
    volume = read_volume(args.input, series=args.series, given=given_from(args))
    if args.name:
        volume = dataclasses.replace(volume, name=args.name)
    reporter.progress("read", 1.0)
    stop.check()
    outputs = Outputs(Path(args.output), args.format, args.figure, args.compress)
    metrics = reconstruct_volume(
        volume, checkpoint, plan, outputs, device, reporter, stop, begin, completed=args.completion
    )
    if args.progress != "json":
        print(table(metrics))


def table(metrics: dict[str, Any]) -> str:
    """Return the metrics of a reconstruction as text for people."""
    from MAESILLib.metrics.catalogue import described
    from MAESILLib.reconstruct.results import displayed_mask_ratio

    mask, checkpoint = metrics["mask"], metrics["checkpoint"]
    rows = [
        (
            "input",
            f"{metrics['input']['name']}, {' x '.join(map(str, metrics['input']['size'][::-1]))} voxels (D x H x W)",
        ),
        ("checkpoint", f"{checkpoint['name']} ({checkpoint['sha256'][:12]})"),
        (
            "mask",
            f"{mask['strategy']} {mask['plane_ratio']:g}/{mask['axis_ratio']:g}, hides {displayed_mask_ratio(mask):.1%}"
            f", coverage {mask['coverage']}, seed {mask['seed']}",
        ),
    ]
    rows += described(metrics)
    width = max(len(label) for label, _ in rows)
    return "\n".join(f"{label.ljust(width)}  {value}" for label, value in rows)
