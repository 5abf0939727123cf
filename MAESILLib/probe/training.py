"""Fitting the probes: which block, which strength, and how many cases they see."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from MAESILLib.events import Reporter
from MAESILLib.probe.features import Features
from MAESILLib.probe.fitting import Examples, Probe, best_strength, cross_validate, fit
from MAESILLib.stopping import StopRequest


@dataclass(frozen=True, order=True)
class Feature:
    """What patches are described by.

    Attributes:
        name: ``maesil``, ``random``, ``raw``, ``pca`` or ``position``.
        seed: of random weights; 0 for the others.
    """

    name: str
    seed: int = 0


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """The patches that train, of all classes and volumes.

    Attributes:
        patients: (N,) names.
        features: of each feature and block (0: it has none), (N, F).
        positive, negative: of each class, the rows that were drawn for it.
        cases: of each class, the patients that show it, sorted.
    """

    patients: NDArray[np.str_]
    features: dict[tuple[Feature, int], Features]
    positive: dict[str, NDArray[np.int64]]
    negative: dict[str, NDArray[np.int64]]
    cases: dict[str, list[str]]

    def examples(self, feature: Feature, block: int, name: str) -> Examples:
        """Return the examples of a class, of the patients that show it."""
        rows = np.concatenate([self.positive[name], self.negative[name]])
        is_positive = np.arange(len(rows)) < len(self.positive[name])
        shown = np.isin(self.patients[rows], self.cases[name])
        rows, is_positive = rows[shown], is_positive[shown]
        return Examples(self.features[feature, block][rows], is_positive, self.patients[rows])


@dataclass(frozen=True)
class Draw:
    """Training cases of a class.

    Attributes:
        number: of the draw.
        patients: that train.
        is_all: every patient that shows the class.
    """

    number: int
    patients: tuple[str, ...]
    is_all: bool


@dataclass(frozen=True, eq=False)
class Fitted:
    """A probe and what it was fitted on."""

    name: str
    feature: Feature
    block: int
    draw: Draw
    probe: Probe


@dataclass(frozen=True, eq=False)
class Choice:
    """What cross-validation over all training cases says of a feature.

    Attributes:
        block: chosen; 0 where there is none.
        by_block: of each block, the mean over classes of the best AUROC.
        strengths: C of each class, with the block chosen.
        aurocs: with this C and block, of each class.
    """

    block: int
    by_block: dict[int, float]
    strengths: dict[str, float]
    aurocs: dict[str, float]


def draws_of(name: str, patients: list[str], counts: tuple[int, ...], draws: int, seed: int) -> Iterator[Draw]:
    """Yield the training cases of a class: all of them once, and each smaller number as often as ``draws``.

    Draws of one number are nested in those of a larger one: each is the beginning of one random order of the
    patients, which depends on seed, class and number of the draw.
    """
    yield Draw(0, tuple(patients), True)
    for number in range(draws):
        order = np.random.default_rng([seed, zlib.crc32(name.encode()), number]).permutation(len(patients))
        for count in sorted(set(counts)):
            if count < len(patients):
                yield Draw(number, tuple(sorted(patients[i] for i in order[:count])), False)


def choose(
    data: TrainingSet, feature: Feature, classes: tuple[str, ...], reporter: Reporter, stop: StopRequest, done: float
) -> Choice:
    """Choose block and strengths of a feature by cross-validation over all training cases.

    Args:
        done: share of all fits done before, for progress.

    Raises:
        CancelledError: a stop was asked for.
    """
    blocks = [block for one, block in data.features if one == feature]
    tables = {}
    for block in blocks:
        for name in classes:
            tables[block, name] = cross_validate(data.examples(feature, block, name), stop)
            reporter.progress("fit", done, f"{feature.name}, block {block}, {name}")
    by_block = {
        block: float(np.mean([max(tables[block, n].values(), default=0.5) for n in classes])) for block in blocks
    }
    best = max(blocks, key=lambda block: (round(by_block[block], 9), block))
    strengths = {name: best_strength(tables[best, name]) for name in classes}
    aurocs = {name: tables[best, name][strengths[name]] for name in classes if tables[best, name]}
    return Choice(best, by_block, strengths, aurocs)


def fit_all(
    data: TrainingSet,
    choices: dict[Feature, Choice],
    draws: dict[str, list[Draw]],
    reporter: Reporter,
    stop: StopRequest,
    begin: float,
) -> list[Fitted]:
    """Fit the probes of every feature, class and draw; C of a draw is chosen on its own cases.

    Args:
        begin: share of all fits done before, for progress.

    Raises:
        CancelledError: a stop was asked for.
    """
    fitted = []
    total = len(choices) * sum(map(len, draws.values()))
    for feature, choice in choices.items():
        for name, of_class in draws.items():
            examples = data.examples(feature, choice.block, name)
            for draw in of_class:
                stop.check()
                part = examples.of(list(draw.patients))
                strength = choice.strengths[name] if draw.is_all else best_strength(cross_validate(part, stop))
                fitted.append(Fitted(name, feature, choice.block, draw, fit(part, strength)))
                reporter.progress("fit", begin + (1 - begin) * len(fitted) / total, f"{feature.name}, {name}")
    return fitted
