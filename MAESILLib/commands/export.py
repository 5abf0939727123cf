"""``maesil export``: the pretrained encoder for downstream work."""

from __future__ import annotations

import argparse
from pathlib import Path

from MAESILLib.commands.common import set_up_threads
from MAESILLib.events import Reporter
from MAESILLib.export.description import KINDS, LOAD
from MAESILLib.stopping import StopRequest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's own arguments."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", nargs="?", help="the embedded one if not given")
    parser.add_argument(
        "--format",
        required=True,
        choices=KINDS,
        help="torch: a module for images of any size; vit, unetr: as MONAI's networks of that name have it",
    )
    parser.add_argument("--output", required=True, metavar="FILE", help="a .safetensors file; an older one is replaced")
    parser.add_argument(
        "--size",
        nargs=3,
        type=int,
        metavar=("D", "H", "W"),
        help="voxels of the images of vit and unetr; 96, or fewer where it was trained on less, if not given",
    )
    parser.add_argument(
        "--patch",
        type=int,
        choices=(8, 16),
        help="of unetr: voxels of a token; 16 is UNETR's own decoder on images of half the spacing; "
        "the encoder's own if not given",
    )


def run(args: argparse.Namespace, reporter: Reporter, stop: StopRequest) -> None:
    """Run the command."""
    from MAESILLib.resources import embedded_checkpoint

    set_up_threads(args)
    checkpoint, output = Path(args.checkpoint or embedded_checkpoint()), Path(args.output)
    stop.check()

    from MAESILLib.export.write import check_output, export_encoder
    from MAESILLib.files import check_folder

    check_output(output, checkpoint)
    check_folder(output.parent)
    reporter.progress("export", 0.0)
    info = export_encoder(checkpoint, args.format, output, args.size, args.patch)
    reporter.progress("export", 1.0)
    trained = info.model.superpatch_size
    finer = info.patch_size[0] // info.model.patch_size[0]
    if info.image_size and any(n > finer * t for n, t in zip(info.image_size, trained, strict=True)):
        reporter.warning(f"images of {info.image_size} voxels are larger than the {trained} it was trained on")
    reporter.artifact("encoder", output)
    if args.progress != "json":
        low, high = info.preprocessing.window_hu
        print(f"{output}: images of {info.preprocessing.spacing_mm:g} mm, HU [{low:g}, {high:g}] mapped to [0, 1], LPS")
        print(LOAD[info.kind].format(name=output))
