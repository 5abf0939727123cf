"""What several commands need: the device, mask and reading arguments, and the configuration of a training."""

from __future__ import annotations

import argparse
import json
import math
from typing import TYPE_CHECKING, Any

from MAESILLib.config import COVERAGE_NAMES, PRESETS, STRATEGY_NAMES, Config, load, merged
from MAESILLib.runtime.errors import InputError

if TYPE_CHECKING:
    import torch

    from MAESILLib.ct.scan import Given
    from MAESILLib.data.cache import Cache
    from MAESILLib.reconstruct.plan import Plan
    from MAESILLib.runtime.events import Reporter


def set_up_device(args: argparse.Namespace) -> torch.device:
    """Set the number of threads and return the device.

    Raises:
        InputError: a device that is not there, or a negative number of threads.
    """
    set_up_threads(args)
    from MAESILLib.runtime.device import choose_device

    return choose_device(args.device)


def set_up_threads(args: argparse.Namespace) -> None:
    """Set the number of CPU threads.

    Raises:
        InputError: it is negative, or there is no torch.
    """
    if args.threads < 0:
        raise InputError(f"--threads is {args.threads}", "give a positive number, or 0 for all cores")
    try:
        import torch
    except ImportError:
        raise InputError("PyTorch is not installed", "install torch, then repeat") from None
    if args.threads:
        torch.set_num_threads(args.threads)


def open_cache(folder: str, reporter: Reporter, config: Config | None = None) -> Cache:
    """Open a cache, and warn of what is missing of it.

    Raises:
        InputError: it cannot be used, or is on another grid than the configuration's.
    """
    from MAESILLib.data.cache import read_cache

    cache = read_cache(folder)
    for line in cache.unfinished:
        reporter.warning(f"{folder} is not whole: {line}")
    if config is not None and cache.spacing_mm != config.preprocessing.spacing_mm:
        raise InputError(
            f"{folder} has {cache.spacing_mm} mm voxels, the configuration {config.preprocessing.spacing_mm} mm",
            "prepare it again with that --spacing, or set preprocessing.spacing_mm",
        )
    return cache


def add_mask_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--mask", choices=STRATEGY_NAMES, default="dual", help="which tokens are hidden")
    parser.add_argument(
        "--plane-ratio",
        type=float,
        default=0.5,
        metavar="R",
        help="share of the in-plane positions that is hidden at every depth, 0 to 0.95",
    )
    parser.add_argument(
        "--axis-ratio",
        type=float,
        default=0.5,
        metavar="R",
        help="share of the remaining tokens that is hidden at each depth, 0 to 0.95",
    )
    parser.add_argument(
        "--coverage",
        choices=COVERAGE_NAMES,
        default="single",
        help="one mask, or masks that hide every patch at least once, each predicted from passes that hid it",
    )
    parser.add_argument(
        "--overlap",
        type=float,
        default=0.0,
        metavar="S",
        help="overlap of neighboring superpatches, a fraction of their side",
    )
    parser.add_argument(
        "--mask-file",
        metavar="LABELMAP",
        help="also hide tokens that hold a voxel of this label map, on any grid; with --mask none only these",
    )


def add_completion_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--completion",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="refine hidden patches with the completion network, which sees across patch borders",
    )


def plan_from(args: argparse.Namespace) -> Plan:
    """Return the plan the arguments describe.

    Raises:
        InputError: a ratio, overlap or combination that is not possible.
    """
    from MAESILLib.mae.masking import MaskSpec
    from MAESILLib.reconstruct.plan import Plan

    return Plan(MaskSpec(args.mask, args.plane_ratio, args.axis_ratio), args.coverage, args.overlap, args.seed)


def add_reading_arguments(parser: argparse.ArgumentParser, *spacing: str) -> None:
    """Add what a user states of an input that does not state it itself.

    Args:
        spacing: names of the option for the voxel size.
    """
    parser.add_argument(
        *spacing,
        dest="input_spacing",
        nargs=3,
        type=float,
        metavar=("I", "J", "K"),
        help="voxel size in mm of files that state none",
    )
    parser.add_argument(
        "--hu-offset", type=float, default=0.0, metavar="HU", help="added to every voxel, e.g. -1024 for raw CT numbers"
    )
    parser.add_argument(
        "--fill-gaps", action="store_true", help="interpolate missing DICOM slices instead of refusing the series"
    )


def given_from(args: argparse.Namespace) -> Given:
    """Return what :func:`add_reading_arguments` was given.

    Raises:
        InputError: a voxel size that is not positive.
    """
    from MAESILLib.ct.scan import Given

    spacing = args.input_spacing
    if spacing is not None and not all(math.isfinite(s) and s > 0 for s in spacing):
        raise InputError(f"a voxel size of {' x '.join(f'{s:g}' for s in spacing)} mm", "give three positive numbers")
    if not math.isfinite(args.hu_offset):
        raise InputError(f"--hu-offset {args.hu_offset}", "give a number of HU")
    return Given(None if spacing is None else tuple(spacing), args.hu_offset, args.fill_gaps)


def add_configuration_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--preset", choices=sorted(PRESETS), help="base configuration; small if not given")
    parser.add_argument("--config", metavar="TOML", help="configuration file that overrides the preset")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override one value, e.g. train.batch_size=4; may be repeated",
    )
    parser.add_argument("--steps", type=int, metavar="N", help="number of updates; overrides the configuration")
    # a seed that was not given must not overrule the configuration's
    parser.set_defaults(seed=None)


def configuration_from(args: argparse.Namespace, base: dict[str, Any] | None = None) -> Config:
    """Return the configuration the arguments describe.

    Args:
        base: values of a run that stand in for the preset and the file where neither is given.

    Raises:
        InputError: a file that cannot be read, an unknown key, or a value that is not possible.
    """
    values = overrides(args.set)
    train = values.setdefault("train", {})
    if args.seed is not None:
        train.setdefault("seed", args.seed)
    if args.steps is not None:
        train["steps"] = args.steps
    if base is not None and args.preset is None and args.config is None:
        values = merged(base, values)
    return load(args.config, args.preset, values)


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
