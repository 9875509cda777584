"""How well each feature set predicts correctness on files it has not seen, beside its baselines."""

from __future__ import annotations

import os
import warnings
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
from aplens.correctness.observations import Observations, incorrect_labels
from aplens.correctness.predictor import FEATURE_SETS, CorrectnessPredictor
from aplens.correctness.splits import assign_folds, draw_files
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
    by_task: bool = False,
    train_share: float = 1.0,
    seed: int = 0,
    progress: bool | Progress = True,
    keep: str | os.PathLike[str] | None = None,
    **settings: Any,
) -> pd.DataFrame:
    """Cross-validate predictors of correctness, grouped by source file.

    Everything that is fitted, clusters included, is fitted on the training folds alone. An AUC
    compares only scenarios of one fold, since the predictors of two folds differ in level.
    Intervals (95 %) resample source files, the same draws for every feature set.

    Args:
        observations: What to predict; source files are its groups.
        features: Feature sets, as `CorrectnessPredictor` takes them (default: those of
            `FEATURE_SETS` that these observations hold).
        n_folds: Folds; no file is in two.
        by_task: One row a task as well, on the same predictions; tasks of fewer than ten scenarios
            have none. For a predictor of one task alone (the paper has one a task) pass that task's
            observations.
        train_share: Fit on this share of each fold's training files, drawn at random: what fewer
            scenarios would have given, judged on the same ones.
        seed: Decides the folds, the resamples and the predictors.
        progress: A bar (the default), nothing (False), or a function called with (predictors
            fitted, predictors in all).
        keep: A folder in which predictions are kept as they are made; run again, only those that
            are missing or damaged are made.
        settings: Handed to every `CorrectnessPredictor`.

    Returns:
        One row a feature set (and task): `features`, `task` ("all" for all together),
        `n_scenarios`, `n_files`, and `auc`, `accuracy` and `calibration_error` (see
        `FileBootstrap`), each with `_low` and `_high`. An AUC is NaN where a task has only one
        outcome. Where "confidence" is among the features, `over_confidence`, with `_low` and
        `_high`, is the AUC less that of confidence alone: its interval compares both on the same
        resamples. `over_statistics` and, of "statistics+regions", `over_hand_made` likewise.

    Warns:
        UserWarning: Tasks are left out; how many is said.

    Raises:
        ValueError: When there is only one outcome, fewer files than folds, a share that is not
            above 0 and at most 1, or NaN; or `keep` holds predictions of something else.
    """
    if not 0 < train_share <= 1:
        raise ValueError(f"train_share must be above 0 and at most 1, got {train_share}")
    features = features or usual_features(observations)
    folds = assign_folds(observations, n_folds, seed)
    setup = _describe_setup(observations, n_folds, seed, settings)
    if train_share < 1:
        setup["train_share"] = train_share
    scores = cross_validate(
        observations,
        folds,
        features,
        train_share=train_share,
        seed=seed,
        progress=progress,
        made=None if keep is None else Store(keep, "predictions", setup),
        **settings,
    )
    return score_table(observations, scores, folds=folds, by_task=by_task, seed=seed)


def usual_features(observations: Observations) -> tuple[str, ...]:
    """The sets of `FEATURE_SETS` for which these observations hold the numbers."""
    kept = observations.kept
    return tuple(name for name in FEATURE_SETS if keep_for(name) <= kept)


def cross_validate(
    observations: Observations,
    folds: Int[np.ndarray, " scenario"],
    features: Sequence[str],
    *,
    train_share: float = 1.0,
    seed: int = 0,
    progress: bool | Progress = True,
    made: Store | None = None,
    **settings: Any,
) -> dict[str, Float[np.ndarray, " scenario"]]:
    """Probabilities of *incorrect* on every fold, from predictors fitted on the other folds.

    Args:
        observations: What to predict.
        folds: Each scenario's fold, from 0, as `assign_folds` numbers them.
        features: Feature sets, as `CorrectnessPredictor` takes them.
        train_share: Fit on this share of each fold's training files, drawn at random.
        seed: Of the predictors, and of the files drawn.
        progress: Called with (predictors fitted, predictors in all).
        made: Where predictions are kept; those that are there are not made again.
        settings: Handed to every `CorrectnessPredictor`.
    """
    n_folds = int(folds.max()) + 1
    tell = show_progress(progress, "Fitting predictors")
    scores = {name: np.empty(len(observations)) for name in features}
    for fold in range(n_folds):
        held_out = folds == fold
        train, test = observations.select(~held_out), observations.select(held_out)
        if train_share < 1:
            train = train.select(draw_files(train.files, train_share, seed + fold))
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
    observations: Observations, n_folds: int, seed: int, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """What the predictions of a fold depend on, beside the features."""
    shown = {
        name: value.describe() if isinstance(value, HeadClusters) else value
        for name, value in settings.items()
    }
    return {
        "data": _describe_data(observations),
        "n_folds": n_folds,
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
    by_task: bool = False,
    seed: int = 0,
) -> pd.DataFrame:
    """AUC and accuracy of probabilities of *incorrect*, with intervals over source files.

    Columns as `evaluate_predictors`. `folds` says which scenarios one predictor scored.

    Raises:
        ValueError: When there is only one outcome, or a score is not finite.
    """
    import pandas as pd

    incorrect = incorrect_labels(observations)
    folds = np.zeros(len(observations), dtype=np.int64) if folds is None else folds
    tasks = observations.table["task"].to_numpy()
    groups = {"all": np.ones(len(tasks), dtype=bool)}
    if by_task:
        named = {task: tasks == task for task in sorted(set(tasks))}
        told = {task: chosen for task, chosen in named.items() if chosen.sum() >= FEWEST_OF_TASK}
        groups |= told
        if few := len(named) - len(told):
            warnings.warn(
                f"{few} of {len(named)} tasks have fewer than {FEWEST_OF_TASK} scenarios: they are "
                "counted in the total alone",
                stacklevel=3,
            )
    rows = []
    for task, chosen in groups.items():
        files = [file for file, keep in zip(observations.files, chosen, strict=True) if keep]
        bootstrap = FileBootstrap(files, seed=seed)
        known = {
            over: bootstrap.auc_values(scores[name][chosen], incorrect[chosen], folds[chosen])
            for over, name in _COMPARED.items()
            if name in scores
        }
        for name, probability in scores.items():
            if not np.isfinite(probability).all():
                raise ValueError(f"the scores of {name!r} contain NaN or infinity")
            hits = (probability > 0.5) == incorrect
            areas = bootstrap.auc_values(probability[chosen], incorrect[chosen], folds[chosen])
            measured = {
                "auc": estimate_from(areas),
                "accuracy": bootstrap.mean(hits[chosen].astype(float)),
                "calibration_error": bootstrap.calibration_error(
                    probability[chosen], incorrect[chosen]
                ),
                **{over: estimate_from(areas - values) for over, values in known.items()},
            }
            row: dict[str, Any] = {"features": name, "task": task}
            row |= {"n_scenarios": len(files), "n_files": len(set(files))}
            for measure, estimate in measured.items():
                row |= estimate.columns(measure)
            rows.append(row)
    return pd.DataFrame(rows)
