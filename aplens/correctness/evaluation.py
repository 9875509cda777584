"""How well each feature set predicts correctness on files it has not seen, beside its baselines."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from aplens._io import fingerprint
from aplens._progress import Progress, show_progress
from aplens._store import Store
from aplens.correctness.clusters import HeadClusters
from aplens.correctness.features import keep_for
from aplens.correctness.observations import Observations
from aplens.correctness.predictor import FEATURE_SETS, CorrectnessPredictor
from aplens.correctness.splits import assign_folds
from aplens.intervals import FileBootstrap, estimate_from

if TYPE_CHECKING:
    import pandas as pd

#: The baselines that every AUC is compared with, on the same resamples, by the column's name.
_COMPARED = {
    "over_confidence": "confidence",
    "over_statistics": "statistics",
    "over_hand_made": "statistics+regions",
}

#: A task of fewer scenarios has no row of its own: its figures would say nothing.
FEWEST_OF_TASK = 10


def evaluate_predictors(
    observations: Observations,
    *,
    features: Sequence[str] | None = None,
    n_folds: int = 5,
    seed: int = 0,
    progress: bool | Progress = True,
    folder: str | os.PathLike[str] | None = None,
    **settings: Any,
) -> pd.DataFrame:
    """Cross-validate predictors of correctness, grouped by source file.

    Everything that is fitted, clusters included, is fitted on the training folds alone. An AUC
    compares only scenarios of one fold, since the predictors of two folds differ in level.
    Intervals (95 %) resample source files, the same draws for every feature set.

    Args:
        observations: What to predict; source files are its groups. For a predictor of one task
            alone (the paper has one a task) pass that task's.
        features: Feature sets, as `CorrectnessPredictor` takes them (default: those of
            `FEATURE_SETS` that these observations hold).
        n_folds: Folds; no file is in two.
        seed: Decides the folds, the resamples and the predictors.
        progress: A bar (the default), nothing (False), or a function called with (predictors
            fitted, predictors in all).
        folder: Where predictions are kept as they are made; run again, only those that are missing
            or damaged are made.
        settings: Handed to every `CorrectnessPredictor`.

    Returns:
        One row a feature set: `features`, `task` ("all": of all tasks together), `n_scenarios`,
        `n_files`, and `auc`, `accuracy` and `calibration_error` (see `FileBootstrap`), each with
        `_low` and `_high`. Where "confidence" is among the features, `over_confidence`, with `_low`
        and `_high`, is the AUC less that of confidence alone: its interval compares both on the
        same resamples. `over_statistics` and, of "statistics+regions", `over_hand_made` likewise.
        What `score_table` gives of `cross_validate`, which together also judge a part of the
        scenarios.

    Raises:
        ValueError: When there is only one outcome, fewer files than folds, or NaN; or the folder
            holds predictions of something else.
    """
    folds = assign_folds(observations, n_folds, seed)
    scores = cross_validate(
        observations,
        folds,
        features or usual_features(observations),
        seed=seed,
        progress=progress,
        folder=folder,
        **settings,
    )
    return score_table(observations, scores, folds=folds, seed=seed)


def usual_features(observations: Observations) -> tuple[str, ...]:
    """The sets of `FEATURE_SETS` for which these observations hold the numbers."""
    kept = observations.kept
    return tuple(name for name in FEATURE_SETS if keep_for(name) <= kept)


def cross_validate(
    observations: Observations,
    folds: Int[np.ndarray, " scenario"],
    features: Sequence[str],
    *,
    seed: int = 0,
    progress: bool | Progress = True,
    folder: str | os.PathLike[str] | None = None,
    **settings: Any,
) -> dict[str, Float[np.ndarray, " scenario"]]:
    """Probabilities of *incorrect* on every fold, from predictors fitted on the other folds.

    Args:
        observations: What to predict.
        folds: Each scenario's fold, from 0, as `assign_folds` numbers them.
        features: Feature sets, as `CorrectnessPredictor` takes them.
        seed: Of the predictors.
        progress: Called with (predictors fitted, predictors in all).
        folder: Where predictions are kept; those that are there are not made again.
        settings: Handed to every `CorrectnessPredictor`.

    Raises:
        ValueError: When a fold's other folds have only one outcome, or the folder holds predictions
            of something else.
    """
    n_folds = int(folds.max()) + 1
    made = None
    if folder is not None:
        made = Store(folder, "predictions", _describe_setup(observations, folds, seed, settings))
    tell = show_progress(progress, "Fitting predictors")
    scores = {name: np.empty(len(observations)) for name in features}
    for fold in range(n_folds):
        held_out = folds == fold
        train, test = observations.select(~held_out), observations.select(held_out)
        for number, name in enumerate(features):
            predict = partial(
                _predict, CorrectnessPredictor(name, seed=seed, **settings), train, test
            )
            kept = predict() if made is None else made.recall(f"{name}-fold-{fold}", predict)
            scores[name][held_out] = kept
            tell(fold * len(features) + number + 1, n_folds * len(features))
    return scores


def _predict(
    predictor: CorrectnessPredictor, train: Observations, test: Observations
) -> list[float]:
    return predictor.fit(train).predict_proba(test)[:, 1].tolist()


def _describe_setup(
    observations: Observations,
    folds: Int[np.ndarray, " scenario"],
    seed: int,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """What the predictions of a fold depend on, beside the features."""
    clusters = settings.get("clusters") or HeadClusters(seed=seed)
    shown = {**settings, "clusters": clusters.describe()}
    return {
        "data": _describe_data(observations),
        "n_folds": int(folds.max()) + 1,
        "folds": fingerprint(folds.tolist()),
        "seed": seed,
        "settings": fingerprint(shown),
    }


def _describe_data(observations: Observations) -> str:
    """A fingerprint of what predictors see: all outcomes, and the first and last head's pattern."""
    columns = ["file", "task", "correct", "top_probability", "entropy"]
    table = observations.table[columns].to_dict(orient="list")
    n_heads = observations.embeddings.shape[1]
    ends = [
        np.asarray(observations.embeddings[:, head]).tobytes().hex() for head in {0, n_heads - 1}
    ]
    return fingerprint([table, ends])


