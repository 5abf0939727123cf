"""``maesil export``: the pretrained encoder for downstream work."""

import argparse
from pathlib import Path

from MAESILLib.commands.common import set_up_threads
from MAESILLib.export.description import KINDS, load_line
from MAESILLib.runtime.events import Reporter
from MAESILLib.runtime.stopping import StopRequest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", nargs="?", help="checkpoint; the embedded one if not given")
    parser.add_argument(
        "--format",
        required=True,
        choices=KINDS,
        help="torch: a PyTorch module for images of any size; nnunet: weights for Primus and an nnU-Net trainer",
    )
    parser.add_argument(
        "--output",
        required=True,
        metavar="PATH",
        help="torch: a .safetensors file; nnunet: a folder. Existing files are overwritten",
    )


def run(args: argparse.Namespace, reporter: Reporter, stop: StopRequest) -> None:
    from MAESILLib.runtime.resources import embedded_checkpoint

    set_up_threads(args)
    checkpoint, output = Path(args.checkpoint or embedded_checkpoint()), Path(args.output)
    stop.check()

    from MAESILLib.export.encoder import export_torch
    from MAESILLib.export.nnunet import export_nnunet
    from MAESILLib.runtime.files import check_folder

    check_folder(output.parent if args.format == "torch" else output)
    reporter.progress("export", 0.0)
    export = export_torch if args.format == "torch" else export_nnunet
    info = export(checkpoint, output)
    reporter.progress("export", 1.0)
    reporter.artifact("encoder", output)
    if args.progress != "json":
        windows = ", ".join(f"[{low:g}, {high:g}]" for low, high in info.preprocessing.windows_hu)
        print(f"{output}: {info.preprocessing.spacing_mm:g} mm, HU {windows} mapped to [0, 1], LPS")
        print(load_line(info.kind, Path(info.path).resolve()))
