"""Segments from a few simulated strokes: the encoder's features beside HU alone and beside grow-cut.

    python Testing/Benchmarks/bench_segment.py --data DIR --features CACHE --output FILE.json [--every N]

DIR holds train/ and val/ with CTs, NAME_seg.nii.gz beside some, and points.csv as ``maesil probe`` takes it.
Every arm chooses its settings by the same search on training patients; validation patients are measured once.
"""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from common import parser_of, show
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.distance import cdist

from MAESILLib.ct.reading import read_volume
from MAESILLib.ct.volume import CTVolume
from MAESILLib.explore.encoding import dense_features
from MAESILLib.explore.features import Features, Origin, read_features, write_features
from MAESILLib.explore.segment import NEAR_MM, Segmenter, Settings, Strokes, fit_segments, probabilities, tissue_at
from MAESILLib.explore.similarity import features_at
from MAESILLib.export.encoder import PretrainedEncoder, load_encoder
from MAESILLib.probe.points import Point, read_points
from MAESILLib.runtime.errors import InputError
from MAESILLib.runtime.files import write_json
from MAESILLib.runtime.resources import embedded_checkpoint

ARMS = ("encoder", "HU alone", "grow-cut")
SLICES, STROKES, LENGTH, RADIUS, BESIDE = 3, 2, 16, 1.5, (2, 20)
"""Slices, strokes a slice in the structure and beside it, and in voxels: longest stroke, brush, how far beside."""
CUBE = 8
SHARED: dict[str, tuple[Any, ...]] = {"nearness": (1.0, 2.0), "smooth_mm": (3.0, 6.0), "margin_mm": (6, 12)}
GRIDS: dict[str, dict[str, tuple[Any, ...]]] = {
    "encoder": {"penalty": (3e-4, 1e-3), **SHARED},
    "HU alone": {"penalty": (1e12,), "sigmas_mm": ((0, 3), (0, 1.5, 3, 6)), **SHARED},
    "grow-cut": {"penalty": (0.0, 2.0), "sigma": (1.0, 2.0), "margin_mm": (6, 12)},
}


@dataclass(frozen=True, eq=False)
class Case:
    """A CT on its own grid with its features, and what is painted and true, each (D, H, W)."""

    name: str
    volume: CTVolume
    features: Features
    painted: NDArray[np.uint8]
    truth: NDArray[np.bool_]


def simulate(truth: NDArray[np.bool_], body: NDArray[np.bool_], seed: int) -> NDArray[np.uint8]:
    """Paint straight strokes on axial slices that part a structure into equal volumes: 2 in it, 1 beside it."""
    rng, painted, areas = np.random.default_rng(seed), np.zeros(truth.shape, np.uint8), truth.sum((1, 2)).cumsum()
    for share in (np.arange(SLICES) + 0.5) / SLICES:
        k = int(np.searchsorted(areas, share * areas[-1]))
        away = ndimage.distance_transform_edt(~truth[k])
        beside = (away > BESIDE[0]) & (away <= BESIDE[1]) & body[k]
        for _, (value, region) in itertools.product(range(STROKES), ((2, truth[k]), (1, beside))):
            inner = ndimage.binary_erosion(region, iterations=2)
            at = np.argwhere(inner if inner.any() else region)
            first = at[rng.integers(len(at))]
            near = at[np.linalg.norm(at - first, axis=1) <= LENGTH]
            last = near[rng.integers(len(near))]
            line = np.linspace(first, last, LENGTH + 1)
            pixels = np.argwhere(region)
            pixels = pixels[cdist(pixels, line).min(1) <= RADIUS]
            painted[k][tuple(pixels.T)] = value
    return painted


def grow_cut(hu: NDArray[Any], painted: NDArray[np.uint8], options: dict[str, Any]) -> NDArray[np.int16]:
    """Slicer's "Grow from seeds" of a volume of 1.5 mm voxels; 0 beyond the margin of the seeds."""
    import slicer
    import vtk
    from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

    place, margin = np.argwhere(painted), round(options["margin_mm"] / 1.5)
    low, high = np.maximum(place.min(0) - margin, 0), place.max(0) + margin + 1
    box = tuple(map(slice, low, high))
    smooth = ndimage.gaussian_filter(np.clip(hu, -1000, 1000).astype(np.float32), options["sigma"])
    images = []
    for array in (smooth[box], painted[box]):
        image = vtk.vtkImageData()
        image.SetDimensions(array.shape[::-1])
        image.GetPointData().SetScalars(numpy_to_vtk(np.ascontiguousarray(array, np.int16).ravel(), deep=True))
        images.append(image)
    filter_ = slicer.vtkImageGrowCutSegment()
    filter_.SetIntensityVolume(images[0])
    filter_.SetSeedLabelVolume(images[1])
    filter_.SetDistancePenalty(options["penalty"])
    filter_.Update()
    found = np.zeros(painted.shape, np.int16)
    found[box] = vtk_to_numpy(filter_.GetOutput().GetPointData().GetScalars()).reshape(painted[box].shape)
    return found


