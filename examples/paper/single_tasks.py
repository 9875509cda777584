"""The paper's setting: a predictor for each task alone, as many correct as incorrect scenarios."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from aplens.correctness import FEATURE_SETS, Observations, assign_folds, cross_validate
from aplens.intervals import FileBootstrap, estimate_from
from paper.over_tasks import MEAN_OF_TASKS, average_tasks

if TYPE_CHECKING:
    import pandas as pd


def evaluate_single_tasks(
    observations: Observations,
    *,
    features: Sequence[str] = FEATURE_SETS,
    n_folds: int = 5,
    seed: int = 0,
    **settings: Any,
) -> pd.DataFrame:
    """Cross-validate a predictor for each task on its scenarios alone, outcomes balanced.

    The paper's setting (section 5), but for the folds, which are by source file here. Of the
    commoner outcome as many scenarios are drawn as there are of the other, so that guessing has an
    accuracy of 0.5.

    Returns:
        One row a feature set and task, then one for the mean over tasks (`task` is
        `MEAN_OF_TASKS`): `features`, `task`, `n_scenarios`, and `auc` and `accuracy`, each with
        `_low` and `_high`.
    """
    import pandas as pd

    parts = _balanced_tasks(observations, n_folds, seed)
    kept = np.concatenate(list(parts.values()))
    bootstrap = FileBootstrap([observations.files[i] for i in kept], seed=seed)
    measured: dict[tuple[str, str], Float[np.ndarray, "2 resample"]] = {}
    start = 0
    for task, places in parts.items():
        chosen = observations.select(places)
        folds = assign_folds(chosen, n_folds, seed)
        scores = cross_validate(chosen, folds, features, seed=seed, **settings)
        part = copy(bootstrap)  # the same resamples, of this task's scenarios
        part.weights = bootstrap.weights[:, start : start + len(places)]
        start += len(places)
        for name in features:
            measured[name, task] = _measure(chosen, scores[name], folds, part)
    rows = []
    for name in features:
        of_tasks = np.stack([measured[name, task] for task in parts])
        mean = np.stack([average_tasks(of_tasks[:, i]) for i in range(2)])
        rows += [_row(name, task, len(parts[task]), measured[name, task]) for task in parts]
        rows.append(_row(name, MEAN_OF_TASKS, len(kept), mean))
    return pd.DataFrame(rows)


def _balanced_tasks(
    observations: Observations, n_folds: int, seed: int
) -> dict[str, Int[np.ndarray, " scenario"]]:
    """The places of each task's scenarios, as many correct as incorrect ones."""
    tasks = observations.table["task"].to_numpy(dtype=str)
    correct = observations.table["correct"].to_numpy(dtype=bool)
    rng = np.random.default_rng(seed)
    parts = {}
    for task in np.unique(tasks):
        sides = [np.flatnonzero((tasks == task) & (correct == side)) for side in (True, False)]
        n = min(map(len, sides))
        places = np.sort(np.concatenate([rng.permutation(side)[:n] for side in sides]))
        if n >= n_folds and len({observations.files[i] for i in places}) >= n_folds:
            parts[str(task)] = places
    if not parts:
        raise ValueError(f"no task has {n_folds} scenarios of either outcome, one for each fold")
    return parts


def _measure(
    chosen: Observations,
    scores: Float[np.ndarray, " scenario"],
    folds: Int[np.ndarray, " scenario"],
    bootstrap: FileBootstrap,
) -> Float[np.ndarray, "2 resample"]:
    """AUC and accuracy in the sample and in every resample."""
    incorrect = ~chosen.table["correct"].to_numpy(dtype=bool)
    hits = ((scores > 0.5) == incorrect).astype(float)
    with np.errstate(invalid="ignore"):  # a resample may have none of a task's files
        accuracy = bootstrap.weights @ hits / bootstrap.weights.sum(axis=1)
    return np.stack([bootstrap.auc_values(scores, incorrect, folds), accuracy])


def _row(
    features: str, task: str, n: int, measured: Float[np.ndarray, "2 resample"]
) -> dict[str, Any]:
    row: dict[str, Any] = {"features": features, "task": task, "n_scenarios": n}
    for name, values in zip(("auc", "accuracy"), measured, strict=True):
        row |= estimate_from(values).columns(name)
    return row
