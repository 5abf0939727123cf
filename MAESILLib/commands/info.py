"""``maesil info``: what is in a checkpoint, a cache or a volume."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from MAESILLib.errors import InputError
from MAESILLib.events import Reporter
from MAESILLib.stopping import StopRequest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's own arguments."""
    parser.add_argument("file", metavar="FILE", help="checkpoint, cache folder, volume file or DICOM folder")


def run(args: argparse.Namespace, reporter: Reporter, stop: StopRequest) -> None:
    """Run the command."""
    from MAESILLib.data.cache import INDEX

    path = Path(args.file)
    if not path.exists():
        raise InputError(f"no such file or folder: {path}", "check the path")
    if path.suffix == ".safetensors":
        text = _checkpoint(path)
    elif (path / INDEX).is_file():
        text = _cache(path)
    else:
        text = _volume(path)
    # the result is what was asked for, so it is printed in every mode
    print(text)


def _checkpoint(path: Path) -> str:
    from MAESILLib.checkpoint import checkpoint_identity, read_info
    from MAESILLib.config import to_dict

    info = read_info(path)
    return json.dumps(
        {
            **checkpoint_identity(path),
            "megabytes": round(path.stat().st_size / 1e6, 1),
            "model": to_dict(info.model),
            "preprocessing": to_dict(info.preprocessing),
            "mask": info.mask,
            "training": info.training,
            "library_version": info.library_version,
        },
        indent=2,
    )


def _cache(path: Path) -> str:
    from MAESILLib.commands.prepare import summary
    from MAESILLib.data.cache import read_cache

    cache = read_cache(path)
    rows = [
        f"  {e.name}: {' x '.join(map(str, e.shape_dhw))}, patient {e.patient}, {e.split or '-'}" for e in cache.entries
    ]
    return "\n".join([summary(cache), *rows])


def _volume(path: Path) -> str:
    from MAESILLib.reading import read_volume
    from MAESILLib.volume import model_grid

    volume = read_volume(path)
    grid = model_grid(volume.geometry)
    lines = [
        f"{volume.name}: {volume.hu.dtype} {' x '.join(map(str, volume.geometry.size_dhw))} (D x H x W)",
        f"spacing {' x '.join(f'{s:g}' for s in volume.geometry.spacing_dhw)} mm (D x H x W)",
        f"HU {volume.hu.min():g} to {volume.hu.max():g}",
        f"at 1.5 mm: {' x '.join(map(str, grid.geometry.size_dhw))}",
    ]
    return "\n".join([*lines, *(f"warning: {warning}" for warning in volume.warnings)])
