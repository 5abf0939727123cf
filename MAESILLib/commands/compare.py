"""``maesil compare``: MAESIL beside an AE, a VAE and a VQ-VAE, trained with one budget."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from MAESILLib.commands.common import set_up_device, warn_unfinished
from MAESILLib.commands.pretrain import overrides
from MAESILLib.errors import InputError
from MAESILLib.events import Reporter
from MAESILLib.stopping import StopRequest

METHODS = ("ae", "vae", "vqvae", "maesil")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's own arguments."""
    from MAESILLib.config import PRESETS

    parser.add_argument("--data", required=True, metavar="CACHE", help="cache made by maesil prepare")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of the runs, the tables and the figures")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="what is compared")
    parser.add_argument("--preset", choices=sorted(PRESETS), help="of MAESIL and the training; small if not given")
    parser.add_argument("--config", metavar="TOML", help="configuration over the preset, for every method")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as train.batch_size=4; repeat")
    parser.add_argument("--steps", type=int, metavar="N", help="updates of each method; overrules the configuration")
    parser.add_argument("--figures", nargs="*", metavar="VOLUME", help="volumes drawn; one a data set if not given")
    parser.add_argument("--lpips", metavar="FOLDER", help="holds alexnet-owt-7be5be79.pth and alex.pth; adds LPIPS")
    # a seed that was not given must not overrule the configuration's
    parser.set_defaults(seed=None)


def run(args: argparse.Namespace, reporter: Reporter, stop: StopRequest) -> None:
    """Run the command."""
    from MAESILLib import config as configuration
    from MAESILLib.data.cache import read_cache

    values: dict[str, Any] = overrides(args.set)
    train = values.setdefault("train", {})
    if args.seed is not None:
        train.setdefault("seed", args.seed)
    if args.steps is not None:
        train["steps"] = args.steps
    config = configuration.load(args.config, args.preset, values)
    if "maesil" in args.methods and 0 in (config.train.visible_share, config.train.visible_weight):
        raise InputError(
            "train.visible_share or train.visible_weight is 0, so MAESIL would not learn to auto-encode",
            "auto-encoding alone compares with the others: choose another preset, or set both above 0",
        )
    cache = read_cache(args.data)
    warn_unfinished(cache, reporter)
    if cache.spacing_mm != config.preprocessing.spacing_mm:
        raise InputError(
            f"{cache.folder} has {cache.spacing_mm} mm voxels, the configuration {config.preprocessing.spacing_mm} mm",
            "prepare it again with that --spacing, or set preprocessing.spacing_mm",
        )
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