def strokes_in(painted: NDArray[np.uint8], volume: CTVolume) -> Strokes:
    """Return the strokes that are painted on a volume's own grid."""
    place = np.argwhere(painted)
    codes, segment = np.unique(painted[tuple(place.T)], return_inverse=True)
    return Strokes(tuple({"Name": str(n)} for n in codes), volume.geometry.physical_point(place), segment)


def dice(case: Case, arm: str, options: dict[str, Any]) -> float:
    """Return the Dice of an arm with its settings."""
    if arm == "grow-cut":
        found = grow_cut(case.volume.hu, case.painted, options) == 2
    else:
        strokes, settings = strokes_in(case.painted, case.volume), Settings(**options)
        segmenter = fit_segments(case.volume, case.features, strokes, settings)
        shares = probabilities(segmenter, case.volume, case.features, strokes)
        found = case.features.grid.to_source(shares[1]) > 0.5
    return 2 * (found & case.truth).sum() / (found.sum() + case.truth.sum())


def encoded(path: Path, cache: Path, encoder: PretrainedEncoder, stride: int) -> tuple[CTVolume, Features]:
    """Return a CT and its features, kept in a folder."""
    volume = read_volume(path)
    kept = cache / f"{volume.name}.{stride}.safetensors"
    origin = Origin(encoder.info.source["sha256"], len(encoder.encoder.blocks), stride)
    try:
        return volume, read_features(kept, volume, origin)
    except InputError:
        features = dense_features(encoder, volume, stride=stride)
        write_features(kept, features, volume)
        return volume, features


def label_cases(folder: Path, encode: Callable[[Path], tuple[CTVolume, Features]], every: int = 1) -> list[Case]:
    """Return the CTs of a folder that have a label map, with simulated strokes."""
    cases = []
    for number, path in enumerate(sorted(folder.glob("*_seg.nii.gz"))[::every]):
        volume, features = encode(path.with_name(path.name.replace("_seg", "")))
        truth = read_volume(path, check=False).hu > 0
        painted = simulate(truth, features.grid.to_source(features.voxels, nearest=True), number)
        cases.append(Case(volume.name, volume, features, painted, truth))
    return cases


def point_scores(
    fitted: tuple[Segmenter, Strokes], volume: CTVolume, features: Features, points: NDArray[np.float64], is_same: bool
) -> NDArray[np.float64]:
    """Return scores (N, K) at points (N, 3) as ``probabilities`` has them before they are smoothed."""
    segmenter, strokes = fitted
    scores = features_at(features, points) @ segmenter.weights + segmenter.intercept
    tissue = segmenter.tissue.reshape(-1, len(segmenter.segments))
    scores = scores + tissue_at(volume, features.grid, points, segmenter.settings) @ tissue
    if is_same:
        away = [cdist(points, strokes.points[strokes.segment == k]).min(1) for k in range(len(segmenter.segments))]
        scores -= segmenter.settings.nearness * np.log(np.stack(away, 1) + NEAR_MM)
    return scores


def choose(arm: str, measure: Callable[[str, dict[str, Any]], Iterable[float]]) -> dict[str, Any]:
    """Return the settings of an arm with the highest mean, one setting after the other."""
    grid = GRIDS[arm]
    best, known = {key: values[0] for key, values in grid.items()}, {}
    for key, values in grid.items():
        for value in values:
            options = {**best, key: value}
            if (code := repr(options)) not in known:
                known[code] = float(np.mean(list(measure(arm, options))))
                print(f"{arm}: {options} {known[code]:.3f}", flush=True)
        best[key] = max(values, key=lambda value: known[repr({**best, key: value})])
    return best


