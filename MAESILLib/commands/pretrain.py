"""``maesil pretrain``: trains a model on a cache, in one process or, under torchrun, in many."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

from MAESILLib.commands.common import set_up_threads, warn_unfinished
from MAESILLib.commands.configured import add_configuration_arguments, check_spacing, configuration_from
from MAESILLib.events import Reporter
from MAESILLib.stopping import StopRequest

if TYPE_CHECKING:
    import torch

    from MAESILLib.config import Config
    from MAESILLib.data.cache import Cache
    from MAESILLib.training.ranks import Ranks


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's own arguments."""
    parser.add_argument("--data", required=True, metavar="CACHE", help="cache made by maesil prepare")
    parser.add_argument("--output", required=True, metavar="RUN", help="folder of the run")
    parser.add_argument("--validation", metavar="CACHE", help="another cache to validate on; else its held-out part")
    add_configuration_arguments(parser)
    parser.add_argument("--init", metavar="C", help="checkpoint whose weights to start from")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="always",
        choices=("always", "auto"),
        help="go on from the run's last state; auto: if there is one, else begin",
    )
    parser.add_argument("--minutes", type=_minutes, metavar="M", help="stop after this time, to be resumed")


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = math.nan
    if not 0 < minutes < math.inf:
        raise argparse.ArgumentTypeError(f"'{text}' is no time in minutes")
    return minutes


def run(args: argparse.Namespace, reporter: Reporter, stop: StopRequest) -> None:
    """Run the command."""
    from MAESILLib.data.cache import read_cache

    config = configuration_from(args)
    cache = read_cache(args.data)
    validation = read_cache(args.validation) if args.validation else None
    for one in (cache, validation):
        warn_unfinished(one, reporter)
        if one is not None:
            check_spacing(one, config)
    set_up_threads(args)
    from MAESILLib.device import choose_device
    from MAESILLib.training.ranks import joined, own_device

    device = choose_device(own_device(args.device))
    stop.check()
    with joined(device) as ranks:
        if not ranks.is_main:
            reporter = Reporter("off")
        if args.minutes is not None:
            stop.ask_after(60 * args.minutes, f"its {args.minutes:g} minutes are over")
        _train(args, config, cache, validation, device, ranks, reporter, stop)


def _train(
    args: argparse.Namespace,
    config: Config,
    cache: Cache,
    validation: Cache | None,
    device: torch.device,
    ranks: Ranks,
    reporter: Reporter,
    stop: StopRequest,
) -> None:
    from MAESILLib.training.run_folder import holds_state
    from MAESILLib.training.trainer import Trainer

    # a job that its launcher started anew goes on; its command line is that of the first start
    may_resume = args.resume == "auto" or ranks.restarts > 0
    resumes = holds_state(Path(args.output)) if may_resume else args.resume is not None
    trainer = Trainer(
        config,
        cache,
        Path(args.output),
        validation=validation,
        device=device,
        resume=resumes,
        initial=None if resumes and may_resume else args.init,
        reporter=reporter,
        stop=stop,
        ranks=ranks,
    )
    trainer.run()
    if args.progress != "json" and ranks.is_main:
        best = trainer.progress.best_psnr_masked_db
        print(f"{trainer.progress.step} steps, {trainer.progress.samples} samples; {args.output}/model.safetensors")
        if best is not None:
            print(f"best validation PSNR of hidden patches (dual .5/.5): {best:.2f} dB; {args.output}/best.safetensors")
