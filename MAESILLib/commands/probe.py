"""``maesil probe``: evaluate the frozen encoder with linear probes on labelled points and label maps."""

import argparse
from pathlib import Path

from MAESILLib.commands.common import set_up_device
from MAESILLib.runtime.errors import InputError
from MAESILLib.runtime.events import Reporter
from MAESILLib.runtime.stopping import StopRequest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--points",
        metavar="CSV",
        help="labeled points, with the columns file, k, j, i, structure, patient and optionally split",
    )
    parser.add_argument("--root", metavar="DIR", help="folder of the points' files; the CSV's own if not given")
    parser.add_argument(
        "--most", type=int, metavar="N", help="at most N points, spread over structures and patients; all if not given"
    )
    parser.add_argument("--labels", metavar="CACHE", help="cache of CTs with label maps, made by maesil prepare")
    parser.add_argument("--checkpoint", metavar="C", help="checkpoint; the embedded one if not given")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for probe.json, .csv and .md")
    parser.add_argument(
        "--window",
        action="append",
        type=int,
        metavar="N",
        help="side of the windows in voxels, may be repeated; 64 and 128 if not given",
    )
    parser.add_argument("--random", type=int, default=3, metavar="N", help="number of encoders with random weights")
    parser.add_argument(
        "--patients-apart",
        nargs="*",
        default=[],
        metavar="NAME",
        help="patients to report separately, in addition to those of split val",
    )
    parser.add_argument(
        "--cases",
        nargs="*",
        type=int,
        default=[1, 5, 10],
        metavar="N",
        help="numbers of labeled patients for the Dice of label maps; no Dice if empty",
    )
    parser.add_argument("--draws", type=int, default=5, metavar="N", help="random draws of the labeled patients")


def run(args: argparse.Namespace, reporter: Reporter, stop: StopRequest) -> None:
    from MAESILLib.runtime.files import check_folder
    from MAESILLib.runtime.resources import embedded_checkpoint

    windows = tuple(dict.fromkeys(args.window or (64, 128)))
    _check(args, windows)
    check_folder(args.output)
    device = set_up_device(args)
    stop.check()

    from MAESILLib.probe.labels import find_labelled
    from MAESILLib.probe.points import read_points, stratified
    from MAESILLib.probe.probe import Settings, probe
    from MAESILLib.probe.table import page, write

    points = read_points(Path(args.points), Path(args.root) if args.root else None) if args.points else []
    if args.most:
        points = stratified(points, args.most, args.seed)
    volumes = find_labelled(Path(args.labels)) if args.labels else []
    cases = tuple(sorted(set(args.cases)))
    settings = Settings(windows, args.random, cases, args.draws, tuple(args.patients_apart), args.seed)
    checkpoint = Path(args.checkpoint or embedded_checkpoint())
    result = probe(checkpoint, points, volumes, settings, device=device, reporter=reporter, stop=stop)
    stop.check()
    for path in write(result, Path(args.output)):
        reporter.artifact(path.suffix[1:], path)
    if args.progress != "json":
        print(page(result), end="")


def _check(args: argparse.Namespace, windows: tuple[int, ...]) -> None:
    from MAESILLib.probe.windows import PATCH

    if not args.points and not args.labels:
        raise InputError("there is nothing to measure with", "give --points, --labels or both")
    for size in windows:
        if size < PATCH or size % PATCH:
            raise InputError(f"--window is {size}", f"give a multiple of {PATCH} voxels")
    for name, values in (
        ("--random", [args.random]),
        ("--draws", [args.draws]),
        ("--cases", args.cases),
        ("--most", [] if args.most is None else [args.most]),
    ):
        if values and min(values) < 1:
            raise InputError(f"{name} is {min(values)}", "give 1 or more")
    if args.seed < 0:
        raise InputError(f"--seed is {args.seed}", "give 0 or more")
