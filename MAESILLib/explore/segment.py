"""Segments from strokes: a linear classifier of features and HU, fitted to painted voxels.

A linear classifier's scores are interpolated from cells to voxels, not its features: the same values, at a fraction of
the memory. Terms of a voxel's own HU and smoothed HU, piecewise linear functions, are added on the model's grid.
"""

import json
import re
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from scipy.ndimage import distance_transform_edt, gaussian_filter, map_coordinates
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from MAESILLib.ct.resampling import grow_along_axes, linear_matrix
from MAESILLib.ct.volume import CTVolume, ModelGrid
from MAESILLib.ct.writing import PLANES, volume_writer
from MAESILLib.data.labels import label_values
from MAESILLib.explore.features import Features, Origin
from MAESILLib.explore.similarity import features_at
from MAESILLib.runtime.errors import InputError
from MAESILLib.runtime.files import write_bytes

FORMAT = "maesil-segments/1"
KNOTS_HU = (-1000, -200, -100, -50, 0, 50, 100, 200, 500, 1000)
MOST_EACH = 300
"""Painted voxels of a segment that are fitted to at most."""
NEAR_MM = 4.5
"""Differences of distances count less where both are shorter."""
LEVELS = 256
"""Steps of a probability in a file."""
SURE = 1e3
"""Added to a score where its segment is painted: no other comes near."""
HEADER_BYTES = 1 << 20
KEPT_FIELDS = ("ID", "Name", "Color")


@dataclass(frozen=True)
class Settings:
    """How a classifier is fitted and applied; chosen on training patients by ``Testing/Benchmarks/bench_segment.py``.

    Attributes:
        penalty: of the squared weights of features that are standardised in the patient, over their number; 1e12:
            without features.
        tissue_penalty: of those of the terms of HU.
        sigmas_mm: of the Gaussians that smooth HU; 0: HU itself.
        smooth_mm: sigma of the Gaussian that smooths scores.
        margin_mm: around the strokes, beyond which nothing is segmented.
        nearness: how much the logarithm of the distance to the strokes counts.
    """

    penalty: float = 1e-3
    tissue_penalty: float = 1e-3
    sigmas_mm: tuple[float, ...] = (0, 3)
    smooth_mm: float = 3
    margin_mm: float = 6
    nearness: float = 1


@dataclass(frozen=True, eq=False)
class Strokes:
    """Painted voxels of K segments.

    Attributes:
        segments: of each the fields of a .seg.nrrd, without their number: ID, Name and, if there is one, Color.
        points: (N, 3) LPS in mm.
        segment: (N,) index into ``segments``.
    """

    segments: tuple[dict[str, str], ...]
    points: NDArray[np.float64]
    segment: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Segmenter:
    """A linear classifier of K segments.

    Attributes:
        origin: of the features that it takes.
        settings: with which it was fitted.
        weights: (C, K) of features.
        tissue: (S, T, K), values at the T knots of the terms of HU smoothed by each of S Gaussians.
        intercept: (K,).
    """

    segments: tuple[dict[str, str], ...]
    origin: Origin
    settings: Settings
    weights: NDArray[np.float32]
    tissue: NDArray[np.float32]
    intercept: NDArray[np.float32]


def segment_fields(path: Path) -> dict[int, dict[str, str]]:
    """Return for each label value that a .seg.nrrd names the fields of its segment; empty for other files.

    Raises:
        InputError: segments lie in several layers.
    """
    with open(path, "rb") as file:
        head = file.read(HEADER_BYTES).split(b"\n\n")[0].decode("utf-8", "replace")
    found: dict[str, dict[str, str]] = {}
    for number, key, value in re.findall(r"^Segment(\d+)_(\w+):=(.*?)\r?$", head, re.MULTILINE):
        found.setdefault(number, {})[key] = value
    if any(fields.get("Layer", "0") != "0" for fields in found.values()):
        raise InputError(f"{path} has segments that overlap", "let each voxel belong to one segment, and save it again")
    named = {int(f["LabelValue"]): f for f in found.values() if f.get("LabelValue", "").isdigit()}
    return {value: {key: f[key] for key in KEPT_FIELDS if key in f} for value, f in named.items()}


def strokes_of(labels: CTVolume, fields: dict[int, dict[str, str]], volume: CTVolume) -> Strokes:
    """Return the voxels of a label map that lie in a CT, on whatever grid.

    Args:
        fields: as of :func:`segment_fields`.

    Raises:
        InputError: values are no labels, or fewer than two segments lie in the CT.
    """
    painted = label_values(labels)
    place = np.argwhere(painted > 0)
    values, points = painted[tuple(place.T)], labels.geometry.physical_point(place)
    index = volume.geometry.index(points)
    inside = ((index > -0.5) & (index < np.array(volume.geometry.size_dhw) - 0.5)).all(1)
    codes, segment = np.unique(values[inside], return_inverse=True)
    if len(codes) < 2:
        raise InputError(
            f"{labels.path} has {len(codes)} segments in {volume.name}", "paint two or more, as a structure and others"
        )
    segments = tuple({"ID": f"Segment_{n}", "Name": f"label {n}", **fields.get(n, {})} for n in codes.tolist())
    return Strokes(segments, points[inside], segment)


