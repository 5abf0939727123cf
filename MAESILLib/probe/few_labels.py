"""Few-label segmentation: token-level Dice on other patients after fitting on 1, 5 or 10 labelled cases."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from MAESILLib.probe.features import Array, Key, Tools, describe
from MAESILLib.probe.fit import ALPHAS, FOLDS, Floats, Rows, balanced, ridge
from MAESILLib.probe.labels import BACKGROUND, HALF, LabelledVolume, Read
from MAESILLib.probe.windows import PATCH, batch_size, cut, tiles, token_shares

FIT_DRAWS = 2
"""Draws of windows that are fitted on; the next one is measured."""
TOKENS_EACH = 200
"""Most tokens of a structure, in one volume and draw, that are fitted on; twice as many of the background."""
Dice = dict[tuple[int, str], dict[tuple[str, str], list[float]]]
"""Of a number of cases and a feature: for each patient and structure the Dice of every draw."""


@dataclass(frozen=True, eq=False)
class Tokens:
    """K tokens of the body.

    Attributes:
        features: of each feature and block (K, F).
        structure: (K,) names.
        weight: (K,) how many tokens of the volume each stands for.
        patient: (K,) names.
        draw: (K,) of the windows.
    """

    features: dict[Key, Array]
    structure: NDArray[np.str_]
    weight: Floats
    patient: NDArray[np.str_]
    draw: NDArray[np.int64]

    @staticmethod
    def joined(parts: Sequence[Tokens]) -> Tokens:
        """Return the tokens of all parts."""
        features = {key: np.concatenate([part.features[key] for part in parts]) for key in parts[0].features}
        rest = ("structure", "weight", "patient", "draw")
        return Tokens(features, *(np.concatenate([getattr(part, name) for part in parts]) for name in rest))


@dataclass(frozen=True, eq=False)
class Fit:
    """A segmentation of one structure: the tokens where features @ coefficients exceeds the threshold."""

    structure: str
    cases: int
    held_out: frozenset[str]
    key: Key
    coefficients: Floats
    threshold: float


def few_label_dice(
    volumes: Sequence[LabelledVolume], size: int, cases: Sequence[int], draws: int, seed: int, tools: Tools
) -> tuple[Dice, list[str]]:
    """Fit on few labelled cases (patients) and measure on patients who are labelled in no case of the draw.

    Block, alpha and threshold are chosen by Dice on the labelled cases: by folds of them, with a single one by its two
    draws of windows. Windows tile a volume from a random origin; every token at least half in the body is measured.

    Returns:
        Dice, and a line for each number of cases that a structure has too few patients for.

    Raises:
        CancelledError: a stop was asked for.
    """
    stage = f"label maps, window {size}"
    parts: list[Tokens] = []
    for number, volume in enumerate(volumes):
        read = volume.read()
        for draw in range(FIT_DRAWS):
            parts += _tokens(volume.patient, read, draw, [seed, number, draw], size, tools, TOKENS_EACH)
        tools.reporter.progress(stage, (number + 1) / len(volumes) * FIT_DRAWS / (FIT_DRAWS + 1))
    fits, notes = _fit_all(Tokens.joined(parts), cases, draws, seed, tools)
    counts: dict[str, Floats] = defaultdict(lambda: np.zeros((3, len(fits))))
    for number, volume in enumerate(volumes if fits else ()):
        for one in _tokens(volume.patient, volume.read(), FIT_DRAWS, [seed, number, FIT_DRAWS], size, tools):
            counts[volume.patient] += _count(one, fits)
        tools.reporter.progress(stage, (FIT_DRAWS + (number + 1) / len(volumes)) / (FIT_DRAWS + 1))
    found: Dice = defaultdict(lambda: defaultdict(list))
    for patient, (both, predicted, true) in counts.items():
        for n in np.flatnonzero(true):
            if patient in fits[n].held_out:
                dice = float(2 * both[n] / (predicted[n] + true[n]))
                found[fits[n].cases, fits[n].key[0]][patient, fits[n].structure].append(dice)
    return found, notes


def _tokens(
    patient: str, read: Read, draw: int, seed: list[int], size: int, tools: Tools, most: int | None = None
) -> Iterator[Tokens]:
    """Yield the tokens of the body of a volume tiled by windows, at most ``most`` of each structure."""
    hu, codes, names = read
    starts = tiles(hu.shape, size, seed)
    # 0 beyond the body and the volume, 1 the background
    shifted = codes + 1
    found = [_labelled(cut(shifted, start, size, "constant")) for start in starts]
    window = np.repeat(np.arange(len(starts)), [len(index) for index, _ in found])
    index, code = (np.concatenate([one[part] for one in found]) for part in (0, 1))
    kept, weight = np.ones(len(code), bool), np.ones(len(code))
    for value in np.unique(code) if most else ():
        rows = np.random.default_rng([*seed, value]).permutation(np.flatnonzero(code == value))
        limit = (most or 0) * (1 if value else 2)
        kept[rows[limit:]] = False
        weight[rows] = max(1, len(rows) / limit)
    place = np.stack(np.unravel_index(index, (size // PATCH,) * 3), 1)
    used = np.unique(window[kept])
    for first in range(0, len(used), batch_size(size)):
        tools.stop.check()
        chosen = used[first : first + batch_size(size)]
        rows = np.flatnonzero(kept & np.isin(window, chosen))
        described = describe(tools, hu, starts[chosen], size, np.searchsorted(chosen, window[rows]), place[rows])
        who, when = np.full(len(rows), patient), np.full(len(rows), draw)
        yield Tokens(described, np.array(names)[code[rows]], weight[rows], who, when)


def _labelled(shifted: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the tokens of a window at least half in the body, and the code that fills half of each, else 0."""
    label = np.zeros(shifted.size // PATCH**3, np.int64)
    chosen = np.flatnonzero(token_shares(shifted > 0) >= HALF)
    for value in np.unique(shifted[shifted > 1]) if len(chosen) else ():
        label[token_shares(shifted == value) >= HALF] = value - 1
    return chosen, label[chosen]


def _fit_all(tokens: Tokens, cases: Sequence[int], draws: int, seed: int, tools: Tools) -> tuple[list[Fit], list[str]]:
    fits, notes = [], []
    for number, structure in enumerate(sorted(set(tokens.structure) - {BACKGROUND})):
        patients = np.unique(tokens.patient[tokens.structure == structure])
        # two patients at least are held out
        possible = [count for count in cases if count <= len(patients) - 2]
        if len(possible) < len(cases):
            without = ", ".join(str(count) for count in cases if count not in possible)
            notes.append(f"{structure}: {len(patients)} patients show it, so there is no Dice after {without} cases")
        for draw, count in ((draw, count) for draw in range(draws) for count in possible):
            order = np.random.default_rng([seed, number, draw]).permutation(patients)
            held_out, labelled = frozenset(map(str, order[max(possible) :])), np.isin(tokens.patient, order[:count])
            for feature in dict.fromkeys(name for name, _ in tokens.features):
                tools.stop.check()
                fits.append(Fit(str(structure), count, held_out, *_fit(tokens, labelled, structure, feature)))
            tools.reporter.progress(f"few labels, {structure}", (draw + (count == possible[-1])) / draws)
    return fits, notes


def _fit(tokens: Tokens, labelled: Rows, structure: str, feature: str) -> tuple[Key, Floats, float]:
    """Return block, coefficients and threshold, chosen and fitted on labelled tokens alone."""
    truth, weight = tokens.structure[labelled] == structure, tokens.weight[labelled]
    several = len(np.unique(tokens.patient[labelled])) > 1
    _, group = np.unique((tokens.patient if several else tokens.draw)[labelled], return_inverse=True)
    blocks = {key: x[labelled] for key, x in tokens.features.items() if key[0] == feature}
    found = []
    for key, x in blocks.items():
        scores = np.zeros((len(ALPHAS), len(x)))
        for one in np.unique(group % FOLDS):
            test = group % FOLDS == one
            for target, (w, b) in zip(scores, _ridge(x[~test], truth[~test], ALPHAS), strict=True):
                target[test] = (x[test] @ w + b)[:, 0]
        found += [(*best_threshold(s, truth, weight), a, key) for a, s in zip(ALPHAS, scores, strict=True)]
    _, threshold, alpha, key = max(found, key=lambda one: (one[0], one[2]))
    ((coefficients, intercept),) = _ridge(blocks[key], truth, [alpha])
    return key, coefficients[:, 0], threshold - float(intercept[0])


def _ridge(x: Array, truth: Rows, alphas: Sequence[float]) -> list[tuple[Floats, Floats]]:
    return ridge(x, np.where(truth, 1.0, -1.0)[:, None], balanced(truth.astype(np.int64), 2), alphas)


def best_threshold(scores: Floats, truth: Rows, weight: Floats) -> tuple[float, float]:
    """Return the highest Dice that a threshold on scores (N,) reaches, and the threshold.

    Args:
        truth: (N,) of the structure.
        weight: (N,) of the tokens.
    """
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
