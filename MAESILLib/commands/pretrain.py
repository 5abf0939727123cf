"""``maesil pretrain``: trains a model on a cache, in one process or, under torchrun, in many."""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

from MAESILLib.commands.common import (
    add_configuration_arguments,
    configuration_from,
    open_cache,
    overrides,
    set_up_threads,
)
from MAESILLib.config import FREE_KEYS
from MAESILLib.runtime.errors import InputError
from MAESILLib.runtime.events import Reporter
from MAESILLib.runtime.stopping import StopRequest

if TYPE_CHECKING:
    from MAESILLib.training.trainer import Trainer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, metavar="CACHE", help="cache made by maesil prepare")
    parser.add_argument("--output", required=True, metavar="RUN", help="folder of the run")
    parser.add_argument(
        "--validation", metavar="CACHE", help="cache to validate on; the held-out part of --data if not given"
    )
    parser.add_argument(
        "--points", metavar="CSV", help="labeled points, as for maesil probe, to probe the encoder at each validation"
    )
    parser.add_argument("--root", metavar="DIR", help="folder of the points' files; the CSV's own if not given")
    add_configuration_arguments(parser)
    parser.add_argument("--init", metavar="C", help="checkpoint to initialize the weights from")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="always",
        choices=("always", "auto"),
        help="resume from the last saved state, with its configuration; auto: start a new run if there is none",
    )
    branch = parser.add_argument_group(
        "cool-down: branch from a run, which is left unchanged, and decay the learning rate"
    )
    branch.add_argument("--from", dest="branch_of", metavar="RUN", help="run to branch from, at its last state")
    branch.add_argument("--cooldown", type=int, metavar="N", help="number of updates of the cool-down")
    parser.add_argument(
        "--minutes", type=_minutes, metavar="M", help="stop after this many minutes; continue with --resume"
    )


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = math.nan
    if not 0 < minutes < math.inf:
        raise argparse.ArgumentTypeError(f"'{text}' is no time in minutes")
    return minutes


def run(args: argparse.Namespace, reporter: Reporter, stop: StopRequest) -> None:
    _check_branch(args)
    resumes = _resumes(args)
    start = base = None
    if resumes or args.branch_of is not None:
        set_up_threads(args)
        from MAESILLib.training.state import cooled_down, read_state

        start = read_state(Path(args.output if resumes else args.branch_of))
        base = start.values["config"] if resumes else cooled_down(start, args.cooldown)
    config = configuration_from(args, base)
    cache = open_cache(args.data, reporter, config)
    validation = open_cache(args.validation, reporter, config) if args.validation else None
    set_up_threads(args)
    from MAESILLib.runtime.device import choose_device
    from MAESILLib.training.ranks import joined, own_device

    device = choose_device(own_device(args.device))
    stop.check()
    with joined(device) as ranks:
        from MAESILLib.training.task import MaskedAutoencoding
        from MAESILLib.training.trainer import Trainer

        if not ranks.is_main:
            reporter = Reporter("off")
        if args.minutes is not None:
            stop.ask_after(60 * args.minutes, f"its {args.minutes:g} minutes are over")
        points = None
        if args.points and ranks.is_main:
            from MAESILLib.probe.points import read_points
            from MAESILLib.probe.reduced import reduce_points

            points = reduce_points(read_points(Path(args.points), Path(args.root) if args.root else None))
        trainer = Trainer(
            config,
            cache,
            Path(args.output),
            validation=validation,
            device=device,
            resume=resumes,
            start=start,
            # the command line of a job that begins or resumes is that of its first start
            initial=None if resumes and args.resume != "always" else args.init,
            reporter=reporter,
            stop=stop,
            ranks=ranks,
            task=MaskedAutoencoding(points),
        )
        # it holds as much as the training itself
        start = base = None
        trainer.run()
        if args.progress != "json" and ranks.is_main:
            _print_result(trainer, args.output)


def _resumes(args: argparse.Namespace) -> bool:
    """Say whether to resume: a job that its launcher started anew does, if there is a state."""
    from MAESILLib.training.run_folder import holds_state

    if args.resume == "auto" or os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
        return holds_state(Path(args.output))
    return args.resume is not None


def _check_branch(args: argparse.Namespace) -> None:
    """Refuse what contradicts a branch, which takes everything from its run.

    Raises:
        InputError: an option that belongs to another kind of start.
    """
    if (args.branch_of is None) != (args.cooldown is None):
        raise InputError("--from RUN and --cooldown N belong together", "give both, or neither")
    if args.branch_of is None:
        return
    given = [f"--{name}" for name in ("preset", "config", "steps", "seed", "init") if getattr(args, name) is not None]
    given += ["--resume"] if args.resume == "always" else []
    for section, values in overrides(args.set).items():
        given += [f"--set {section}.{key}" for key in values if (section, key) not in FREE_KEYS - {("train", "steps")}]
    if given:
        raise InputError(f"{given[0]} cannot be combined with --from", "a branch has the configuration of its run")


def _print_result(trainer: Trainer, output: str) -> None:
    best = trainer.progress.best_psnr_masked_db
    print(f"{trainer.progress.step} steps, {trainer.progress.samples} samples; {output}/model.safetensors")
    if best is not None:
        print(f"best validation PSNR of hidden patches (dual .5/.5): {best:.2f} dB; {output}/best.safetensors")
