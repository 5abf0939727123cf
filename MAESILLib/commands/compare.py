"""``maesil compare``: MAESIL beside an AE, a VAE and a VQ-VAE, trained with one budget."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from MAESILLib.commands.common import set_up_device, warn_unfinished
from MAESILLib.commands.configured import add_configuration_arguments, check_spacing, configuration_from
from MAESILLib.errors import InputError
from MAESILLib.events import Reporter
from MAESILLib.stopping import StopRequest

if TYPE_CHECKING:
    from MAESILLib.comparison.search import Search
    from MAESILLib.config import Config

METHODS = ("ae", "vae", "vqvae", "cosines", "maesil")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's own arguments."""
    parser.add_argument("--data", required=True, metavar="CACHE", help="cache made by maesil prepare")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of the runs, the tables and the figures")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="what is compared")
    add_configuration_arguments(parser)
    parser.add_argument(
        "--learning-rates",
        nargs="+",
        type=float,
        metavar="RATE",
        help="rates of which each method takes the one its trials do best with, as 3e-4 1e-3 3e-3",
    )
    parser.add_argument(
        "--trial-steps", type=int, metavar="N", help="updates of a trial; a tenth of --steps if not given"
    )
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
    search = _search(args, config)
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
        search=search,
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


def _search(args: argparse.Namespace, config: Config) -> Search | None:
    from MAESILLib.comparison.search import Search

    if args.learning_rates is None:
        if args.trial_steps is not None:
            raise InputError("--trial-steps needs --learning-rates", "give the rates to try, or leave it out")
        return None
    steps = max(2, config.train.steps // 10) if args.trial_steps is None else args.trial_steps
    if steps < 2:
        raise InputError(f"--trial-steps {steps} is too few to judge by", "give 2 or more")
    rates = tuple(dict.fromkeys(args.learning_rates))
    if len(rates) < 2 or not all(0 < rate < 1 for rate in rates):
        raise InputError(
            f"--learning-rates {' '.join(f'{r:g}' for r in rates)} leaves nothing to choose",
            "give two or more, between 0 and 1; one for all is --set train.learning_rate=RATE",
        )
    return Search(rates, steps)