def fit_segments(
    volume: CTVolume, features: Features, strokes: Strokes, settings: Settings = Settings(), seed: int = 0
) -> Segmenter:
    """Fit a multinomial logistic regression to painted voxels; every segment counts alike.

    Args:
        features: of ``volume``.
        seed: which of more than ``MOST_EACH`` voxels of a segment are taken.
    """
    order = np.random.default_rng(seed).permutation(len(strokes.segment))
    chosen = np.concatenate([order[strokes.segment[order] == k][:MOST_EACH] for k in range(len(strokes.segments))])
    points = strokes.points[chosen]
    in_body = features.in_body
    mean = in_body.mean(0)
    scale = (in_body.std(0) + 1e-3) * (len(mean) * settings.penalty) ** 0.5
    terms = tissue_at(volume, features.grid, points, settings) / settings.tissue_penalty**0.5
    x = np.hstack([(features_at(features, points) - mean) / scale, terms])
    weights, intercept = _logistic(x.astype(np.float64), strokes.segment[chosen])
    of_features, tissue = weights[: len(mean)] / scale[:, None], weights[len(mean) :] / settings.tissue_penalty**0.5
    return Segmenter(
        strokes.segments,
        features.origin,
        settings,
        of_features.astype(np.float32),
        tissue.reshape(-1, len(KNOTS_HU), len(strokes.segments)).astype(np.float32),
        (intercept - mean @ of_features).astype(np.float32),
    )


def tissue_at(
    volume: CTVolume, grid: ModelGrid, points: NDArray[np.float64], settings: Settings
) -> NDArray[np.float64]:
    """Return the terms of HU (N, S x T) at points (N, 3), LPS in mm.

    Each is the piecewise linear function that is 1 at one knot and 0 at the others.
    """
    index = grid.geometry.index(points).clip(0, np.array(grid.geometry.size_dhw) - 1)
    low, high = np.floor(index.min(0)).astype(np.int64), np.ceil(index.max(0)).astype(np.int64) + 1
    smoothed = _tissue(volume, grid, settings, tuple(map(slice, low, high)))
    found = [map_coordinates(hu, (index - low).T, order=1) for hu in smoothed]
    return np.hstack([np.stack([np.interp(hu, KNOTS_HU, one) for one in np.eye(len(KNOTS_HU))], 1) for hu in found])


def probabilities(
    segmenter: Segmenter, volume: CTVolume, features: Features, strokes: Strokes | None = None
) -> NDArray[np.float32]:
    """Return the probability of each segment (K, D, H, W) on the model's grid, 0 outside the patient.

    Args:
        features: of ``volume``, of the same origin as those that were fitted to.
        strokes: painted in ``volume``: what lies near those of a segment is more likely to be of it, painted voxels
            are, and beyond a margin all probabilities are 0.
    """
    geometry, settings = features.grid.geometry, segmenter.settings
    shape, spacing = np.array(geometry.size_dhw), np.array(geometry.spacing_dhw)
    low, high = np.zeros(3, np.int64), shape
    if strokes is not None:
        painted = np.clip(np.rint(geometry.index(strokes.points)).astype(np.int64), 0, shape - 1)
        margin = np.ceil(settings.margin_mm / spacing).astype(np.int64)
        low, high = np.maximum(painted.min(0) - margin, 0), np.minimum(painted.max(0) + margin + 1, shape)
    box = tuple(map(slice, low, high))
    tissue = _tissue(volume, features.grid, settings, box)
    scores = np.empty((len(segmenter.segments), *(high - low)), np.float32)
    for number, score in enumerate(scores):
        cells = np.tensordot(segmenter.weights[:, number], features.values.astype(np.float32), 1)
        score[:] = _to_voxels(cells, features.origin.stride, box) + segmenter.intercept[number]
        for hu, values in zip(tissue, segmenter.tissue[..., number], strict=True):
            score += np.interp(hu, KNOTS_HU, values).astype(np.float32)
        gaussian_filter(score, settings.smooth_mm / spacing, output=score)
        if strokes is not None:
            own = (painted[strokes.segment == number] - low).T
            score -= settings.nearness * np.log(_distance_mm(own, score.shape, spacing) + NEAR_MM)
            score[tuple(own)] += SURE
    found = np.zeros((len(scores), *shape), np.float32)
    found[(slice(None), *box)] = softmax(scores, 0) * features.voxels[box]
    return found


