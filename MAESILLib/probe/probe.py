"""The whole probe: describe labelled tokens, fit across patients, compare with every baseline."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from MAESILLib import __version__
from MAESILLib.data.provenance import patients_trained_on, source_commit
from MAESILLib.probe import features as kinds
from MAESILLib.probe.encoders import load_frozen
from MAESILLib.probe.features import Array, Key, Tools, baselines, describe
from MAESILLib.probe.few_labels import few_label_dice
from MAESILLib.probe.fit import (
    FEWEST_PATIENTS,
    SOFT_TISSUE,
    Floats,
    across_patients,
    aurocs,
    interval,
    labels_of,
    macro,
    recalls,
)
from MAESILLib.probe.labels import LabelledVolume, points_of
from MAESILLib.probe.points import SIDES, Points, read_hu, without_side
from MAESILLib.probe.windows import batch_size, window_of_point
from MAESILLib.runtime.device import device_name, full_precision, memory_guard
from MAESILLib.runtime.errors import InputError
from MAESILLib.runtime.events import Reporter
from MAESILLib.runtime.stopping import StopRequest

SCHEMA = "maesil-probe/2"
DRAWS = 3
"""Windows of each point: two are fitted on, the third is measured."""
POINTS, LABEL_MAPS = "points", "label maps"
AUROC, BALANCED, SIDED, DICE = "AUROC", "balanced accuracy", "AUROC, sides kept", "Dice, {} labelled"
ALL, SOFT, APART = "all", "soft tissue", "apart"
ROW = ("source", "window", "metric", "feature", "patient", "structure", "value")
ORDER = (kinds.ENCODER, kinds.RANDOM, kinds.HAND_MADE, kinds.RAW, kinds.POSITION)
Line = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """How a probe is made.

    Attributes:
        windows: sides in voxels.
        random: encoders with random weights.
        cases: numbers of labelled patients, ascending; none: no Dice.
        draws: random draws of each number.
        apart: patients whose metrics are also stated apart, besides those of split ``val``.
        seed: of points drawn from label maps, of labelled patients, and of the bootstrap.
    """

    windows: tuple[int, ...] = (64, 128)
    random: int = 3
    cases: tuple[int, ...] = (1, 5, 10)
    draws: int = 5
    apart: tuple[str, ...] = ()
    seed: int = 0


class Table(NamedTuple):
    """A metric of one feature for each patient and structure: (P, S), NaN where it is not defined."""

    source: str
    window: int
    metric: str
    feature: str
    patients: tuple[str, ...]
    structures: tuple[str, ...]
    values: Floats


def probe(
    checkpoint: Path,
    points: Points | None,
    volumes: Sequence[LabelledVolume],
    settings: Settings,
    *,
    device: torch.device | str = "cpu",
    reporter: Reporter | None = None,
    stop: StopRequest | None = None,
) -> dict[str, Any]:
    """Probe the encoder of a checkpoint with a list of points, label maps, or both.

    Returns:
        what probe.json holds, and ``rows``, those of probe.csv.

    Raises:
        InputError: a checkpoint or volume that cannot be used, or too few patients.
        CancelledError: a stop was asked for.
    """
    frozen, device = load_frozen(checkpoint, device), torch.device(device)
    features = (*frozen.features(settings.random), *baselines())
    tools = Tools(features, device, reporter or Reporter(), stop or StopRequest())
    sources = {} if points is None else {POINTS: points}
    tables: list[Table] = []
    choices: list[Line] = []
    notes: list[str] = []
    with full_precision(), memory_guard(device, "give a smaller --window, or fewer --random"):
        if volumes:
            sources[LABEL_MAPS] = points_of(volumes, settings.seed)
        patients, apart = _patients(sources, settings.apart)
        for source, one in sources.items():
            notes += _left_out(source, one)
            for size in settings.windows:
                _probe_points(source, one, size, tools, tables, choices)
        for size in settings.windows if volumes and settings.cases else ():
            notes += _probe_few_labels(volumes, size, settings, tools, tables)
    tables = _mean_of_random(tables)
    return {
        "schema": SCHEMA,
        "library_version": __version__,
        "commit": source_commit(),
        "checkpoint": {**frozen.source, "pretrained_on": patients_trained_on(frozen.training, patients)},
        "data": {
            "patients": patients,
            "apart": sorted(apart),
            "tokens": {source: len(one.number) for source, one in sources.items()},
            "volumes": {source: len(one.files) for source, one in sources.items()},
        },
        "device": device_name(device),
        "settings": asdict(settings),
        "metrics": _summarise(tables, apart, settings.seed),
        "choices": choices,
        "notes": list(dict.fromkeys(notes)),
        "rows": _rows(tables),
    }


def describe_points(points: Points, size: int, tools: Tools) -> dict[Key, Array]:
    """Describe every point in three windows at random offsets: for each feature and block (3, N, F).

    Raises:
        InputError: a volume cannot be read.
        CancelledError: a stop was asked for.
    """
    found: dict[Key, Array] = {}
    total, done = DRAWS * len(points.number), 0
    for number, path in enumerate(points.files):
        rows, hu = np.flatnonzero(points.file == number), read_hu(path)
        for draw, first in np.ndindex(DRAWS, -(-len(rows) // batch_size(size))):
            tools.stop.check()
            chosen = rows[first * batch_size(size) :][: batch_size(size)]
            places = [window_of_point(points.kji[row], int(points.number[row]), draw, size) for row in chosen]
            start, place = (np.array(one) for one in zip(*places, strict=True))
            for key, x in describe(tools, hu, start, size, np.arange(len(chosen)), place).items():
                if key not in found:
                    found[key] = np.zeros((DRAWS, len(points.number), x.shape[1]), np.float32)
                found[key][draw, chosen] = x
            done += len(chosen)
            tools.reporter.progress(f"tokens, window {size}", done / total, path.name)
    return found


def _patients(sources: dict[str, Points], given: Sequence[str]) -> tuple[list[str], frozenset[str]]:
    """Return all patients, and those that are stated apart."""
    patients = sorted({str(name) for one in sources.values() for name in one.patient})
    for name in given:
        if name not in patients:
            raise InputError(f"nothing is labelled of patient '{name}'", f"choose from {', '.join(patients)}")
    return patients, frozenset(given).union(*(one.apart for one in sources.values()))


def _left_out(source: str, points: Points) -> list[str]:
    structure = without_side(points.structure)
    kept = labels_of(structure, points.patient).structures
    if not kept:
        raise InputError(f"no structure of the {source} is shown by {FEWEST_PATIENTS} patients", "give more patients")
    few = [str(name) for name in np.unique(structure) if name not in kept]
    why = f"fewer than {FEWEST_PATIENTS} patients show it; its tokens count as other tissue"
    return [f"{name} is left out ({source}): {why}" for name in few]


def _probe_points(
    source: str, points: Points, size: int, tools: Tools, tables: list[Table], choices: list[Line]
) -> None:
    """Add the tables of a window size, and what was chosen."""
    merged, sided = (labels_of(one, points.patient) for one in (without_side(points.structure), points.structure))
    has_side = np.array([name.endswith(SIDES) for name in sided.structures])
    every = np.ones(len(points.number), bool)
    found = describe_points(points, size, tools)
    names = list(dict.fromkeys(name for name, _ in found))
    for number, name in enumerate(names, start=1):
        tools.stop.check()
        blocks = {block: draws for (one, block), draws in found.items() if one == name}
        scores, chosen = across_patients(blocks, merged)
        auroc = aurocs(scores, merged, every)
        if not np.isfinite(auroc).any():
            raise InputError(f"no patient of the {source} shows a structure and others", "label more structures")
        for metric, values in ((AUROC, auroc), (BALANCED, recalls(scores, merged))):
            tables.append(Table(source, size, metric, name, merged.patients, merged.structures, values))
        if has_side.any():
            values = aurocs(across_patients(blocks, sided)[0], sided, every)[:, has_side]
            structures = tuple(np.array(sided.structures)[has_side])
            tables.append(Table(source, size, SIDED, name, sided.patients, structures, values))
        folds = [{"block": block, "alpha": alpha} for block, alpha in chosen]
        choices.append({"source": source, "window": size, "feature": name, "auroc": macro(auroc), "folds": folds})
        tools.reporter.progress(f"fit, window {size}", number / len(names), name)


def _probe_few_labels(
    volumes: Sequence[LabelledVolume], size: int, settings: Settings, tools: Tools, tables: list[Table]
) -> list[str]:
    """Add the tables of Dice, means over draws of the labelled cases; return what was left out."""
    found, notes = few_label_dice(volumes, size, settings.cases, settings.draws, settings.seed, tools)
    for (count, feature), cells in found.items():
        patients, structures = (tuple(sorted({key[n] for key in cells})) for n in (0, 1))
        values = [[np.mean(cells.get((patient, name), [np.nan])) for name in structures] for patient in patients]
        tables.append(Table(LABEL_MAPS, size, DICE.format(count), feature, patients, structures, np.array(values)))
    return notes


def _mean_of_random(tables: list[Table]) -> list[Table]:
    """Put one table in place of those of the encoders with random weights; the encoder first, then the baselines."""
    groups: dict[tuple[str, int, str, str], list[Table]] = defaultdict(list)
    for one in tables:
        name = kinds.RANDOM if one.feature.startswith(kinds.RANDOM) else one.feature
        groups[one.source, one.window, one.metric, name].append(one)
    means = [
        Table(*key, group[0].patients, group[0].structures, np.mean([one.values for one in group], 0))
        for key, group in groups.items()
    ]
    return sorted(means, key=lambda one: ORDER.index(one.feature))


def _summarise(tables: list[Table], apart: frozenset[str], seed: int) -> list[Line]:
    """Return macro means with intervals, and the encoder minus each baseline, for all, soft tissue and apart."""
    lines = []
    own: dict[tuple[str, int, str], Floats] = {}
    for one in tables:
        first = own.setdefault(one[:3], one.values)
        for group, part in _groups(one, apart):
            values, shown = one.values[part], np.isfinite(one.values[part])
            if not shown.any():
                continue
            line: Line = one._asdict() | {"group": group, "value": macro(values), **interval([values], seed)}
            line |= {"patients": int(shown.any(1).sum()), "structures": int(shown.any(0).sum())}
            if one.feature != kinds.ENCODER:
                ends = interval([first[part], values], seed)
                line |= {"difference": macro(first[part]) - macro(values)}
                line |= {f"difference_{end}": value for end, value in ends.items()}
            lines.append({key: value for key, value in line.items() if key != "values"})
    return lines


def _groups(one: Table, apart: frozenset[str]) -> list[tuple[str, tuple[NDArray[np.int64], ...]]]:
    """Return titles of the parts of a table that are stated, and their patients and structures."""
    is_apart, is_soft = np.isin(one.patients, list(apart)), np.isin(one.structures, SOFT_TISSUE)
    every = np.ones(len(is_apart), bool), np.ones(len(is_soft), bool)
    groups = [(ALL, np.ix_(*every))]
    if 0 < is_soft.sum() < len(is_soft):
        groups.append((SOFT, np.ix_(every[0], is_soft)))
    if 0 < is_apart.sum() < len(is_apart):
        groups.append((APART, np.ix_(is_apart, every[1])))
    return groups


def _rows(tables: list[Table]) -> list[Line]:
    """Return one row for each metric, patient and structure."""
    return [
        dict(zip(ROW, (*one[:4], one.patients[p], one.structures[s], one.values[p, s]), strict=True))
        for one in tables
        for p, s in np.argwhere(np.isfinite(one.values))
    ]
