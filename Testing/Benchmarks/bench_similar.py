"""Best matches of labelled points in other patients: the encoder's features beside hand-made ones.

    python Testing/Benchmarks/bench_similar.py --points points.csv --features CACHE --output FILE.json

For each point the most similar cell of every other patient's CT that shows its structure (left and right count as one)
is found. It is right where the nearest labelled point is of the same structure and not farther than 24 mm. Points of
training patients are searched in training patients; those of validation patients in all others.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from bench_segment import encoded
from common import parser_of
from numpy.typing import NDArray

from MAESILLib.explore.features import Features
from MAESILLib.explore.similarity import surroundings
from MAESILLib.export.encoder import load_encoder
from MAESILLib.metrics.statistics import paired_difference
from MAESILLib.probe.features import hand_made
from MAESILLib.probe.points import Point, read_points, without_side
from MAESILLib.runtime.files import write_json
from MAESILLib.runtime.resources import embedded_checkpoint

NEAR_MM, SPACING_MM = 24, 1.5
ARMS = ("encoder", "hand-made", "hand-made, surroundings")


def described(arm: str, features: Features, hu: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return unit vectors (D, H, W, C) of the cells."""
    if arm != "encoder":
        stride, size = features.origin.stride, features.values.shape[1:]
        padded = np.pad(hu, [(0, n * stride - m) for n, m in zip(size, hu.shape, strict=True)], mode="edge")
        values = hand_made(torch.from_numpy(padded)[None])[0][0].numpy().T.reshape(-1, *size)
        features = replace(features, values=values)
    if arm == "hand-made":
        inside = features.in_body
        shape = (-1, 1, 1, 1)
        values = (features.values - inside.mean(0).reshape(shape)) / (inside.std(0).reshape(shape) + 1e-4)
    else:
        values = surroundings(features).values.astype(np.float32)
    vectors = np.moveaxis(values, 0, -1)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-6)


def main() -> None:
    """Measure every arm and print shares."""
    parser = parser_of(__doc__, "--points", "--features", "--output")
    args = parser.parse_args()
    encode = partial(encoded, cache=args.features, encoder=load_encoder(embedded_checkpoint()), stride=8)
    files: dict[Path, list[Point]] = {}
    for point in read_points(args.points):
        files.setdefault(point.file, []).append(point)
    made = {file: encode(file) for file in sorted(files)}
    result = {}
    for arm in ARMS:
        vectors = {file: described(arm, f, f.grid.to_model(v.hu)) for file, (v, f) in made.items()}
        rows: dict[str, dict[str, list[tuple[bool, float]]]] = {"train": {}, "val": {}}
        for file, there in files.items():
            place = np.stack([point.kji for point in there])
            names = np.array([without_side(point.structure) for point in there])
            body = made[file][1].body
            cells = np.argwhere(body)
            queries = [
                point
                for points in files.values()
                for point in points
                if point.patient != there[0].patient
                and without_side(point.structure) in {*names} - {"air"}
                and (point.split == "val" or there[0].split == "train")
            ]
            asked = np.stack([vectors[query.file][tuple(query.kji // 8)] for query in queries])
            best = cells[(asked @ vectors[file][body].T).argmax(1)] * 8 + 3.5
            away = np.linalg.norm(place - best[:, None], axis=2) * SPACING_MM
            for query, mm in zip(queries, away, strict=True):
                same = names == without_side(query.structure)
                right = bool(same[mm.argmin()] and mm.min() <= NEAR_MM)
                rows[query.split].setdefault(query.patient, []).append((right, float(mm[same].min())))
        result[arm] = {split: {p: np.array(one) for p, one in found.items()} for split, found in rows.items()}
    for split in ("train", "val"):
        shares = {arm: {p: float(x[:, 0].mean()) for p, x in result[arm][split].items()} for arm in ARMS}
        for arm in ARMS:
            pooled = np.concatenate(list(result[arm][split].values()))
            apart = paired_difference(shares["encoder"], shares[arm], {p: p for p in shares[arm]})
            print(
                f"{split}: {arm} {pooled[:, 0].mean():.3f} of {len(pooled)}, median {np.median(pooled[:, 1]):.1f} mm, "
                f"encoder minus it {apart}"
            )
        write_json(args.output.with_stem(f"{args.output.stem}-{split}"), shares)


if __name__ == "__main__":
    main()
