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

AROUND = (0.3, 1, 3)
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
        help="rates of which each method takes the one its trials do best with, or one for all without trials; if not "
        "given, train.learning_rate times 0.3, 1 and 3",
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
    config, search = _search(args, config)
    cache = read_cache(args.data)
    warn_unfinished(cache, reporter)
    check_spacing(cache, config)
    device = set_up_device(args)
    stop.check()

    from MAESILLib.comparison.compare import compare
    from MAESILLib.comparison.table import markdown
    from MAESILLib.evaluation.lpips import PerceptualDistance
    from MAESILLib.files import check_folder

    check_folder(args.output)
    lpips = PerceptualDistance(args.lpips, device) if args.lpips else None
    result, paths = compare(
        config,
        cache,
        Path(args.output),
        list(dict.fromkeys(args.methods)),
        search=search,
        figures=args.figures,
        lpips=lpips,
        device=device,
        reporter=reporter,
        stop=stop,
    )
    for path in paths:
        reporter.artifact("figure" if path.name.startswith("figure-") else path.suffix[1:], path)
    if args.progress != "json":
        print(markdown(result), end="")


def _search(args: argparse.Namespace, config: Config) -> tuple[Config, Search | None]:
    """Return the configuration, and the learning rates to choose from; None where one was given for all."""
    from MAESILLib.comparison.search import Search, with_rate

    middle = config.train.learning_rate
    rates = tuple(dict.fromkeys(args.learning_rates or [float(f"{middle * factor:.3g}") for factor in AROUND]))
    if not all(0 < rate < 1 for rate in rates):
        raise InputError(
            f"--learning-rates {' '.join(f'{r:g}' for r in rates)}: a rate lies between 0 and 1", "give others"
        )
    steps = max(2, config.train.steps // 10) if args.trial_steps is None else args.trial_steps
    if steps < 2:
        raise InputError(f"--trial-steps {steps} is too few to judge by", "give 2 or more")
    if len(rates) > 1:
        return config, Search(rates, steps)
    if args.trial_steps is not None:
        raise InputError("--trial-steps, but only one rate to try", "give more --learning-rates, or leave it out")
    return with_rate(config, rates[0]), None
