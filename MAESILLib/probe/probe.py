"""The whole probe: read labels, describe patches, fit on training cases, measure on held-out patients."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from MAESILLib import __version__
from MAESILLib.config import Window
from MAESILLib.data.cache import Cache
from MAESILLib.device import device_name, memory_guard
from MAESILLib.errors import InputError
from MAESILLib.events import Reporter
from MAESILLib.export.encoder import PretrainedEncoder, load_encoder
from MAESILLib.probe import fitting
from MAESILLib.probe.cases import Case, Cases, body_count, patients_showing, read_cases
from MAESILLib.probe.features import Features, intensities_of, positions_of, tokens_of, with_random_weights
from MAESILLib.probe.figures import auroc, average_precision
from MAESILLib.probe.patches import HALF, Indices, drawn_patches
from MAESILLib.probe.training import Choice, Draw, Feature, Fitted, TrainingSet, choose, draws_of, fit_all
from MAESILLib.provenance import hash_of_patient, source_commit, trained_on
from MAESILLib.stopping import StopRequest
from MAESILLib.superpatch import Shape
from MAESILLib.volume import hu_to_unit

SCHEMA = "maesil-probe/1"
MAESIL, RANDOM, RAW, PCA, POSITION = "maesil", "random", "raw", "pca", "position"
FEATURES = (MAESIL, RANDOM, RAW, PCA, POSITION)
CHOOSING_SHARE = 0.5
"""Of the progress of fitting: choosing takes about as long as all draws."""


@dataclass(frozen=True)
class Settings:
    """How a probe is made.

    Attributes:
        cases: numbers of training cases (patients) beside all.
        draws: random draws of each number.
        block: of the encoders, from 1; 0: chosen by cross-validation on training cases.
        patches: most positive, and most negative, training patches of a volume for each class.
        random_seeds: encoders of random weights.
        components: of the principal components.
        classes: measured; all if empty.
        seed: of drawing patches, cases and random weights, and of the bootstrap.
    """

    cases: tuple[int, ...] = (1, 5, 10)
    draws: int = 3
    block: int = 0
    patches: int = 500
    random_seeds: int = 2
    components: int = 64
    classes: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class Tools:
    """What describes patches, and where it runs.

    Attributes:
        blocks: of the encoders that are tried.
    """

    encoders: dict[Feature, PretrainedEncoder]
    blocks: tuple[int, ...]
    window_hu: Window
    patch_size: Shape
    device: torch.device


def probe(
    checkpoint: Path,
    cache: Cache,
    settings: Settings,
    *,
    device: torch.device | str = "cpu",
    reporter: Reporter | None = None,
    stop: StopRequest | None = None,
) -> dict[str, Any]:
    """Probe the encoder of a checkpoint, or of an export for torch, with the label maps of a cache.

    Returns:
        what probe.json holds.

    Raises:
        InputError: scikit-learn is not installed, the checkpoint does not fit the cache, or no usable labels.
        CancelledError: a stop was asked for.
    """
    from MAESILLib.probe.summary import curve, differences, summarise

    fitting.require_scikit_learn()
    reporter, stop = reporter or Reporter(), stop or StopRequest()
    device = torch.device(device)
    with memory_guard(device, "give fewer --patches, --random-seeds or --classes"):
        tools = _tools(checkpoint, cache, settings, device)
        info = tools.encoders[Feature(MAESIL)].info
        share = float(info.training.get("train", {}).get("validation_share", 0.1))
        cases = read_cases(cache, tools.patch_size, share, settings.classes, reporter, stop)
        seen = trained_on(info.training, tuple(case.entry for case in cases.held_out))
        if seen:
            reporter.warning(f"the encoder was trained on {len(seen)} of the held-out volumes, first {seen[0]}")
        data = _training_set(cases, cache, tools, settings, reporter, stop)
        components = _principal_components(data, settings)
        choices, fitted = _fit(data, cases, settings, reporter, stop)
        rows, empty = _measure(fitted, components, cases, cache, tools, reporter, stop)
    notes = [*cases.notes, *_missing_counts(cases, data, settings), *empty, *_not_converged(fitted)]
    summary = summarise(rows)
    return {
        "schema": SCHEMA,
        "library_version": __version__,
        "commit": source_commit(),
        "checkpoint": {**info.source, "name": Path(checkpoint).name, "trained_on": seen},
        "data": {
            "fingerprint": cache.fingerprint(),
            "training_volumes": [case.entry.name for case in cases.train],
            "volumes": [case.entry.name for case in cases.held_out],
            "left_out": [{"volume": volume, "reason": why} for volume, why in cases.left_out],
        },
        "device": device_name(device),
        "settings": asdict(settings),
        "protocol": _protocol(settings, components),
        "classes": {name: _counts(cases, data, name) for name in cases.classes},
        "choices": [{**asdict(feature), **asdict(choice)} for feature, choice in choices.items()],
        "rows": rows,
        "summary": summary,
        "differences": differences(rows, settings.seed),
        "curve": curve(rows),
        "notes": notes,
    }


def _tools(checkpoint: Path, cache: Cache, settings: Settings, device: torch.device) -> Tools:
    encoder = load_encoder(checkpoint, device)
    depth = encoder.info.model.encoder_depth
    if encoder.spacing_mm != cache.spacing_mm:
        raise InputError(
            f"{checkpoint} needs {encoder.spacing_mm} mm voxels, {cache.folder} has {cache.spacing_mm} mm",
            "prepare the data again with that --spacing",
        )
    if settings.block > depth:
        raise InputError(f"--block is {settings.block}, the encoder has {depth} blocks", f"choose from 1 to {depth}")
    # neighbouring blocks differ little: every second one, the last among them
    blocks = (settings.block,) if settings.block else tuple(range(depth, 0, -2))[::-1]
    encoders = {Feature(MAESIL): encoder}
    for seed in range(settings.seed, settings.seed + settings.random_seeds):
        encoders[Feature(RANDOM, seed)] = with_random_weights(encoder, seed).to(device)
    return Tools(encoders, blocks, encoder.window_hu, encoder.patch_size, device)


def _describe(
    tools: Tools, unit: np.ndarray, patches: Indices, stop: StopRequest
) -> dict[tuple[Feature, int], Features]:
    """Return every feature of patches, but for the principal components."""
    found: dict[tuple[Feature, int], Features] = {(Feature(RAW), 0): intensities_of(unit, patches, tools.patch_size)}
    shape = (unit.shape[0], unit.shape[1], unit.shape[2])
    found[Feature(POSITION), 0] = positions_of(tools.encoders[Feature(MAESIL)], shape, patches)
    for feature, encoder in tools.encoders.items():
        tokens = tokens_of(encoder, unit, patches, tools.blocks, device=tools.device, stop=stop)
        found |= {(feature, block): of_block for block, of_block in tokens.items()}
    return found


def _training_set(
    cases: Cases, cache: Cache, tools: Tools, settings: Settings, reporter: Reporter, stop: StopRequest
) -> TrainingSet:
    parts: list[dict[tuple[Feature, int], Features]] = []
    patients: list[str] = []
    rows: tuple[dict[str, list[Indices]], ...] = ({n: [] for n in cases.classes}, {n: [] for n in cases.classes})
    for done, case in enumerate(cases.train, start=1):
        stop.check()
        drawn = drawn_patches(case.labels, cases.classes, settings.patches, case.entry.name, settings.seed)
        chosen = np.unique(np.concatenate([one for pair in drawn.values() for one in pair] or [np.zeros(0, np.int64)]))
        if len(chosen):
            for name, pair in drawn.items():
                for target, one in zip(rows, pair, strict=True):
                    target[name].append(len(patients) + np.searchsorted(chosen, one))
            unit = hu_to_unit(np.asarray(cache.open(case.entry)), tools.window_hu)
            parts.append(_describe(tools, unit, chosen, stop))
            patients += [case.entry.patient] * len(chosen)
        reporter.progress("features", done / len(cases.train), case.entry.name)
    features = {key: np.concatenate([part.pop(key) for part in parts]) for key in list(parts[0])}
    positive, negative = ({name: np.concatenate(found) for name, found in side.items()} for side in rows)
    shown = {name: patients_showing(cases.train, name) for name in cases.classes}
    return TrainingSet(np.array(patients), features, positive, negative, shown)


def _principal_components(data: TrainingSet, settings: Settings) -> Any:
    """Fit principal components to the intensities of all training patches, and add them to the features."""
    from sklearn import decomposition

    raw = data.features[Feature(RAW), 0].astype(np.float64)
    count = min(settings.components, *raw.shape)
    components = decomposition.PCA(count, svd_solver="covariance_eigh").fit(raw)
    data.features[Feature(PCA), 0] = components.transform(raw).astype(np.float32)
    return components


def _fit(
    data: TrainingSet, cases: Cases, settings: Settings, reporter: Reporter, stop: StopRequest
) -> tuple[dict[Feature, Choice], list[Fitted]]:
    draws: dict[str, list[Draw]] = {
        name: list(draws_of(name, data.cases[name], settings.cases, settings.draws, settings.seed))
        for name in cases.classes
    }
    features = list(dict.fromkeys(feature for feature, _ in data.features))
    features.sort(key=lambda one: (FEATURES.index(one.name), one.seed))
    choices = {}
    for number, feature in enumerate(features):
        done = CHOOSING_SHARE * number / len(features)
        choices[feature] = choose(data, feature, cases.classes, reporter, stop, done)
    return choices, fit_all(data, choices, draws, reporter, stop, CHOOSING_SHARE)


def _measure(
    fitted: list[Fitted],
    components: Any,
    cases: Cases,
    cache: Cache,
    tools: Tools,
    reporter: Reporter,
    stop: StopRequest,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return one row for each probe and held-out volume, and notes on volumes that do not show a class."""
    rows, notes = [], []
    for done, case in enumerate(cases.held_out, start=1):
        stop.check()
        shown = []
        for name in cases.classes:
            missing = _what_is_missing(case, name)
            if missing:
                notes.append(f"{case.entry.name} has no {missing} patch of {name}: no figure")
            elif name in case.labels.annotated:
                shown.append(name)
        if shown:
            unit = hu_to_unit(np.asarray(cache.open(case.entry)), tools.window_hu)
            features = _describe(tools, unit, case.labels.body, stop)
            raw = features[Feature(RAW), 0].astype(np.float64)
            features[Feature(PCA), 0] = components.transform(raw).astype(np.float32)
            rows += [_row(one, case, features) for one in fitted if one.name in shown]
        reporter.progress("measure", done / len(cases.held_out), case.entry.name)
    return rows, notes


