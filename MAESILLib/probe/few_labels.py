"""Few-label segmentation: token-level Dice on other patients after fitting on 1, 5 or 10 labelled cases."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from MAESILLib.probe.features import Array, Key, Tools, describe
from MAESILLib.probe.fit import ALPHAS, FOLDS, Floats, Mask, balanced, ridge
from MAESILLib.probe.labels import BACKGROUND, HALF, LabelledVolume, Read
from MAESILLib.probe.table import DICE, LABEL_MAPS, Row
from MAESILLib.probe.windows import PATCH, batch_size, cut, tiles, token_shares

FIT_DRAWS = 2
"""Draws of windows that are fitted on; the next one is measured."""
TOKENS_EACH = 200
"""Most tokens of a structure, in one volume and draw, that are fitted on; twice as many of the background."""


class Tokens(NamedTuple):
    """K tokens of the body, in one draw of windows of one volume.

    Attributes:
        structure: (K,) names.
        weight: (K,) how many tokens of the volume each stands for.
        features: of each feature and block (K, F).
    """

    patient: str
    draw: int
    structure: NDArray[np.str_]
    weight: Floats
    features: dict[Key, Array]


class Fit(NamedTuple):
    """A segmentation of one structure: the tokens where features @ coefficients exceeds the threshold."""

    structure: str
    cases: int
    held_out: set[str]
    key: Key
    coefficients: Floats
    threshold: float


def few_label_dice(
    volumes: Sequence[LabelledVolume], size: int, cases: Sequence[int], draws: int, seed: int, tools: Tools
) -> tuple[list[Row], list[str]]:
    """Fit on few labelled cases (patients) and measure on patients who are labelled in no case of the draw.

    Block, alpha and threshold are chosen by Dice on the labelled cases: by folds of them, with a single one by its two
    draws of windows. Windows tile a volume from a random origin; every token at least half in the body is measured.

    Returns:
        Dice of each number of cases, feature, patient and structure, means over draws of the cases, and a line for each
        structure that too few patients show for some number of cases.
    """
    stage = f"label maps, window {size}"
    parts: list[Tokens] = []
    for number, volume in enumerate(volumes):
        read = volume.read()
        for draw in range(FIT_DRAWS):
            parts += _tokens(volume.entry.patient_label, read, draw, [seed, number, draw], size, tools)
        tools.reporter.progress(stage, (number + 1) / len(volumes) * FIT_DRAWS / (FIT_DRAWS + 1))
    fits, notes = _fit_all(parts, cases, draws, seed, tools)
    counts: dict[str, Floats] = defaultdict(lambda: np.zeros((3, len(fits))))
    for number, volume in enumerate(volumes if fits else ()):
        patient = volume.entry.patient_label
        for part in _tokens(patient, volume.read(), FIT_DRAWS, [seed, number, FIT_DRAWS], size, tools):
            counts[part.patient] += _count(part, fits)
        tools.reporter.progress(stage, (FIT_DRAWS + (number + 1) / len(volumes)) / (FIT_DRAWS + 1))
    found: dict[tuple[int, str, str, str], list[float]] = defaultdict(list)
    for patient, table in counts.items():
        for fit, (both, predicted, true) in zip(fits, table.T, strict=True):
            if true and patient in fit.held_out:
                dice = 2 * both / (predicted + true)
                found[fit.cases, fit.key[0], patient, fit.structure].append(dice)
    return [
        Row(LABEL_MAPS, size, DICE.format(count), feature, patient, structure, float(np.mean(values)))
        for (count, feature, patient, structure), values in sorted(found.items())
    ], notes


def _tokens(patient: str, read: Read, draw: int, seed: list[int], size: int, tools: Tools) -> Iterator[Tokens]:
    """Yield the tokens of the body of a volume tiled by windows; some of each structure in draws that are fitted on."""
    hu, codes, names = read
    starts = tiles(hu.shape, size, seed)
    # 0 beyond the body and the volume, 1 the background
    shifted = codes + 1
    label = np.stack([_labels(cut(shifted, start, size, "constant")) for start in starts])
    window, index = np.nonzero(label >= 0)
    code = label[window, index]
    kept, weight = np.ones(len(code), bool), np.ones(len(code))
    for value in np.unique(code) if draw < FIT_DRAWS else ():
        rows = np.random.default_rng([*seed, value]).permutation(np.flatnonzero(code == value))
        limit = TOKENS_EACH * (1 if value else 2)
        kept[rows[limit:]] = False
        weight[rows] = max(1, len(rows) / limit)
    place = np.stack(np.unravel_index(index, (size // PATCH,) * 3), 1)
    used = np.unique(window[kept])
    for first in range(0, len(used), batch_size(size)):
        tools.stop.check()
        chosen = used[first : first + batch_size(size)]
        rows = np.flatnonzero(kept & np.isin(window, chosen))
        described = describe(tools, hu, starts[chosen], size, np.searchsorted(chosen, window[rows]), place[rows])
        yield Tokens(patient, draw, np.array(names)[code[rows]], weight[rows], described)


def _labels(shifted: NDArray[np.int32]) -> NDArray[np.int64]:
    """Return for each token of a window the code that fills half of it, else 0, or -1 where half is not body."""
    label = np.where(token_shares(shifted > 0) >= HALF, 0, -1)
    for value in np.unique(shifted[shifted > 1]):
        label[token_shares(shifted == value) >= HALF] = value - 1
    return label


def _fit_all(
    parts: Sequence[Tokens], cases: Sequence[int], draws: int, seed: int, tools: Tools
) -> tuple[list[Fit], list[str]]:
    fits, notes = [], []
    shown: dict[str, set[str]] = defaultdict(set)
    for part in parts:
        for name in {*map(str, part.structure)} - {BACKGROUND}:
            shown[name].add(part.patient)
    for number, (structure, patients) in enumerate(sorted(shown.items())):
        # two patients at least are held out
        possible = [count for count in cases if count <= len(patients) - 2]
        if len(possible) < len(cases):
            without = ", ".join(str(count) for count in cases if count not in possible)
            notes.append(f"{structure}: {len(patients)} patients show it, so there is no Dice after {without} cases")
        for draw, count in ((draw, count) for draw in range(draws) for count in possible):
            order = list(map(str, np.random.default_rng([seed, number, draw]).permutation(sorted(patients))))
            labelled = [part for part in parts if part.patient in order[:count]]
            for feature in dict.fromkeys(name for name, _ in parts[0].features):
                tools.stop.check()
                fitted = _fit(labelled, structure, feature)
                fits.append(Fit(structure, count, set(order[max(possible) :]), *fitted))
            tools.reporter.progress(f"few labels, {structure}", (draw + (count == possible[-1])) / draws)
    return fits, notes


def _fit(parts: Sequence[Tokens], structure: str, feature: str) -> tuple[Key, Floats, float]:
    """Return block, coefficients and threshold, chosen and fitted on labelled tokens alone."""
    truth = np.concatenate([part.structure for part in parts]) == structure
    weight = np.concatenate([part.weight for part in parts])
    several = len({part.patient for part in parts}) > 1
    _, group = np.unique([part.patient if several else part.draw for part in parts], return_inverse=True)
    fold = np.repeat(group % FOLDS, [len(part.weight) for part in parts])
    keys = [key for key in parts[0].features if key[0] == feature]
    blocks = {key: np.concatenate([part.features[key] for part in parts]) for key in keys}
    found = []
    for key, x in blocks.items():
        scores = np.zeros((len(ALPHAS), len(x)))
        for one in np.unique(fold):
            test = fold == one
            for target, (w, b) in zip(scores, _ridge(x[~test], truth[~test], ALPHAS), strict=True):
                target[test] = (x[test] @ w + b)[:, 0]
        found += [(*best_threshold(s, truth, weight), a, key) for a, s in zip(ALPHAS, scores, strict=True)]
    _, threshold, alpha, key = max(found, key=lambda one: (one[0], one[2]))
    ((coefficients, intercept),) = _ridge(blocks[key], truth, [alpha])
    return key, coefficients[:, 0], threshold - float(intercept[0])


def _ridge(x: Array, truth: Mask, alphas: Sequence[float]) -> list[tuple[Floats, Floats]]:
    return ridge(x, np.where(truth, 1.0, -1.0)[:, None], balanced(truth.astype(np.int64), 2), alphas)


def best_threshold(scores: Floats, truth: Mask, weight: Floats) -> tuple[float, float]:
    """Return the highest Dice that a threshold on scores (N,) reaches, and the threshold."""
    order = np.argsort(-scores, kind="stable")
    both = np.cumsum((weight * truth)[order])
    dice = 2 * both / (np.cumsum(weight[order]) + both[-1])
    # between two equal scores no threshold can lie
    ranked = np.append(scores[order], scores.min() - 1)
    best = int(np.argmax(np.where(np.diff(ranked) != 0, dice, -1)))
    return float(dice[best]), float(ranked[best : best + 2].mean())


def _count(tokens: Tokens, fits: Sequence[Fit]) -> Floats:
    """Return for each fit the tokens that are predicted and true, predicted, and true: (3, fits)."""
    counts = np.zeros((3, len(fits)))
    for key in {fit.key for fit in fits}:
        rows = [number for number, fit in enumerate(fits) if fit.key == key]
        scores = tokens.features[key] @ np.stack([fits[row].coefficients for row in rows], 1)
        predicted = scores > [fits[row].threshold for row in rows]
        true = tokens.structure[:, None] == [fits[row].structure for row in rows]
        counts[:, rows] = (predicted & true).sum(0), predicted.sum(0), true.sum(0)
    return counts
