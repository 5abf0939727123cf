"""``maesil similar``: where a CT, and others, are similar to query points, by the encoder's features."""

import argparse
from pathlib import Path
from typing import Any

from MAESILLib.commands.features import add_encoder_arguments, encode, load, read
from MAESILLib.runtime.errors import InputError
from MAESILLib.runtime.events import Reporter
from MAESILLib.runtime.stopping import StopRequest

UNITS = ("r_mm", "a_mm", "s_mm")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", metavar="INPUT", help="CT of the query points")
    parser.add_argument(
        "--at",
        nargs=3,
        type=float,
        action="append",
        required=True,
        metavar=("R", "A", "S"),
        help="query point in RAS mm, as in Slicer; may be repeated, to search with the mean direction",
    )
    parser.add_argument("--in", nargs="+", default=[], dest="others", metavar="OTHER", help="other CTs to search")
    parser.add_argument("--top", type=int, default=5, metavar="N", help="number of best matches to list for each CT")
    parser.add_argument(
        "--output", required=True, metavar="DIR", help="folder for a similarity map of each CT and matches.csv"
    )
    add_encoder_arguments(parser)


def run(args: argparse.Namespace, reporter: Reporter, stop: StopRequest) -> None:
    import numpy as np

    from MAESILLib.ct.writing import volume_writer
    from MAESILLib.data.names import plan_names
    from MAESILLib.explore.similarity import best_matches, directions, features_at, similarity_map, surroundings
    from MAESILLib.metrics.catalogue import markdown_table
    from MAESILLib.runtime.files import csv_text, staged, write_text

    if args.top < 1:
        raise InputError(f"--top is {args.top}", "give 1 or more")
    encoder = load(args)
    rows: list[dict[str, Any]] = []
    paths = [args.input, *args.others]
    names = plan_names([Path(path) for path in paths])
    maps = []
    for number, (path, name) in enumerate(zip(paths, names, strict=True)):
        volume = read(args, path, None if number else args.series, reporter, stop)
        features = surroundings(encode(args, encoder, volume, reporter, stop))
        if number == 0:
            queries = directions(features_at(features, [(-r, -a, s) for r, a, s in args.at]).T)
        maps.append((similarity_map(directions(features.values), queries), features.cells.geometry))
        for rank, (point, value) in enumerate(best_matches(features, maps[-1][0], args.top), start=1):
            ras = np.round((-point[0], -point[1], point[2]), 1).tolist()
            rows.append(
                {"volume": name, "rank": rank, **dict(zip(UNITS, ras, strict=True)), "similarity": round(value, 3)}
            )
    output = Path(args.output)
    with staged(output, last="matches.csv") as staging:
        for name, (similarity, geometry) in zip(names, maps, strict=True):
            with volume_writer(staging / f"{name}.nrrd", np.float32, geometry) as write:
                write(similarity)
        write_text(staging / "matches.csv", csv_text(rows))
    for name in names:
        reporter.artifact("similarity", output / f"{name}.nrrd")
    reporter.artifact("table", output / "matches.csv")
    if args.progress != "json":
        print("\n".join(markdown_table(list(rows[0]), [list(map(str, row.values())) for row in rows])))