def _what_is_missing(case: Case, name: str) -> str:
    if name not in case.labels.annotated:
        return ""
    if not len(case.labels.positives(name)):
        return "positive"
    return "" if len(case.labels.negatives(name)) else "negative"


def _row(fitted: Fitted, case: Case, features: dict[tuple[Feature, int], Features]) -> dict[str, Any]:
    labels = case.labels
    positive, negative = labels.positives(fitted.name), labels.negatives(fitted.name)
    # the features are those of the body's patches, in their order
    rows = np.searchsorted(labels.body, np.concatenate([positive, negative]))
    is_positive = np.arange(len(rows)) < len(positive)
    scores = fitted.probe.score(features[fitted.feature, fitted.block][rows])
    return {
        "class": fitted.name,
        "volume": case.entry.name,
        "patient": hash_of_patient(case.entry),
        "feature": fitted.feature.name,
        "weights_seed": fitted.feature.seed if fitted.feature.name == RANDOM else None,
        "block": fitted.block or None,
        "cases": len(fitted.draw.patients),
        "all_cases": fitted.draw.is_all,
        "draw": fitted.draw.number,
        "C": fitted.probe.strength,
        "auroc": round(auroc(is_positive, scores), 5),
        "average_precision": round(average_precision(is_positive, scores), 5),
        "positive_share": round(len(positive) / len(rows), 5),
        "positives": len(positive),
        "negatives": len(negative),
    }


