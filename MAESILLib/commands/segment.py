"""``maesil segment``: segments from a few strokes, by a linear classifier of the encoder's features and HU."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from MAESILLib.commands.features import add_encoder_arguments, encode, load, read
from MAESILLib.runtime.errors import InputError
from MAESILLib.runtime.events import Reporter
from MAESILLib.runtime.stopping import StopRequest

if TYPE_CHECKING:
    from MAESILLib.ct.volume import CTVolume
    from MAESILLib.explore.features import Features, Origin
    from MAESILLib.explore.segment import Segmenter, Strokes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("fit", "apply"), help="fit to strokes in a CT, or apply to CTs")
    parser.add_argument("paths", nargs="+", metavar="FILE", help="fit: INPUT; apply: M.safetensors INPUT...")
    parser.add_argument(
        "--strokes",
        metavar="S",
        help="segmentation (.seg.nrrd) or label map with a few strokes in two or more segments; apply: strokes in "
        "the only INPUT, which is then filled near them alone",
    )
    parser.add_argument(
        "--output", required=True, metavar="PATH", help="fit: M.safetensors; apply: folder for the segmentations"
    )
    parser.add_argument("--fill", metavar="DIR", help="fit: also fill INPUT from the strokes, into this folder")
    parser.add_argument(
        "--features",
        metavar="DIR",
        help="folder of maesil features of INPUT; computed and kept beside the output if not given",
    )
    add_encoder_arguments(parser)


def run(args: argparse.Namespace, reporter: Reporter, stop: StopRequest) -> None:
    (_fit if args.action == "fit" else _apply)(args, reporter, stop)


def _fit(args: argparse.Namespace, reporter: Reporter, stop: StopRequest) -> None:
    from MAESILLib.explore.segment import fit_segments, write_segmenter

    if len(args.paths) != 1 or not args.strokes:
        raise InputError("segment fit needs one INPUT and its --strokes", "see maesil segment --help")
    output = Path(args.output)
    if output.suffix != ".safetensors":
        raise InputError(f"{output} does not end with .safetensors", f"name it {output.stem}.safetensors")
    volume = read(args, args.paths[0], args.series, reporter, stop)
    strokes = _strokes(args, volume, stop)
    features = _features(args, volume, _origin(args), output.with_suffix(".features.safetensors"), reporter, stop)
    segmenter = fit_segments(volume, features, strokes, seed=args.seed)
    write_segmenter(output, segmenter)
    reporter.artifact("segmenter", output)
    if args.fill:
        _write(Path(args.fill), volume.name, segmenter, volume, features, strokes, reporter, stop)


def _apply(args: argparse.Namespace, reporter: Reporter, stop: StopRequest) -> None:
    from MAESILLib.data.names import plan_names
    from MAESILLib.explore.segment import read_segmenter

    model, *inputs = args.paths
    if not inputs:
        raise InputError("segment apply needs M.safetensors and one INPUT or more", "see maesil segment --help")
    for option in ("strokes", "features", "series"):
        if getattr(args, option) and len(inputs) > 1:
            raise InputError(f"--{option} is for one INPUT, and there are {len(inputs)}", f"leave --{option} out")
    segmenter = read_segmenter(Path(model))
    args.block, args.stride = segmenter.origin.block, segmenter.origin.stride
    if _origin(args) != segmenter.origin:
        raise InputError(f"{model} was fitted to features of another checkpoint", "give that one as --checkpoint")
    for path, name in zip(inputs, plan_names([Path(one) for one in inputs]), strict=True):
        volume = read(args, path, args.series, reporter, stop)
        strokes = _strokes(args, volume, stop) if args.strokes else None
        kept = Path(args.output) / f"{name}.features.safetensors"
        features = _features(args, volume, segmenter.origin, kept, reporter, stop)
        _write(Path(args.output), name, segmenter, volume, features, strokes, reporter, stop)


def _strokes(args: argparse.Namespace, volume: CTVolume, stop: StopRequest) -> Strokes:
    from MAESILLib.data.apart import read_apart
    from MAESILLib.explore.segment import segment_fields, strokes_of

    path = Path(args.strokes)
    fields = segment_fields(path) if path.is_file() else {}
    return strokes_of(read_apart(path, stop, check=False), fields, volume)


def _origin(args: argparse.Namespace) -> Origin:
    """Return what features of the arguments are made with; nothing is loaded."""
    from MAESILLib.explore.features import Origin
    from MAESILLib.export.description import read_encoder_info
    from MAESILLib.runtime.resources import embedded_checkpoint

    info = read_encoder_info(args.checkpoint or embedded_checkpoint())
    return Origin(info.source["sha256"], args.block or info.model.encoder_depth, args.stride)


def _features(
    args: argparse.Namespace, volume: CTVolume, origin: Origin, kept: Path, reporter: Reporter, stop: StopRequest
) -> Features:
    """Return the features that are kept; without, encode the volume and keep them."""
    from MAESILLib.explore.features import read_features, write_features

    if args.features:
        return read_features(Path(args.features) / "features.safetensors", volume, origin)
    try:
        return read_features(kept, volume, origin)
    except InputError:
        # there are none yet, or of another CT, checkpoint, block or stride
        features = encode(args, load(args), volume, reporter, stop)
        write_features(kept, features, volume)
        return features


def _write(
    folder: Path,
    name: str,
    segmenter: Segmenter,
    volume: CTVolume,
    features: Features,
    strokes: Strokes | None,
    reporter: Reporter,
    stop: StopRequest,
) -> None:
    from MAESILLib.explore.segment import probabilities, write_segments
    from MAESILLib.runtime.files import staged

    stop.check()
    reporter.progress("segment", 0.0)
    found = probabilities(segmenter, volume, features, strokes)
    stop.check()
    with staged(folder, last=f"{name}.seg.nrrd") as staging:
        write_segments(staging, name, segmenter, features.grid, found)
    reporter.progress("segment", 1.0)
    reporter.artifact("segmentation", folder / f"{name}.seg.nrrd")
    for number in range(1, len(found) + 1):
        reporter.artifact("probability", folder / f"{name}-{number}.nrrd")
