"""``maesil compare``: MAESIL, an AE, a VAE and a VQ-VAE, trained with the same budget and evaluated alike."""

import argparse
from pathlib import Path

from MAESILLib.commands.common import add_configuration_arguments, configuration_from, open_cache, set_up_device
from MAESILLib.runtime.errors import InputError
from MAESILLib.runtime.events import Reporter
from MAESILLib.runtime.stopping import StopRequest

METHODS = ("ae", "vae", "vqvae", "cosines", "maesil")
LEARNING = tuple(name for name in METHODS if name != "cosines")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, metavar="CACHE", help="cache made by maesil prepare")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of the runs, tables and figures")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="methods to compare")
    add_configuration_arguments(parser)
    parser.add_argument(
        "--learning-rate",
        nargs="+",
        default=[],
        metavar="NAME=RATE",
        help="learning rate of a method, e.g. vae=3e-4; train.learning_rate if not given",
    )
    parser.add_argument(
        "--no-figures", action="store_true", help="do not write a figure of each volume into DIR/figures"
    )
    parser.add_argument("--lpips", metavar="FOLDER", help="folder with alexnet-owt-7be5be79.pth; adds LPIPS")


def run(args: argparse.Namespace, reporter: Reporter, stop: StopRequest) -> None:
    config = configuration_from(args)
    rates = _rates(args.learning_rate)
    if "maesil" in args.methods and not config.train.readout:
        raise InputError(
            "train.readout is false, so MAESIL would not learn to auto-encode",
            "auto-encoding alone compares with the others: set it to true, or leave maesil out of --methods",
        )
    cache = open_cache(args.data, reporter, config)
    device = set_up_device(args)
    stop.check()

    from MAESILLib.comparison.compare import compare, markdown
    from MAESILLib.evaluation.evaluate import Measuring
    from MAESILLib.evaluation.lpips import PerceptualDistance
    from MAESILLib.runtime.files import check_folder

    folder = Path(args.output)
    check_folder(folder)
    if not args.no_figures:
        check_folder(folder / "figures")
    lpips = PerceptualDistance(args.lpips, device) if args.lpips else None
    entries = cache.select("val", config.train.validation_share)
    result, paths = compare(
        config,
        folder,
        list(dict.fromkeys(args.methods)),
        Measuring(cache, entries, device, lpips=lpips, stop=stop),
        rates=rates,
        with_figures=not args.no_figures,
        reporter=reporter,
    )
    for path in paths:
        reporter.artifact("figure" if path.suffix == ".png" else path.suffix[1:], path)
    if args.progress != "json":
        print(markdown(result), end="")


def _rates(assignments: list[str]) -> dict[str, float]:
    """Return the learning rates of methods that have their own.

    Raises:
        InputError: an unknown method, or no rate between 0 and 1.
    """
    rates = {}
    for assignment in assignments:
        name, _, text = assignment.partition("=")
        try:
            rates[name] = float(text)
        except ValueError:
            rates[name] = 0.0
        if name not in LEARNING or not 0 < rates[name] < 1:
            raise InputError(
                f"--learning-rate {assignment}",
                f"write NAME=RATE with one of {', '.join(LEARNING)} and a rate between 0 and 1, as vae=3e-4",
            )
    return rates