def score_table(
    observations: Observations,
    scores: dict[str, Float[np.ndarray, " scenario"]],
    *,
    folds: Int[np.ndarray, " scenario"] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """AUC and accuracy of probabilities of *incorrect*, with intervals over source files.

    Columns as `evaluate_predictors`. `folds` says which scenarios one predictor scored. An AUC is
    NaN where there is only one outcome.

    Raises:
        ValueError: When a score is not finite.
    """
    import pandas as pd

    incorrect = ~observations.table["correct"].to_numpy(dtype=bool)
    folds = np.zeros(len(observations), dtype=np.int64) if folds is None else folds
    files = observations.files
    bootstrap = FileBootstrap(files, seed=seed)
    known = {
        over: bootstrap.auc_values(scores[name], incorrect, folds)
        for over, name in _COMPARED.items()
        if name in scores
    }
    rows = []
    for name, probability in scores.items():
        if not np.isfinite(probability).all():
            raise ValueError(f"the scores of {name!r} contain NaN or infinity")
        hits = (probability > 0.5) == incorrect
        areas = bootstrap.auc_values(probability, incorrect, folds)
        measured = {
            "auc": estimate_from(areas),
            "accuracy": bootstrap.mean(hits.astype(float)),
            "calibration_error": bootstrap.calibration_error(probability, incorrect),
            **{over: estimate_from(areas - values) for over, values in known.items()},
        }
        row: dict[str, Any] = {"features": name, "task": "all"}
        row |= {"n_scenarios": len(files), "n_files": len(set(files))}
        for measure, estimate in measured.items():
            row |= estimate.columns(measure)
        rows.append(row)
    return pd.DataFrame(rows)