def _missing_counts(cases: Cases, data: TrainingSet, settings: Settings) -> list[str]:
    notes = []
    for name in cases.classes:
        count = len(data.cases[name])
        missing = [str(n) for n in sorted(set(settings.cases)) if n > count]
        if missing:
            notes.append(f"{name}: {count} training cases show it, so there is no figure for {', '.join(missing)}")
    return notes


def _not_converged(fitted: list[Fitted]) -> list[str]:
    count = sum(not one.probe.has_converged for one in fitted)
    return [f"{count} of {len(fitted)} fits did not converge"] if count else []


def _counts(cases: Cases, data: TrainingSet, name: str) -> dict[str, Any]:
    return {
        "training_cases": len(data.cases[name]),
        "training_positives": len(data.positive[name]),
        "training_negatives": len(data.negative[name]),
        "held_out_patients": len(patients_showing(cases.held_out, name)),
        "held_out_body_patches": body_count(cases.held_out),
    }


def _protocol(settings: Settings, components: Any) -> dict[str, str]:
    return {
        "patches": f"of the body: at least {HALF:.0%} of a patch's voxels, padding aside, in the body mask",
        "positive": f"at least {HALF:.0%} of the voxels, padding aside, are of the class (nearest voxel)",
        "negative": "no voxel is of the class; patches between are left out",
        "training": f"from each volume at most {settings.patches} positive and {settings.patches} negative patches of "
        f"a class, drawn with seed {settings.seed}; a case is a patient who shows the class",
        "measuring": "all positive and negative patches of the body of held-out patients",
        MAESIL: "tokens of the frozen encoder, all visible, superpatch by superpatch, fp32",
        RANDOM: f"the same with every weight drawn anew, figures averaged over {settings.random_seeds} seeds",
        RAW: "intensities of the patch",
        PCA: f"{components.n_components_} principal components of the intensities of all training patches",
        POSITION: "the fixed position of the patch in its superpatch, which both encoders add: nothing of the image",
        "block": f"{settings.block}, as given"
        if settings.block
        else "of each encoder, chosen among every second one by "
        "the AUROC of cross-validation across all training cases; the few-label curve keeps it",
        "probe": "standardised features, logistic regression, balanced classes, one class against the rest",
        "C": f"of {', '.join(f'{c:g}' for c in fitting.STRENGTHS)} by AUROC in cross-validation across the training "
        f"cases of the fit, at most {fitting.FOLDS} folds; {fitting.STRENGTH_OF_ONE_CASE:g} for a single case",
        "draws": "draws of few cases are nested: each is the beginning of one random order of the cases",
    }
