"""What the commands that train have in common: the configuration of a training, from their arguments."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from MAESILLib.runtime.errors import InputError

if TYPE_CHECKING:
    from MAESILLib.config import Config
    from MAESILLib.data.cache import Cache


def add_configuration_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what :func:`configuration_from` takes."""
    from MAESILLib.config import PRESETS

    parser.add_argument("--preset", choices=sorted(PRESETS), help="base configuration; small if not given")
    parser.add_argument("--config", metavar="TOML", help="configuration file, over the preset")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="one value, as train.batch_size=4; may be repeated",
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
    from MAESILLib import config as configuration

    values = overrides(args.set)
    train = values.setdefault("train", {})
    if args.seed is not None:
        train.setdefault("seed", args.seed)
    if args.steps is not None:
        train["steps"] = args.steps
    if base is not None and args.preset is None and args.config is None:
        values = configuration.merged(base, values)
    return configuration.load(args.config, args.preset, values)


def check_spacing(cache: Cache, config: Config) -> None:
    """Refuse a cache on another grid than the configuration's.

    Raises:
        InputError: its voxels have another size.
    """
    if cache.spacing_mm != config.preprocessing.spacing_mm:
        raise InputError(
            f"{cache.folder} has {cache.spacing_mm} mm voxels, the configuration {config.preprocessing.spacing_mm} mm",
            "prepare it again with that --spacing, or set preprocessing.spacing_mm",
        )


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