def point_strokes(points: list[Point], features: Features, seed: int) -> tuple[Strokes, list[Point]]:
    """Return the cubes of two points of each structure that has three or more, and its other points."""
    names = sorted({point.structure for point in points})
    groups = [[point for point in points if point.structure == name] for name in names]
    rng = np.random.default_rng(seed)
    groups = [[group[n] for n in rng.permutation(len(group))] for group in groups if len(group) > 2]
    cube = np.stack(np.meshgrid(*[np.arange(-CUBE // 2, CUBE // 2)] * 3, indexing="ij"), -1).reshape(-1, 3)
    place = np.concatenate([point.kji + cube for group in groups for point in group[:2]])
    where = features.grid.geometry.physical_point(place)
    segments = tuple({"Name": group[0].structure} for group in groups)
    return Strokes(segments, where, np.repeat(np.arange(len(groups)), 2 * len(cube))), [
        point for group in groups for point in group[2:]
    ]


def balanced_accuracy(names: list[str], points: list[Point], guesses: NDArray[Any]) -> float:
    """Return the mean over structures of the share of points whose guess, an index of ``names``, is right."""
    right: dict[str, list[bool]] = {}
    for point, guess in zip(points, guesses, strict=True):
        right.setdefault(point.structure, []).append(names[guess] == point.structure if guess >= 0 else False)
    return float(np.mean([np.mean(one) for one in right.values()]))


def measure_points(
    path: Path, encode: Callable[[Path], tuple[CTVolume, Features]], chosen: dict[str, dict[str, Any]]
) -> dict[str, dict[str, dict[str, float]]]:
    """Return balanced accuracies of validation volumes: strokes in the same one, and in training patients."""
    files: dict[tuple[str, Path], list[Point]] = {}
    for point in read_points(path):
        files.setdefault((point.split, point.file), []).append(point)
    found: dict[str, dict[str, dict[str, float]]] = {"within": {}, "across": {}}
    tests = []
    for number, ((split, file), points) in enumerate(sorted(files.items())):
        volume, features = encode(file)
        tests.append((split, points, volume, features, *point_strokes(points, features, number)))
    for arm in ARMS:
        within, across = found["within"].setdefault(arm, {}), found["across"].setdefault(arm, {})
        fits = [
            None if arm == "grow-cut" else fit_segments(volume, features, strokes, Settings(**chosen[arm]))
            for _, _, volume, features, strokes, _ in tests
        ]
        for (split, points, volume, features, strokes, others), fit in zip(tests, fits, strict=True):
            if split != "val":
                continue
            names = [segment["Name"] for segment in strokes.segments]
            place = np.stack([point.kji for point in others])
            if fit is None:
                painted = np.zeros(features.voxels.shape, np.uint8)
                index = np.rint(features.grid.geometry.index(strokes.points)).astype(int)
                painted[tuple(index.T)] = strokes.segment + 1
                guesses = grow_cut(features.grid.to_model(volume.hu), painted, chosen[arm])[tuple(place.T)] - 1
            else:
                where = features.grid.geometry.physical_point(place)
                guesses = point_scores((fit, strokes), volume, features, where, True).argmax(1)
            within[volume.name] = balanced_accuracy(names, others, np.asarray(guesses))
            values = []
            for (kind, _, _, _, painted_there, _), other in zip(tests, fits, strict=True):
                known = [segment["Name"] for segment in painted_there.segments]
                shared = [point for point in points if point.structure in known]
                if kind == "train" and other is not None and len({point.structure for point in shared}) > 1:
                    where = features.grid.geometry.physical_point(np.stack([point.kji for point in shared]))
                    guesses = point_scores((other, painted_there), volume, features, where, False)
                    # among the structures that both show
                    both = [n for n, name in enumerate(known) if name in {point.structure for point in shared}]
                    best = np.array(both)[guesses[:, both].argmax(1)]
                    values.append(balanced_accuracy(known, shared, best))
            if values:
                across[volume.name] = float(np.mean(values))
    return found


def main() -> None:
    """Choose on training patients, measure on validation patients, print differences with intervals."""
    parser = parser_of(__doc__, "--data", "--features", "--output")
    parser.add_argument("--checkpoint", type=Path, default=embedded_checkpoint())
    parser.add_argument("--stride", type=int, default=8)
    parser.add_argument("--every", type=int, default=1, help="choose on every N-th training patient")
    args = parser.parse_args()
    encode = partial(encoded, cache=args.features, encoder=load_encoder(args.checkpoint), stride=args.stride)
    cases = label_cases(args.data / "train", encode, args.every)
    chosen = {arm: choose(arm, lambda arm, options: [dice(case, arm, options) for case in cases]) for arm in ARMS}
    cases = label_cases(args.data / "val", encode)
    tables = {"Dice": {arm: {case.name: dice(case, arm, chosen[arm]) for case in cases} for arm in ARMS}}
    show(tables, "encoder")
    points = measure_points(args.data / "points.csv", encode, chosen)
    show(points := {f"points, {key}": value for key, value in points.items()}, "encoder")
    write_json(args.output, {"settings": chosen, "tables": tables | points})


if __name__ == "__main__":
    main()
