"""The probe itself: standardised features and a logistic regression, its strength chosen across patients."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from MAESILLib.errors import InputError
from MAESILLib.probe.figures import auroc
from MAESILLib.stopping import StopRequest

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""The grid of C, the inverse of the penalty's weight (scikit-learn)."""
STRENGTH_OF_ONE_CASE = 1e-2
"""A single patient cannot be held out: the middle of the grid."""
FOLDS = 3


@dataclass(frozen=True, eq=False)
class Examples:
    """Patches of one class, positive and negative.

    Attributes:
        features: (N, F).
        is_positive: (N,) bool.
        patients: (N,) names.
    """

    features: NDArray[Any]
    is_positive: NDArray[np.bool_]
    patients: NDArray[np.str_]

    def of(self, patients: list[str]) -> Examples:
        """Return the examples of some patients."""
        chosen = np.isin(self.patients, patients)
        return Examples(self.features[chosen], self.is_positive[chosen], self.patients[chosen])


@dataclass(frozen=True, eq=False)
class Probe:
    """A linear score of features, the standardisation in it.

    Attributes:
        weights: (F,).
        strength: C it was fitted with.
        has_converged: whether the solver came to its end.
    """

    weights: NDArray[np.float64]
    bias: float
    strength: float
    has_converged: bool

    def score(self, features: NDArray[Any]) -> NDArray[np.float64]:
        """Return the log odds (N,) of features (N, F), with classes taken as equally frequent."""
        scores: NDArray[np.float64] = features.astype(np.float64) @ self.weights + self.bias
        return scores


def require_scikit_learn() -> None:
    """Refuse to go on without scikit-learn.

    Raises:
        InputError: it is not installed.
    """
    try:
        import sklearn  # noqa: F401
    except ImportError:
        raise InputError("scikit-learn is not installed", "pip install 'maesil[probe]'") from None


def limited_threads(count: int) -> AbstractContextManager[Any]:
    """Give the solver ``count`` CPU threads; 0 leaves it what it takes."""
    from threadpoolctl import threadpool_limits

    return nullcontext() if count == 0 else threadpool_limits(count)


def fit(examples: Examples, strength: float) -> Probe:
    """Fit a probe: features standardised by their own mean and deviation, classes balanced."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler()
    standardised = scaler.fit_transform(examples.features.astype(np.float64))
    regression = LogisticRegression(C=strength, class_weight="balanced", solver="newton-cholesky")
    with warnings.catch_warnings():
        # that it has not converged is said with the results
        warnings.simplefilter("ignore", ConvergenceWarning)
        regression.fit(standardised, examples.is_positive)
    weights = regression.coef_[0] / scaler.scale_
    bias = float(regression.intercept_[0] - weights @ scaler.mean_)
    return Probe(weights, bias, strength, bool(regression.n_iter_[0] < regression.max_iter))


def cross_validate(examples: Examples, stop: StopRequest) -> dict[float, float]:
    """Return, for each C of the grid, the mean AUROC of patients that the probe was not fitted on.

    Patients are dealt out to at most :data:`FOLDS` parts, each held out once.

    Returns:
        nothing where there is a single patient.

    Raises:
        CancelledError: a stop was asked for.
    """
    from sklearn.model_selection import GroupKFold

    count = len(np.unique(examples.patients))
    if count < 2:
        return {}
    found: dict[float, list[float]] = {strength: [] for strength in STRENGTHS}
    folds = GroupKFold(min(FOLDS, count)).split(examples.features, examples.is_positive, examples.patients)
    for fitted, held_out in folds:
        part = examples.of(sorted(set(examples.patients[fitted])))
        outside = [examples.of([patient]) for patient in sorted(set(examples.patients[held_out]))]
        for strength in STRENGTHS:
            stop.check()
            probe = fit(part, strength)
            found[strength] += [auroc(one.is_positive, probe.score(one.features)) for one in outside]
    return {strength: float(np.mean(values)) for strength, values in found.items()}


def best_strength(figures: dict[float, float]) -> float:
    """Return the C with the highest figure, of equal ones the smallest; without figures that of a single patient."""
    return max(figures, key=lambda c: (round(figures[c], 9), -c)) if figures else STRENGTH_OF_ONE_CASE
