"""The whole probe: describe labelled tokens, fit across patients, compare with every baseline."""

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from MAESILLib import __version__
from MAESILLib.data.provenance import patients_trained_on, source_commit
from MAESILLib.mae.checkpoint import checkpoint_identity
from MAESILLib.probe import table
from MAESILLib.probe.features import Array, Key, Tools, compared, describe, load_frozen
from MAESILLib.probe.few_labels import few_label_dice
from MAESILLib.probe.fit import FEWEST_PATIENTS, across_patients, labels_of, within_patients
from MAESILLib.probe.labels import LabelledVolume, points_of
from MAESILLib.probe.points import SIDES, Point, read_hu, without_side
from MAESILLib.probe.windows import batch_size, window_of_point
from MAESILLib.runtime.device import device_name, full_precision, memory_guard
from MAESILLib.runtime.errors import InputError
from MAESILLib.runtime.events import Reporter
from MAESILLib.runtime.stopping import StopRequest

SCHEMA = "maesil-probe/2"
DRAWS = 3
"""Windows of each point: two are fitted on, the third is measured."""


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


def probe(
    checkpoint: Path,
    points: Sequence[Point],
    volumes: Sequence[LabelledVolume],
    settings: Settings,
    *,
    device: torch.device,
    reporter: Reporter,
    stop: StopRequest,
) -> dict[str, Any]:
    """Probe the encoder of a checkpoint with a list of points, label maps, or both.

    Returns:
        what probe.json holds, and ``rows``, those of probe.csv.

    Raises:
        InputError: a checkpoint or volume that cannot be used, or too few patients.
    """
    encode, info = load_frozen(checkpoint, device)
    tools = Tools(compared(encode, settings.random), device, reporter, stop)
    sources = {table.POINTS: points} if points else {}
    rows: list[table.Row] = []
    notes: list[str] = []
    with full_precision(), memory_guard(device, "give a smaller --window, or fewer --random"):
        if volumes:
            sources[table.LABEL_MAPS] = points_of(volumes, settings.seed)
        patients = sorted({point.patient for one in sources.values() for point in one})
        for name in settings.apart:
            if name not in patients:
                raise InputError(f"nothing is labelled of patient '{name}'", f"choose from {', '.join(patients)}")
        for source, one in sources.items():
            notes += _left_out(source, one)
            for size in settings.windows:
                _probe_points(source, one, size, tools, rows)
        for size in settings.windows if volumes and settings.cases else ():
            found, without = few_label_dice(volumes, size, settings.cases, settings.draws, settings.seed, tools)
            rows += found
            notes += without
    apart = {*settings.apart, *(point.patient for one in sources.values() for point in one if point.split == "val")}
    rows = table.mean_of_random(rows)
    return {
        "schema": SCHEMA,
        "library_version": __version__,
        "commit": source_commit(),
        "checkpoint": {
            **checkpoint_identity(checkpoint),
            "pretrained_on": patients_trained_on(info.training, patients),
        },
        "data": {
            "patients": patients,
            "apart": sorted(apart),
            "tokens": {source: len(one) for source, one in sources.items()},
            "volumes": {source: len({point.file for point in one}) for source, one in sources.items()},
        },
        "device": device_name(device),
        "settings": asdict(settings),
        "metrics": table.summarise(rows, apart, settings.seed),
        "notes": list(dict.fromkeys(notes)),
        "rows": rows,
    }


def _left_out(source: str, points: Sequence[Point]) -> list[str]:
    structure = [without_side(point.structure) for point in points]
    kept = labels_of(structure, [point.patient for point in points]).structures
    if not kept:
        raise InputError(f"no structure of the {source} is shown by {FEWEST_PATIENTS} patients", "give more patients")
    why = f"fewer than {FEWEST_PATIENTS} patients show it; its tokens count as other tissue"
    return [f"{name} is left out ({source}): {why}" for name in sorted({*structure} - {*kept})]


def describe_points(points: Sequence[Point], size: int, tools: Tools) -> dict[Key, Array]:
    """Describe every point in three windows at random offsets: for each feature and block (3, N, F).

    Raises:
        InputError: a volume cannot be read.
    """
    found: dict[Key, Array] = {}
    step, done = batch_size(size), 0
    for path in dict.fromkeys(point.file for point in points):
        rows, hu = [row for row, point in enumerate(points) if point.file == path], read_hu(path)
        for draw, first in itertools.product(range(DRAWS), range(0, len(rows), step)):
            tools.stop.check()
            chosen = rows[first : first + step]
            windows = [window_of_point(points[row].kji, points[row].number, draw, size) for row in chosen]
            start, place = (np.array(one) for one in zip(*windows, strict=True))
            for key, x in describe(tools, hu, start, size, np.arange(len(chosen)), place).items():
                if key not in found:
                    found[key] = np.zeros((DRAWS, len(points), x.shape[1]), np.float32)
                found[key][draw, chosen] = x
            done += len(chosen)
            tools.reporter.progress(f"tokens, window {size}", done / (DRAWS * len(points)), path.name)
    return found


def _probe_points(source: str, points: Sequence[Point], size: int, tools: Tools, rows: list[table.Row]) -> None:
    patient = [point.patient for point in points]
    sided = labels_of([point.structure for point in points], patient)
    merged = labels_of([without_side(point.structure) for point in points], patient)
    found = describe_points(points, size, tools)
    names = list(dict.fromkeys(name for name, _ in found))
    for number, name in enumerate(names, start=1):
        tools.stop.check()
        blocks = {block: draws for (one, block), draws in found.items() if one == name}
        areas, recalls = within_patients(across_patients(blocks, merged), merged)
        if not np.isfinite(areas).any():
            raise InputError(f"no patient of the {source} shows a structure and others", "label more structures")
        rows += table.rows_of(source, size, table.AUROC, name, areas, merged)
        rows += table.rows_of(source, size, table.BALANCED, name, recalls, merged)
        if any(structure.endswith(SIDES) for structure in sided.structures):
            areas_of_sides, _ = within_patients(across_patients(blocks, sided), sided)
            both = table.rows_of(source, size, table.SIDED, name, areas_of_sides, sided)
            rows += [row for row in both if row.structure.endswith(SIDES)]
        tools.reporter.progress(f"fit, window {size}", number / len(names), name)
