"""``maesil surprise``: where a CT is not what the model expects from its surroundings."""

from __future__ import annotations

import argparse
from pathlib import Path

from MAESILLib.commands.common import add_reading_arguments, set_up_device
from MAESILLib.commands.features import read
from MAESILLib.runtime.errors import InputError
from MAESILLib.runtime.events import Reporter
from MAESILLib.runtime.stopping import StopRequest

SUFFIX = ".surprise.json"
THRESHOLD = 2
"""Of the map: 1 % of the voxels of usual patients lie above."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="a CT; with --calibrate, CTs of usual patients")
    parser.add_argument("--output", metavar="DIR", help="folder for surprise.nrrd, expected.nrrd and spread.nrrd")
    parser.add_argument("--checkpoint", metavar="C", help="checkpoint; the embedded one if not given")
    parser.add_argument(
        "--covers",
        type=int,
        default=8,
        metavar="N",
        help="number of complete covers: how often each voxel is predicted",
    )
    parser.add_argument(
        "--calibrate",
        metavar="J",
        help="write the errors of these INPUTs to a JSON file, which other CTs are compared with",
    )
    parser.add_argument(
        "--calibration",
        metavar="J",
        help="JSON file written by --calibrate; the checkpoint's NAME.surprise.json if not given",
    )
    parser.add_argument("--series", metavar="UID", help="DICOM series of INPUT: UID, number, or largest")
    add_reading_arguments(parser, "--spacing", "--input-spacing")


def run(args: argparse.Namespace, reporter: Reporter, stop: StopRequest) -> None:
    import numpy as np

    from MAESILLib.ct.body import body_mask
    from MAESILLib.ct.volume import model_grid
    from MAESILLib.explore import surprise
    from MAESILLib.reconstruct.results import load_model
    from MAESILLib.runtime.files import staged
    from MAESILLib.runtime.resources import embedded_checkpoint

    if args.covers < 2:
        raise InputError(f"--covers is {args.covers}", "give 2 or more: one has no spread")
    if not args.calibrate and (len(args.inputs) > 1 or not args.output):
        raise InputError("surprise needs one INPUT and --output, or --calibrate", "see maesil surprise --help")
    checkpoint = Path(args.checkpoint) if args.checkpoint else embedded_checkpoint()
    model = load_model(checkpoint, set_up_device(args))
    weights, window = model.identity["weights_sha256"], model.info.preprocessing.window_hu
    if not args.calibrate:
        calibration = surprise.read_calibration(Path(args.calibration or checkpoint.with_suffix(SUFFIX)), weights)
        if calibration.covers != args.covers:
            reporter.warning(f"the calibration is of {calibration.covers} covers, not of {args.covers}")
    found = []
    for path in args.inputs:
        volume = read(args, path, args.series, reporter, stop)
        grid = model_grid(volume.geometry, model.info.preprocessing.spacing_mm)
        hu = grid.to_model(volume.hu)
        body = body_mask(hu)
        if not body.any():
            raise InputError(f"{path} shows nothing of a patient", "give a CT of a body")
        mean, spread = surprise.predict(
            model, hu, volume.name, args.covers, args.seed, stop, lambda share: reporter.progress("predict", share)
        )
        found.append(surprise.errors_of(hu, mean, spread, body, grid, window))
    if args.calibrate:
        surprise.write_calibration(Path(args.calibrate), surprise.calibrate(found, weights, args.covers))
        reporter.artifact("calibration", Path(args.calibrate))
        return
    values = np.zeros(hu.shape, np.float32)
    values[body] = surprise.surprise(found[0], calibration)
    output = Path(args.output)
    maps = {"expected": mean, "spread": spread, "surprise": values}
    with staged(output, last="surprise.nrrd") as staging:
        for number, (kind, array) in enumerate(maps.items()):
            stop.check()
            reporter.progress("write", number / len(maps))
            surprise.write_map(staging / f"{kind}.nrrd", array, grid)
    for kind in maps:
        reporter.artifact(kind, output / f"{kind}.nrrd")
    if args.progress != "json":
        print(f"{(values[body] > THRESHOLD).mean():.2%} of the patient lie above {THRESHOLD}; of usual patients 1 %")
