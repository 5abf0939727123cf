"""``maesil evaluate``: the protocol's metrics of checkpoints on a cache."""

import argparse
import math
from pathlib import Path

from MAESILLib.commands.common import add_completion_argument, open_cache, set_up_device
from MAESILLib.runtime.errors import InputError
from MAESILLib.runtime.events import Reporter
from MAESILLib.runtime.stopping import StopRequest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, metavar="CACHE", help="cache made by maesil prepare")
    parser.add_argument("--checkpoint", nargs="*", metavar="C", help="checkpoints; the embedded one if not given")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for evaluation.json, .csv and .md")
    parser.add_argument(
        "--split", choices=("val", "train", "all"), default="val", help="part of the cache to evaluate on"
    )
    parser.add_argument(
        "--window",
        nargs=2,
        type=float,
        metavar=("LOW", "HIGH"),
        help="HU window of the metrics; the checkpoint's if not given",
    )
    parser.add_argument(
        "--settings", nargs="*", metavar="NAME", help="settings to evaluate, e.g. 'dual 0.75'; all if not given"
    )
    parser.add_argument(
        "--masks",
        metavar="FILE",
        help=".npz file of masks: read if it exists, otherwise drawn from the seed and written",
    )
    add_completion_argument(parser)
    parser.add_argument("--batch-size", type=int, default=1, metavar="N", help="superpatches per forward pass")
    parser.add_argument(
        "--no-figures", action="store_true", help="do not write a figure of each volume into DIR/figures"
    )
    parser.add_argument("--lpips", metavar="FOLDER", help="folder with alexnet-owt-7be5be79.pth; adds LPIPS")
    parser.add_argument("--html", action="store_true", help="also write report.html, one self-contained page")


def run(args: argparse.Namespace, reporter: Reporter, stop: StopRequest) -> None:
    from MAESILLib.runtime.resources import embedded_checkpoint

    cache = open_cache(args.data, reporter)
    checkpoints = [Path(c) for c in args.checkpoint or [embedded_checkpoint()]]
    if args.window and not -math.inf < args.window[0] < args.window[1] < math.inf:
        raise InputError(
            f"--window {args.window[0]:g} {args.window[1]:g} is no range of HU", "give the lower value first"
        )
    if args.batch_size < 1:
        raise InputError(f"--batch-size is {args.batch_size}", "give 1 or more")
    device = set_up_device(args)
    stop.check()

    from MAESILLib.evaluation.evaluate import Measuring, evaluate, held_out_share, protocol
    from MAESILLib.evaluation.figures import remove_former
    from MAESILLib.evaluation.lpips import PerceptualDistance
    from MAESILLib.evaluation.tables import markdown, write
    from MAESILLib.runtime.files import check_folder, staged, write_text

    entries = cache.entries if args.split == "all" else cache.select(args.split, held_out_share(checkpoints))
    settings = protocol(args.seed)
    if args.settings:
        if unknown := sorted(set(args.settings) - set(settings)):
            known = ", ".join(f"'{name}'" for name in settings)
            raise InputError(f"unknown setting '{unknown[0]}'", f"choose from {known}")
        settings = {name: plan for name, plan in settings.items() if name in args.settings}
    folder = Path(args.output)
    check_folder(folder)
    if not args.no_figures:
        check_folder(folder / "figures")
    lpips = PerceptualDistance(args.lpips, device) if args.lpips else None
    with staged(folder, last="evaluation.json") as staging:
        measuring = Measuring(
            cache,
            entries,
            device,
            window_hu=(args.window[0], args.window[1]) if args.window else None,
            batch_size=args.batch_size,
            completed=args.completion,
            lpips=lpips,
            stop=stop,
        )
        result = evaluate(
            checkpoints,
            measuring,
            settings,
            split=args.split,
            masks=Path(args.masks) if args.masks else None,
            figures=None if args.no_figures else staging,
            reporter=reporter,
        )
        stop.check()
        written = [*sorted(staging.rglob("*.png")), *write(result, staging, "evaluation", markdown(result))]
        if args.html:
            from MAESILLib.evaluation.page import NAME, page

            written.append(staging / NAME)
            write_text(written[-1], page(result, staging))
        remove_former(folder)
    for path in written:
        reporter.artifact("figure" if path.suffix == ".png" else path.suffix[1:], folder / path.relative_to(staging))
    if args.progress != "json":
        print(markdown(result), end="")
