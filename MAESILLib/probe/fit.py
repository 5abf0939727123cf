"""Linear probes across patients in numpy: ridge regression, AUROC, choices inside the training patients, bootstrap."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from MAESILLib.metrics.statistics import LEVEL, RESAMPLES

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
Draws = NDArray[np.float32]
"""(R, N, F): features of N tokens in R windows each."""

ALPHAS = (1e1, 1e2, 1e3, 1e4)
"""Ridge penalties that are tried, on standardised features."""
FOLDS = 5
FEWEST_PATIENTS = 3
"""A structure that fewer patients show is not measured: its points only count as other tissue."""
SOFT_TISSUE = (
    *("heart", "aorta", "liver", "spleen", "kidney", "stomach", "bowel", "breast", "subcutaneous_fat", "visceral_fat"),
    *("paraspinal_muscle", "psoas", "abdominal_wall_muscle", "shoulder_muscle", "gluteal_muscle", "thigh_muscle"),
)
"""Structures that HU alone cannot tell apart."""


@dataclass(frozen=True, eq=False)
class Labels:
    """What N tokens show, and whose they are.

    Attributes:
        structures: S names, measured.
        patients: P names.
        structure: (N,) index into ``structures``; S of what is not measured.
        patient: (N,) index into ``patients``.
        fold: (N,) of its patient.
    """

    structures: tuple[str, ...]
    patients: tuple[str, ...]
    structure: NDArray[np.int64]
    patient: NDArray[np.int64]
    fold: NDArray[np.int64]


def labels_of(structure: Sequence[str], patient: Sequence[str]) -> Labels:
    """Number structures and patients of N tokens, and deal the patients out to five folds."""
    names, code = np.unique(structure, return_inverse=True)
    patients, who = np.unique(patient, return_inverse=True)
    kept = [n for n in range(len(names)) if len(np.unique(who[code == n])) >= FEWEST_PATIENTS]
    number = np.full(len(names), len(kept))
    number[kept] = np.arange(len(kept))
    fold = np.empty(len(patients), np.int64)
    fold[np.random.default_rng(0).permutation(len(patients))] = np.arange(len(patients)) % FOLDS
    structures = tuple(str(names[n]) for n in kept)
    return Labels(structures, tuple(map(str, patients)), number[code], who, fold[who])


def ridge(
    features: NDArray[np.float32], targets: Floats, weights: Floats, alphas: Sequence[float]
) -> list[tuple[Floats, Floats]]:
    """Fit weighted ridge regressions with an unpenalised intercept to standardised features.

    Args:
        features: (N, F).
        targets: (N, S).
        weights: (N,) of the samples, scaled to a mean of 1 here.

    Returns:
        for each alpha the coefficients (F, S) and intercepts (S,) for features as they are
        (Hastie, Tibshirani, Friedman: The Elements of Statistical Learning, 3.4.1).
    """
    x = features.astype(np.float64)
    mean, scale = x.mean(0), x.std(0)
    scale[scale <= 1e-7 * (1 + abs(mean))] = 1
    share = weights / weights.sum()
    x = (x - mean) / scale
    centre, level = share @ x, share @ targets
    root = np.sqrt(share * len(x))[:, None]
    x, y = root * (x - centre), root * (targets - level)
    # of the two equivalent systems the smaller one
    is_wide = x.shape[0] < x.shape[1]
    gram, right = (x @ x.T, y) if is_wide else (x.T @ x, x.T @ y)
    fits = []
    for alpha in alphas:
        solved = np.linalg.solve(gram + alpha * np.eye(len(gram)), right)
        coefficients = x.T @ solved if is_wide else solved
        intercept = level - centre @ coefficients - (mean / scale) @ coefficients
        fits.append((coefficients / scale[:, None], intercept))
    return fits


def balanced(structure: NDArray[np.int64], structures: int) -> Floats:
    """Return weights (N,) with which every structure counts alike; a token of none has their mean weight."""
    counts = np.bincount(structure, minlength=structures + 1).astype(np.float64)
    counts[structures] = counts[:structures].sum() / max(1, np.count_nonzero(counts[:structures]))
    return 1 / counts[structure]


def auroc(is_positive: Mask, scores: Floats) -> float:
    """Return the area under the ROC curve: how often a positive scores above a negative, ties by half."""
    positive, negative = scores[is_positive], np.sort(scores[~is_positive])
    below, upto = (np.searchsorted(negative, positive, side).mean() for side in ("left", "right"))
    return float(below + upto) / 2 / len(negative)


def within_patients(scores: Floats, labels: Labels) -> tuple[Floats, Floats]:
    """Return AUROC and recall of each structure within each patient, both (P, S), NaN where not defined.

    AUROC is that of the structure against the rest, for a patient who shows both. Recall is the share of the
    structure's tokens for which it scores highest; its mean over structures is the balanced accuracy.

    Args:
        scores: (N, S).
    """
    areas, recalls = np.full((2, len(labels.patients), len(labels.structures)), np.nan)
    for patient in range(len(labels.patients)):
        rows = labels.patient == patient
        structure, own = labels.structure[rows], scores[rows]
        for one in np.unique(structure[structure < len(labels.structures)]):
            positive = structure == one
            recalls[patient, one] = (own[positive].argmax(1) == one).mean()
            if not positive.all():
                areas[patient, one] = auroc(positive, own[:, one])
    return areas, recalls


def held_out_scores(draws: Draws, labels: Labels, train: Mask, test: Mask, alphas: Sequence[float]) -> list[Floats]:
    """Fit on some patients and score others: for each alpha (N of ``test``, S).

    Args:
        draws: (R, N, F) features of every token in R windows; the last is measured, the others are fitted on, and of
            a single one both.
    """
    fitted = draws[:-1] if len(draws) > 1 else draws
    structure = np.tile(labels.structure[train], len(fitted))
    targets = np.where(structure[:, None] == np.arange(len(labels.structures)), 1.0, -1.0)
    fits = ridge(np.concatenate(fitted[:, train]), targets, balanced(structure, len(labels.structures)), alphas)
    measured = draws[-1][test].astype(np.float64)
    return [measured @ coefficients + intercept for coefficients, intercept in fits]


def choose(blocks: Mapping[int, Draws], labels: Labels, fold: int) -> tuple[int, float]:
    """Choose block and alpha by AUROC across the patients of the other folds; nothing of ``fold`` is read.

    Args:
        blocks: of each block (R, N, F), as for :func:`held_out_scores`.
    """
    inside = labels.fold != fold
    patients = np.unique(labels.patient[inside])
    found = []
    for block, draws in blocks.items():
        scores = np.zeros((len(ALPHAS), len(inside), len(labels.structures)))
        for inner in np.unique(labels.fold[inside]):
            test = labels.fold == inner
            scores[:, test] = held_out_scores(draws, labels, inside & ~test, test, ALPHAS)
        for alpha, one in zip(ALPHAS, scores, strict=True):
            area = macro(within_patients(one, labels)[0][patients])
            # without a metric (no training patient shows a structure and others) any choice does
            found.append((np.nan_to_num(area, nan=-1.0), block, alpha))
    _, block, alpha = max(found)
    return block, alpha


def across_patients(blocks: Mapping[int, Draws], labels: Labels, fixed: tuple[int, float] | None = None) -> Floats:
    """Return scores (N, S) of every token, by a probe that was chosen and fitted on other patients.

    Args:
        blocks: as for :func:`choose`.
        fixed: block and alpha, if they are not to be chosen.
    """
    scores = np.zeros((len(labels.fold), len(labels.structures)))
    for fold in np.unique(labels.fold):
        block, alpha = fixed or choose(blocks, labels, fold)
        test = labels.fold == fold
        (scores[test],) = held_out_scores(blocks[block], labels, ~test, test, [alpha])
    return scores


def macro(table: Floats) -> float:
    """Return the mean over patients of each structure, then over structures, of (P, S) with NaN where not defined."""
    return float(_macros(table, np.ones((1, len(table))))[0])


def _macros(table: Floats, counts: NDArray[Any]) -> Floats:
    """Return :func:`macro` (R,) with patients that count ``counts`` (R, P) times."""
    # nothing is divided by nothing where no patient shows a structure
    with np.errstate(invalid="ignore"):
        means = counts @ np.nan_to_num(table) / (counts @ np.isfinite(table))
        return np.nansum(means, 1) / np.isfinite(means).sum(1)


def interval(tables: Sequence[Floats], seed: int = 0) -> dict[str, float | None]:
    """Return the 95 % interval of the macro mean of a table, or of the first minus the second, by bootstrap.

    Patients are resampled, the same for both tables: the percentile bootstrap (Efron and Tibshirani 1993, chapter 13).

    Args:
        tables: one or two (P, S), NaN where a patient does not show a structure.

    Returns:
        ``low`` and ``high``; None for fewer than two patients.
    """
    used = [table[np.isfinite(tables[0]).any(1)] for table in tables]
    patients = len(used[0])
    if patients < 2:
        return {"low": None, "high": None}
    # how often each patient is drawn
    counts = np.random.default_rng(seed).multinomial(patients, np.full(patients, 1 / patients), RESAMPLES)
    means = [_macros(table, counts) for table in used]
    values = means[0] if len(means) == 1 else means[0] - means[1]
    low, high = np.nanquantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {"low": float(low), "high": float(high)}