def write_segments(folder: Path, name: str, segmenter: Segmenter, grid: ModelGrid, found: NDArray[np.float32]) -> None:
    """Write the most likely segments as NAME.seg.nrrd and each one's probability as NAME-1.nrrd, ...

    Args:
        grid: of the CT; files have the CT's own.
        found: (K, D, H, W), as of :func:`probabilities`.
    """
    fields = {"Segmentation_SourceRepresentation": "Binary labelmap"}
    extent = " ".join(f"0 {n - 1}" for n in grid.source.size_dhw[::-1])
    for number, segment in enumerate(segmenter.segments):
        described = {**segment, "LabelValue": str(number + 1), "Layer": "0", "Extent": extent}
        fields |= {f"Segment{number}_{key}": value for key, value in described.items()}
    names = [f"{name}-{number}.nrrd" for number in range(1, len(found) + 1)]
    with ExitStack() as files:
        write = files.enter_context(volume_writer(folder / f"{name}.seg.nrrd", np.uint8, grid.source, fields=fields))
        others = [files.enter_context(volume_writer(folder / one, np.float32, grid.source)) for one in names]
        for planes in zip(*(grid.planes_to_source(one, PLANES) for one in found), strict=True):
            likely = np.stack(planes)
            write(np.where(likely.sum(0) > 0.5, likely.argmax(0) + 1, 0).astype(np.uint8))
            # with fewer bits they are compressed in half of the time
            for other, one in zip(others, np.rint(likely * LEVELS) / LEVELS, strict=True):
                other(one)


def write_segmenter(path: Path, segmenter: Segmenter) -> None:
    tensors = {key: np.ascontiguousarray(getattr(segmenter, key)) for key in ("weights", "tissue", "intercept")}
    described = {
        "format": FORMAT,
        "segments": segmenter.segments,
        "origin": vars(segmenter.origin),
        "settings": vars(segmenter.settings),
    }
    write_bytes(path, save(tensors, {"maesil": json.dumps(described)}))


def read_segmenter(path: Path) -> Segmenter:
    """Read a classifier that :func:`write_segmenter` has written.

    Raises:
        InputError: no such file, or another kind of file.
    """
    try:
        with safe_open(path, "numpy") as file:
            values = json.loads((file.metadata() or {})["maesil"])
            tensors = [file.get_tensor(key) for key in ("weights", "tissue", "intercept")]
        settings = Settings(**{**values["settings"], "sigmas_mm": tuple(values["settings"]["sigmas_mm"])})
        return Segmenter(tuple(values["segments"]), Origin(**values["origin"]), settings, *tensors)
    except FileNotFoundError:
        raise InputError(f"no such file: {path}", "check the path") from None
    except (SafetensorError, KeyError, TypeError, ValueError, OSError):
        raise InputError(f"{path} is no classifier of segments", "give what maesil segment fit has written") from None


def _tissue(volume: CTVolume, grid: ModelGrid, settings: Settings, box: tuple[slice, ...]) -> list[NDArray[np.float32]]:
    """Return HU in a box of the model's grid, within the knots, smoothed by each Gaussian."""
    spacing = np.array(grid.geometry.spacing_dhw)
    # scipy cuts the Gaussian at 4 sigma
    around = np.ceil(4 * max(settings.sigmas_mm) / spacing).astype(np.int64) + 1
    wide = tuple(slice(max(0, s.start - n), s.stop + n) for s, n in zip(box, around, strict=True))
    own = tuple(slice(s.start - w.start, s.stop - w.start) for s, w in zip(box, wide, strict=True))
    hu = np.clip(grid.to_model(volume.hu)[wide], KNOTS_HU[0], KNOTS_HU[-1])
    return [(gaussian_filter(hu, sigma / spacing) if sigma else hu)[own] for sigma in settings.sigmas_mm]


def _to_voxels(cells: NDArray[np.float32], stride: int, box: tuple[slice, ...]) -> NDArray[np.float32]:
    """Interpolate cells linearly at the voxels of a box of the model's grid."""
    places = [(np.arange(s.start, s.stop) - (stride - 1) / 2) / stride for s in box]
    d, h, w = (linear_matrix(p, n).astype(np.float32) for p, n in zip(places, cells.shape, strict=True))
    return grow_along_axes(cells, (d, h, w))


def _distance_mm(place: NDArray[np.int64], shape: tuple[int, ...], spacing: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the distance of voxels to the nearest of places (3, N), by cells of 2 x 2 x 2 voxels, for speed."""
    away = np.ones([-(-n // 2) for n in shape], bool)
    away[tuple(place // 2)] = False
    return _to_voxels(
        distance_transform_edt(away, 2 * spacing).astype(np.float32), 2, tuple(slice(0, n) for n in shape)
    )


def _logistic(x: NDArray[np.float64], segment: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return weights (F, K) and intercept (K,) of a multinomial logistic regression (Hastie et al., 4.4) on x (N, F).

    Half of the squared weights is added to the mean loss of the segments.
    """
    count = segment.max() + 1
    share, truth = 1 / np.bincount(segment)[segment] / count, np.eye(count)[segment]

    def loss(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weights, intercept = flat[:-count].reshape(x.shape[1], -1), flat[-count:]
        log_p = log_softmax(x @ weights + intercept, axis=1)
        change = (np.exp(log_p) - truth) * share[:, None]
        value = (weights**2).sum() / 2 - share @ (log_p * truth).sum(1)
        return value, np.append(x.T @ change + weights, change.sum(0))

    found = minimize(loss, np.zeros((x.shape[1] + 1) * count), jac=True, method="L-BFGS-B").x
    return found[:-count].reshape(x.shape[1], -1), found[-count:]
