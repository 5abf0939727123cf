"""``maesil compare``: MAESIL beside an AE, a VAE and a VQ-VAE, trained with one budget."""

from __future__ import annotations

import argparse
from pathlib import Path

from MAESILLib.commands.common import set_up_device, warn_unfinished
from MAESILLib.commands.configured import add_configuration_arguments, check_spacing, configuration_from
from MAESILLib.errors import InputError
from MAESILLib.events import Reporter
from MAESILLib.stopping import StopRequest

METHODS = ("ae", "vae", "vqvae", "maesil")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's own arguments."""
    parser.add_argument("--data", required=True, metavar="CACHE", help="cache made by maesil prepare")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of the runs, the tables and the figures")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="what is compared")
    add_configuration_arguments(parser)
    parser.add_argument("--figures", nargs="*", metavar="VOLUME", help="volumes drawn; one a data set if not given")
    parser.add_argument("--lpips", metavar="FOLDER", help="holds alexnet-owt-7be5be79.pth and alex.pth; adds LPIPS")


def run(args: argparse.Namespace, reporter: Reporter, stop: StopRequest) -> None:
    """Run the command."""
    from MAESILLib.data.cache import read_cache

    config = configuration_from(args)
    if "maesil" in args.methods and 0 in (config.train.visible_share, config.train.visible_weight):
        raise InputError(
            "train.visible_share or train.visible_weight is 0, so MAESIL would not learn to auto-encode",
            "auto-encoding alone compares with the others: choose another preset, or set both above 0",
        )
    cache = read_cache(args.data)
    warn_unfinished(cache, reporter)
    check_spacing(cache, config)
    device = set_up_device(args)
    stop.check()

    from MAESILLib.comparison.compare import compare
    from MAESILLib.comparison.table import markdown, write
    from MAESILLib.evaluation.lpips import PerceptualDistance
    from MAESILLib.files import check_folder

    check_folder(args.output)
    lpips = PerceptualDistance(args.lpips, device) if args.lpips else None
    folder = Path(args.output)
    result = compare(
        config,
        cache,
        folder,
        list(dict.fromkeys(args.methods)),
        figures=args.figures,
        lpips=lpips,
        device=device,
        reporter=reporter,
        stop=stop,
    )
    for path in write(result, folder):
        reporter.artifact(path.suffix[1:], path)
    if args.progress != "json":
        print(markdown(result), end="")
