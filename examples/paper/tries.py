"""The command `tries`: what else could predict correctness, on the observations that are there.

The model's own probability, taken at its word; other classifiers on the same features; the same
classifier on fewer source files, which tells whether more would help; outcomes dealt out at random,
which tells whether features leak; and the paper's own setting, one predictor a task on balanced
outcomes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Bool

from aplens.correctness import (
    CorrectnessPredictor,
    HeadClusters,
    Observations,
    assign_folds,
    evaluate_predictors,
    score_table,
)
from paper.files import write_table
from paper.single_tasks import evaluate_single_tasks

if TYPE_CHECKING:
    from aplens.study import Study
    from paper.settings import TrySettings


def try_predictors(study: Study, settings: TrySettings, folder: Path) -> pd.DataFrame:
    """Cross-validate every try; what is finished is kept in the folder.

    Returns:
        The tables of `evaluate_predictors` and `evaluate_single_tasks`, one below the other, with a
        first column `tried` and a last one, `train_share`: the share of the training files that
        was fitted on.
    """
    observations, rank, seed = study.folder.observations, study.settings.rank, study.settings.seed
    options: dict[str, Any] = {
        "n_folds": rank.folds,
        "seed": seed,
        "clusters": HeadClusters(rank.reducer, seed=seed),  # type: ignore[arg-type]
    }
    evaluate = partial(evaluate_predictors, observations, features=settings.features, **options)
    tries: dict[str, Callable[[], pd.DataFrame]] = {
        "nothing fitted": lambda: _as_it_is(observations, seed)
    }
    for classifier in settings.classifiers:
        tries[classifier] = partial(evaluate, classifier=classifier)
    shares = {f"{share:g} of the files": share for share in settings.shares}
    for name, share in shares.items():
        tries[name] = partial(
            evaluate_with_fewer_files, observations, share, features=settings.features, **options
        )
    if settings.single_tasks:
        tries["one predictor a task, balanced"] = partial(
            evaluate_single_tasks, observations, features=settings.single_tasks, **options
        )
    if settings.shuffled:
        tries["outcomes shuffled"] = lambda: _shuffled(observations, settings.shuffled, options)
    tables = []
    for number, (name, run) in enumerate(tries.items()):
        study.reporter.update(number, len(tries), name)
        path = folder / f"{number}.parquet"
        if not path.exists():
            write_table(path, run().assign(tried=name))
        tables.append(pd.read_parquet(path))
    table = pd.concat(tables, ignore_index=True)
    table["train_share"] = table["tried"].map(shares).fillna(1.0)
    return table[["tried", *(column for column in table if column != "tried")]]


def evaluate_with_fewer_files(
    observations: Observations,
    share: float,
    *,
    features: Sequence[str],
    n_folds: int = 5,
    seed: int = 0,
    **settings: Any,
) -> pd.DataFrame:
    """`evaluate_predictors`, fitted on a share of each fold's training files, drawn at random.

    What fewer scenarios would have given, judged on the same ones.
    """
    folds = assign_folds(observations, n_folds, seed)
    scores = {name: np.empty(len(observations)) for name in features}
    for fold in range(n_folds):
        held_out = folds == fold
        train, test = observations.select(~held_out), observations.select(held_out)
        train = train.select(_draw_files(train.files, share, seed + fold))
        for name, of_scenarios in scores.items():
            predictor = CorrectnessPredictor(name, seed=seed, **settings).fit(train)
            of_scenarios[held_out] = predictor.predict_proba(test)[:, 1]
    return score_table(observations, scores, folds=folds, seed=seed)


def _draw_files(files: Sequence[str], share: float, seed: int) -> Bool[np.ndarray, " scenario"]:
    """Which scenarios are of a share of the source files, at least one file, drawn at random."""
    names = np.unique(np.asarray(files, dtype=str))
    drawn = np.random.default_rng(seed).permutation(names)[: max(1, round(share * len(names)))]
    return np.isin(np.asarray(files, dtype=str), drawn)


def _shuffled(
    observations: Observations, features: Sequence[str], options: dict[str, Any]
) -> pd.DataFrame:
    """Predictors of outcomes that were dealt out at random: at chance, unless they leak."""
    correct = observations.table["correct"].to_numpy(dtype=bool)
    dealt = np.random.default_rng(options["seed"]).permutation(correct)
    return evaluate_predictors(observations.with_outcomes(dealt), features=features, **options)


def _as_it_is(observations: Observations, seed: int) -> pd.DataFrame:
    """The model's own probability as the probability of being right."""
    wrong = 1 - observations.table["top_probability"].to_numpy(dtype=float)
    return score_table(observations, {"top probability": wrong}, seed=seed)
