"""``maesil reconstruct``: mask and reconstruct CTs; write volumes, metrics and a figure."""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from MAESILLib.commands.common import (
    add_completion_argument,
    add_mask_arguments,
    add_reading_arguments,
    given_from,
    plan_from,
    set_up_device,
)
from MAESILLib.runtime.errors import InputError
from MAESILLib.runtime.events import Reporter
from MAESILLib.runtime.stopping import StopRequest

if TYPE_CHECKING:
    from MAESILLib.data.sources import Source
    from MAESILLib.reconstruct.plan import Plan
    from MAESILLib.reconstruct.results import Model

FORMATS = ("nrrd", "nii.gz")
COLUMNS = ("psnr", "harmonic", "mae", "ssim", "border_index", "seconds")
"""Metrics of the table of several inputs."""
NOT_OF_A_RESULT = {
    *("command", "inputs", "output", "checkpoint", "name", "mask_file"),
    *("device", "threads", "progress", "stop_file", "watch_parent"),
}
"""Arguments that a result of one of several inputs does not follow from; its checkpoint's hash is compared."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "inputs", nargs="+", metavar="INPUT", help="NIfTI, NRRD or MHA files, DICOM folders, or folders of these"
    )
    parser.add_argument(
        "--output",
        required=True,
        metavar="DIR",
        help="folder for the results; each of several inputs gets a subfolder, and a second call resumes",
    )
    parser.add_argument("--checkpoint", metavar="C", help="a .safetensors checkpoint; the embedded one if not given")
    parser.add_argument("--series", metavar="UID", help="DICOM series: UID, number, or largest; only with one input")
    add_reading_arguments(parser, "--spacing", "--input-spacing")
    parser.add_argument("--name", help="volume name, part of the mask seed; the file name if not given")
    add_mask_arguments(parser)
    add_completion_argument(parser)
    add_output_arguments(parser)


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--format", choices=FORMATS, default="nrrd", help="file format of the volumes")
    parser.add_argument(
        "--compress",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compress .nrrd volumes; .nii.gz volumes always are",
    )
    parser.add_argument("--figure", action=argparse.BooleanOptionalAction, default=True, help="write figure.png")


def run(args: argparse.Namespace, reporter: Reporter, stop: StopRequest) -> None:
    from MAESILLib.data.sources import Source
    from MAESILLib.reconstruct.results import load_model
    from MAESILLib.reconstruct.several import find_inputs
    from MAESILLib.runtime.resources import embedded_checkpoint

    plan = plan_from(args)
    device = set_up_device(args)
    inputs = [Path(path) for path in args.inputs]
    sources, is_one = ([Source(inputs[0])], True) if args.series and len(inputs) == 1 else find_inputs(inputs)
    for option in ("series", "name", "mask-file"):
        if getattr(args, option.replace("-", "_")) and not is_one:
            raise InputError(f"--{option} is for one input, and there are {len(sources)}", f"leave --{option} out")
    stop.check()
    model = load_model(Path(args.checkpoint) if args.checkpoint else embedded_checkpoint(), device)
    if not is_one:
        _run_several(args, sources, model, plan, reporter, stop)
        return
    metrics = _reconstruct(args, model, plan, reporter, stop, sources[0], Path(args.output))
    if args.progress != "json":
        print(table(metrics))


def _run_several(
    args: argparse.Namespace, sources: list[Source], model: Model, plan: Plan, reporter: Reporter, stop: StopRequest
) -> None:
    from MAESILLib.evaluation.tables import cells, headings
    from MAESILLib.metrics.catalogue import markdown_table
    from MAESILLib.reconstruct.several import reconstruct_each
    from MAESILLib.runtime.files import csv_text, write_text

    output = Path(args.output)
    options = {key: value for key, value in vars(args).items() if key not in NOT_OF_A_RESULT}
    options["checkpoint"] = model.identity["sha256"]

    def reconstruct(source: Source, folder: Path, request: dict[str, Any]) -> None:
        _reconstruct(args, model, plan, reporter, stop, source, folder, request)

    rows, failures = reconstruct_each(sources, output, options, reconstruct, reporter, stop)
    if rows:
        write_text(output / "metrics.csv", csv_text(rows))
        reporter.artifact("table", output / "metrics.csv")
        if args.progress != "json":
            lines = [[row["result"], *cells(row, COLUMNS)] for row in rows]
            print("\n".join(markdown_table(["result", *headings(COLUMNS)], lines)))
    if failures:
        # of the kinds of failure, the one that ends with the highest status
        kind = type(max(failures, key=lambda failure: failure.exit_status))
        raise kind(f"{len(failures)} of {len(sources)} inputs failed", "mend them; a second call makes these alone")


def _reconstruct(
    args: argparse.Namespace,
    model: Model,
    plan: Plan,
    reporter: Reporter,
    stop: StopRequest,
    source: Source,
    folder: Path,
    request: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Reconstruct one input; ``request`` is stored in metrics.json."""
    from MAESILLib.ct.reading import find_series, read_geometry
    from MAESILLib.data.apart import read_apart
    from MAESILLib.reconstruct.estimate import check_memory
    from MAESILLib.reconstruct.painted import hide_painted
    from MAESILLib.reconstruct.results import Outputs, reconstruct_volume

    begin = time.monotonic()
    stop.check()
    reporter.progress("read", 0.0)
    path, given = source.path, given_from(args)
    with stop.until_first_check():
        series = find_series(path, source.series or args.series, given)
        geometry = read_geometry(path, series=series, given=given)
    spacing, is_complete = model.info.preprocessing.spacing_mm, plan.coverage == "complete"
    if warning := check_memory(geometry, spacing, str(path), is_complete=is_complete):
        reporter.warning(warning)
    volume = read_apart(path, stop, series=series, given=given)
    if args.name:
        volume = dataclasses.replace(volume, name=args.name)
    if args.mask_file:
        labels = read_apart(Path(args.mask_file), stop, check=False)
        plan = hide_painted(plan, labels, volume, model.info)
    reporter.progress("read", 1.0)
    stop.check()
    outputs = Outputs(folder, args.format, args.figure, args.compress)
    return reconstruct_volume(
        volume, model, plan, outputs, reporter, stop, begin, completed=args.completion, request=request
    )


def table(metrics: dict[str, Any]) -> str:
    """Return the metrics of a reconstruction as text for people."""
    from MAESILLib.metrics.catalogue import described
    from MAESILLib.reconstruct.results import displayed_mask_ratio, mask_title

    scan, mask, checkpoint = metrics["input"], metrics["mask"], metrics["checkpoint"]
    size, ratio = " x ".join(map(str, scan["size"][::-1])), displayed_mask_ratio(mask)
    rows = [
        ("input", f"{scan['name']}, {size} voxels (D x H x W)"),
        ("checkpoint", f"{checkpoint['name']} ({checkpoint['sha256'][:12]})"),
        ("mask", f"{mask_title(mask)}, hides {ratio:.1%}, coverage {mask['coverage']}, seed {mask['seed']}"),
        *described(metrics),
    ]
    width = max(len(label) for label, _ in rows)
    return "\n".join(f"{label.ljust(width)}  {value}" for label, value in rows)
