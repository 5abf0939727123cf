"""``maesil probe``: a linear probe on the tokens of the frozen encoder, against label maps."""

from __future__ import annotations

import argparse
from pathlib import Path

from MAESILLib.commands.common import set_up_device, warn_unfinished
from MAESILLib.errors import InputError
from MAESILLib.events import Reporter
from MAESILLib.stopping import StopRequest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's own arguments."""
    parser.add_argument("--data", required=True, metavar="CACHE", help="cache made by maesil prepare, with label maps")
    parser.add_argument("--checkpoint", metavar="C", help="checkpoint; the embedded one if not given")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for probe.json, .csv, .md and curve.png")
    parser.add_argument(
        "--cases", nargs="*", type=int, default=[1, 5, 10], metavar="N", help="training patients, beside all of them"
    )
    parser.add_argument("--draws", type=int, default=3, metavar="N", help="random draws of each number of patients")
    parser.add_argument(
        "--block", type=int, metavar="N", help="of the encoder, from 1; chosen on training cases if not given"
    )
    parser.add_argument("--classes", nargs="*", default=[], metavar="NAME", help="of the label maps; all if not given")
    parser.add_argument(
        "--patches", type=int, default=500, metavar="N", help="most positive and negative training patches of a volume"
    )
    parser.add_argument("--random-seeds", type=int, default=2, metavar="N", help="encoders of random weights")
    parser.add_argument("--components", type=int, default=64, metavar="N", help="principal components of patches")


def run(args: argparse.Namespace, reporter: Reporter, stop: StopRequest) -> None:
    """Run the command."""
    from MAESILLib.data.cache import read_cache
    from MAESILLib.resources import embedded_checkpoint

    positive = {"--draws": args.draws, "--patches": args.patches, "--components": args.components}
    positive |= {"--random-seeds": args.random_seeds}
    positive |= {"--block": args.block} if args.block is not None else {}
    for name, value in [*positive.items(), *(("--cases", count) for count in args.cases)]:
        if value < 1:
            raise InputError(f"{name} is {value}", "give 1 or more")
    if args.seed < 0:
        raise InputError(f"--seed is {args.seed}", "give 0 or more")
    cache = read_cache(args.data)
    warn_unfinished(cache, reporter)
    device = set_up_device(args)
    stop.check()

    from MAESILLib.files import check_folder
    from MAESILLib.probe.fitting import limited_threads, require_scikit_learn
    from MAESILLib.probe.probe import Settings, probe
    from MAESILLib.probe.table import markdown, write

    require_scikit_learn()
    check_folder(args.output)
    settings = Settings(
        cases=tuple(sorted(set(args.cases))),
        draws=args.draws,
        block=args.block or 0,
        patches=args.patches,
        random_seeds=args.random_seeds,
        components=args.components,
        classes=tuple(dict.fromkeys(args.classes)),
        seed=args.seed,
    )
    checkpoint = Path(args.checkpoint or embedded_checkpoint())
    with limited_threads(args.threads):
        result = probe(checkpoint, cache, settings, device=device, reporter=reporter, stop=stop)
    stop.check()
    for path in write(result, Path(args.output)):
        reporter.artifact(path.stem if path.suffix == ".png" else path.suffix[1:], path)
    if args.progress != "json":
        print(markdown(result), end="")
