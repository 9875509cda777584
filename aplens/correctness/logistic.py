"""L2-regularized logistic regression for few scenarios and many columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

#: Inverse penalties to choose from. Columns are scaled so that 1 means log-odds of order 1.
_INVERSE_PENALTIES = (0.1, 0.3, 1.0, 3.0, 10.0)
_INNER_FOLDS = 4


@dataclass(frozen=True)
class LogisticModel:
    """A linear model of log-odds, which are `intercept` at the training scenarios' `mean`."""

    mean: Float[np.ndarray, " column"]
    weights: Float[np.ndarray, " column"]
    intercept: float
    inverse_penalty: float

    def decision_function(
        self, columns: Float[np.ndarray, "scenario column"]
    ) -> Float[np.ndarray, " scenario"]:
        """Log-odds of the positive class."""
        return (columns - self.mean) @ self.weights + self.intercept


def fit_logistic(
    columns: Float[np.ndarray, "scenario column"],
    positive: Bool[np.ndarray, " scenario"],
    files: Sequence[str],
    widths: Sequence[int],
    seed: int,
) -> LogisticModel:
    """Fit with the penalty that predicts held-out source files best.

    `widths` says how many neighbouring columns make a kind of feature. Each kind is scaled to the
    same total variance, so that the penalty leaves two columns of confidence as much room as two
    thousand of embeddings.
    """
    mean, deviation = columns.mean(axis=0), columns.std(axis=0)
    scale = np.where(deviation > 0, deviation, 1) * np.sqrt(np.repeat(widths, widths))
    scaled = (columns - mean) / scale
    # The penalty is blind to rotations, so the fit needs no more axes than there are scenarios.
    axes, rotated = _rotate(scaled) if len(scaled) < scaled.shape[1] else (None, scaled)
    chosen = _choose_penalty(rotated, positive, files, seed)
    coefficients, intercept = _fit(rotated, positive, chosen)
    weights = coefficients if axes is None else axes @ coefficients
    return LogisticModel(mean, weights / scale, intercept, chosen)


def _rotate(
    columns: Float[np.ndarray, "scenario column"],
) -> tuple[Float[np.ndarray, "column axis"], Float[np.ndarray, "scenario axis"]]:
    """Orthogonal axes that span the scenarios, and the scenarios along them."""
    axes, coordinates = np.linalg.qr(columns.T)
    return axes, coordinates.T


def _fit(
    columns: Float[np.ndarray, "scenario column"],
    positive: Bool[np.ndarray, " scenario"],
    inverse_penalty: float,
) -> tuple[Float[np.ndarray, " column"], float]:
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=inverse_penalty, max_iter=1000).fit(columns, positive)
    return model.coef_[0], float(model.intercept_[0])


def _choose_penalty(
    columns: Float[np.ndarray, "scenario column"],
    positive: Bool[np.ndarray, " scenario"],
    files: Sequence[str],
    seed: int,
) -> float:
    """The inverse penalty with the smallest log loss on held-out files; 1 if there are too few."""
    folds = _inner_folds(positive, files, seed)
    if not folds:
        return 1.0
    losses = []
    for inverse_penalty in _INVERSE_PENALTIES:
        loss = 0.0
        for train, held_out in folds:
            coefficients, intercept = _fit(columns[train], positive[train], inverse_penalty)
            margin = columns[held_out] @ coefficients + intercept
            loss += np.logaddexp(0, np.where(positive[held_out], -margin, margin)).sum()
        losses.append(loss)
    return _INVERSE_PENALTIES[int(np.argmin(losses))]


def _inner_folds(
    positive: Bool[np.ndarray, " scenario"], files: Sequence[str], seed: int
) -> list[tuple[Int[np.ndarray, " train"], Int[np.ndarray, " held_out"]]]:
    from sklearn.model_selection import StratifiedGroupKFold

    n_folds = min(_INNER_FOLDS, len(set(files)), int(positive.sum()), int((~positive).sum()))
    if n_folds < 2:
        return []
    splitter = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    folds = list(splitter.split(positive, positive, files))
    return [fold for fold in folds if len(set(positive[fold[0]])) == 2]
