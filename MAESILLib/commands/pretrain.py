"""``maesil pretrain``: trains a model on a cache, in one process or, under torchrun, in many."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from MAESILLib.commands.common import set_up_threads, warn_unfinished
from MAESILLib.errors import InputError
from MAESILLib.events import Reporter
from MAESILLib.stopping import StopRequest

if TYPE_CHECKING:
    import torch

    from MAESILLib.config import Config
    from MAESILLib.data.cache import Cache
    from MAESILLib.training.ranks import Ranks


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's own arguments."""
    from MAESILLib.config import PRESETS

    parser.add_argument("--data", required=True, metavar="CACHE", help="cache made by maesil prepare")
    parser.add_argument("--output", required=True, metavar="RUN", help="folder of the run")
    parser.add_argument("--validation", metavar="CACHE", help="another cache to validate on; else its held-out part")
    parser.add_argument("--preset", choices=sorted(PRESETS), help="where the configuration starts; small if not given")
    parser.add_argument("--config", metavar="TOML", help="configuration over the preset")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as train.batch_size=4; repeat")
    parser.add_argument("--steps", type=int, metavar="N", help="updates; overrules the configuration")
    parser.add_argument("--init", metavar="C", help="checkpoint whose weights to start from")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="always",
        choices=("always", "auto"),
        help="go on from the run's last state; auto: if there is one, else begin",
    )
    parser.add_argument("--minutes", type=_minutes, metavar="M", help="stop after this time, to be resumed")
    # a seed that was not given must not overrule the configuration's
    parser.set_defaults(seed=None)


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
    from MAESILLib import config as configuration
    from MAESILLib.data.cache import read_cache

    values = overrides(args.set)
    train = values.setdefault("train", {})
    if args.seed is not None:
        train.setdefault("seed", args.seed)
    if args.steps is not None:
        train["steps"] = args.steps
    config = configuration.load(args.config, args.preset, values)
    cache = read_cache(args.data)
    validation = read_cache(args.validation) if args.validation else None
    for one in (cache, validation):
        warn_unfinished(one, reporter)
        if one is not None and one.spacing_mm != config.preprocessing.spacing_mm:
            raise InputError(
                f"{one.folder} has {one.spacing_mm} mm voxels, the configuration {config.preprocessing.spacing_mm} mm",
                "prepare it again with that --spacing, or set preprocessing.spacing_mm",
            )
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


def overrides(assignments: list[str]) -> dict[str, Any]:
    """Turn ``section.key=value`` into nested values; values are JSON, or else text.

    Raises:
        InputError: an assignment of another form.
    """
    values: dict[str, Any] = {}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        section, dot, key = path.partition(".")
        if not (equals and dot and section and key):
            raise InputError(f"--set {assignment}", "write section.key=value, as train.batch_size=4")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        values.setdefault(section, {})[key] = value
    return values
