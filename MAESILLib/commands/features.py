"""``maesil features``: dense features of a CT, and their principal components as colors."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from MAESILLib.commands.common import add_reading_arguments, given_from, set_up_device
from MAESILLib.runtime.errors import InputError
from MAESILLib.runtime.events import Reporter
from MAESILLib.runtime.stopping import StopRequest

if TYPE_CHECKING:
    from MAESILLib.ct.volume import CTVolume
    from MAESILLib.explore.features import Features
    from MAESILLib.export.encoder import PretrainedEncoder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", metavar="INPUT", help="a NIfTI, NRRD or MHA file, or a DICOM folder")
    parser.add_argument(
        "--output", required=True, metavar="DIR", help="folder for features.safetensors, pca.nrrd and basis.safetensors"
    )
    add_encoder_arguments(parser)
    parser.add_argument(
        "--basis", metavar="FILE", help="basis.safetensors of another CT, so that colors are comparable"
    )
    parser.add_argument("--colors", action=argparse.BooleanOptionalAction, default=True, help="write pca.nrrd")


def add_encoder_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", metavar="C", help="checkpoint or torch export; the embedded one if not given")
    parser.add_argument(
        "--block",
        type=int,
        default=0,
        metavar="N",
        help="encoder block to take the features from, counted from 1; 0 for the last",
    )
    parser.add_argument(
        "--stride", type=int, default=8, metavar="N", help="distance of features in voxels of 1.5 mm: 8, 4 or 2"
    )
    parser.add_argument("--series", metavar="UID", help="DICOM series of INPUT: UID, number, or largest")
    add_reading_arguments(parser, "--spacing", "--input-spacing")


def load(args: argparse.Namespace) -> PretrainedEncoder:
    from MAESILLib.export.encoder import load_encoder
    from MAESILLib.runtime.resources import embedded_checkpoint

    return load_encoder(Path(args.checkpoint) if args.checkpoint else embedded_checkpoint(), set_up_device(args))


def read(args: argparse.Namespace, path: str, series: str | None, reporter: Reporter, stop: StopRequest) -> CTVolume:
    from MAESILLib.data.apart import read_apart

    reporter.progress("read", 0.0)
    volume = read_apart(Path(path), stop, series=series, given=given_from(args))
    reporter.progress("read", 1.0)
    for warning in volume.warnings:
        reporter.warning(warning)
    return volume


def encode(
    args: argparse.Namespace, encoder: PretrainedEncoder, volume: CTVolume, reporter: Reporter, stop: StopRequest
) -> Features:
    from MAESILLib.explore.encoding import dense_features

    features = dense_features(
        encoder,
        volume,
        block=args.block,
        stride=args.stride,
        stop=stop,
        progress=lambda share: reporter.progress("encode", share),
    )
    if not features.body.any():
        raise InputError(f"{volume.path} shows nothing of a patient", "give a CT of a body")
    return features


def run(args: argparse.Namespace, reporter: Reporter, stop: StopRequest) -> None:
    from MAESILLib.explore.colors import fit_basis, read_basis, write_basis, write_colors
    from MAESILLib.explore.features import write_features
    from MAESILLib.runtime.files import staged

    encoder = load(args)
    basis = read_basis(Path(args.basis), encoder.width) if args.basis else None
    volume = read(args, args.input, args.series, reporter, stop)
    features = encode(args, encoder, volume, reporter, stop)
    basis = basis or fit_basis(features.in_body)
    output = Path(args.output)
    names = ["features.safetensors", "basis.safetensors", *(["pca.nrrd"] if args.colors else [])]
    with staged(output, last=names[-1]) as staging:
        write_features(staging / names[0], features, volume)
        write_basis(staging / names[1], basis)
        stop.check()
        reporter.progress("write", 0.0)
        if args.colors:
            write_colors(staging / names[2], features, basis)
        reporter.progress("write", 1.0)
    for name in names:
        reporter.artifact(name.split(".")[0], output / name)
