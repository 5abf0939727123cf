"""Which volumes of a cache train a probe and which measure it, and what their patches show."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from MAESILLib.data.cache import Cache, CacheEntry
from MAESILLib.errors import InputError
from MAESILLib.events import Reporter
from MAESILLib.geometry import Geometry
from MAESILLib.probe.labels import LabelSource, check_registration, find_labels
from MAESILLib.probe.patches import PatchLabels, label_patches, with_unnamed
from MAESILLib.stopping import StopRequest
from MAESILLib.superpatch import Shape

WITHOUT_LABELS = "it has no labels"


@dataclass(frozen=True, eq=False)
class Case:
    """A volume and what its patches show."""

    entry: CacheEntry
    labels: PatchLabels


@dataclass(frozen=True, eq=False)
class Cases:
    """The volumes of a probe.

    Attributes:
        train, held_out: of different patients.
        classes: with a positive patch in a volume of each, in the order of their names.
        left_out: volumes that cannot take part, and why.
        notes: classes that cannot take part, and why.
    """

    train: tuple[Case, ...]
    held_out: tuple[Case, ...]
    classes: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...]
    notes: tuple[str, ...] = ()


def split_patients(cache: Cache, validation_share: float) -> tuple[tuple[CacheEntry, ...], tuple[CacheEntry, ...]]:
    """Return the volumes that train and those that measure; a patient who measures never trains."""
    held_out = cache.select("val", validation_share)
    patients = {entry.patient for entry in held_out}
    train = tuple(entry for entry in cache.select("train", validation_share) if entry.patient not in patients)
    return train, held_out


def read_cases(
    cache: Cache,
    patch_size: Shape,
    validation_share: float,
    wanted: tuple[str, ...],
    reporter: Reporter,
    stop: StopRequest,
) -> Cases:
    """Find the labelled volumes of a cache, check where they lie, and read what their patches show.

    Args:
        wanted: classes to measure; all if empty.

    Raises:
        InputError: no labelled volume on a side, a label map that lies elsewhere than its CT, or no class that both
            sides show.
        CancelledError: a stop was asked for.
    """
    sides = split_patients(cache, validation_share)
    found = {entry.name: find_labels(entry) if entry.labels else WITHOUT_LABELS for side in sides for entry in side}
    left_out = tuple((name, why) for name, why in sorted(found.items()) if isinstance(why, str))
    for name, why in left_out:
        if why != WITHOUT_LABELS:
            reporter.warning(f"{name} is left out: {why}")
    sources = {name: source for name, source in found.items() if isinstance(source, LabelSource)}
    for side, title in zip(sides, ("training", "held-out"), strict=True):
        if not any(entry.name in sources for entry in side):
            raise InputError(
                f"no {title} volume of {cache.folder} has a label map that is there",
                "name label maps in the manifest's column labels, then prepare again",
            )
    geometries = _check_all(sources, cache, stop)
    labels = _read_all(sources, geometries, cache, patch_size, reporter, stop)
    train, held_out = (
        tuple(Case(entry, labels[entry.name]) for entry in side if entry.name in labels) for side in sides
    )
    return _with_classes(Cases(train, held_out, (), left_out), wanted, cache)


def _check_all(sources: dict[str, LabelSource], cache: Cache, stop: StopRequest) -> dict[str, Geometry]:
    """Check every header before the first volume is read: a wrong one should not turn up hours later."""
    geometries = {}
    for name, source in sources.items():
        stop.check()
        geometries[name] = check_registration(source, cache)
    return geometries


def _read_all(
    sources: dict[str, LabelSource],
    geometries: dict[str, Geometry],
    cache: Cache,
    patch_size: Shape,
    reporter: Reporter,
    stop: StopRequest,
) -> dict[str, PatchLabels]:
    labels = {}
    for done, (name, source) in enumerate(sources.items(), start=1):
        stop.check()
        labels[name] = label_patches(source, geometries[name], cache, patch_size)
        reporter.progress("labels", done / len(sources), name)
    return with_unnamed(labels, sources.values())


def _with_classes(cases: Cases, wanted: tuple[str, ...], cache: Cache) -> Cases:
    sides = {"training": cases.train, "held-out": cases.held_out}
    annotated = sorted({name for side in sides.values() for case in side for name in case.labels.annotated})
    unknown = [name for name in wanted if name not in annotated]
    if unknown:
        raise InputError(f"no label map holds the class '{unknown[0]}'", f"choose from {', '.join(annotated)}")
    classes, notes = [], []
    for name in wanted or annotated:
        missing = [title for title, side in sides.items() if not any(_shows(case, name) for case in side)]
        if missing:
            notes.append(f"{name} is left out: no {' and no '.join(missing)} volume has patches of it and others")
        else:
            classes.append(name)
    if not classes:
        raise InputError(
            f"{cache.folder} has no class with patches both in training and in held-out volumes",
            notes[0] if notes else "name label maps in the manifest's column labels",
        )
    return replace(cases, classes=tuple(classes), notes=tuple(notes))


def _shows(case: Case, name: str) -> bool:
    """Say whether a volume has both positive and negative patches of a class."""
    return len(case.labels.positives(name)) > 0 and len(case.labels.negatives(name)) > 0


def patients_showing(cases: tuple[Case, ...], name: str) -> list[str]:
    """Return the patients whose volumes have positive and negative patches of a class, sorted."""
    return sorted({case.entry.patient for case in cases if _shows(case, name)})


def body_count(cases: tuple[Case, ...]) -> int:
    """Return how many patches of the body the volumes have."""
    return int(np.sum([len(case.labels.body) for case in cases]))
