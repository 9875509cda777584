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

from aplens.scoring import HeadClusters, Observations, evaluate_predictors, score_table
from paper.files import write_table
from paper.single_tasks import evaluate_single_tasks

if TYPE_CHECKING:
    from aplens.study import Study
    from paper.settings import TrySettings

#: What a row of the table was tried with, where it is no classifier or share of the files.
SINGLE_TASKS = "one predictor a task, balanced"
AS_IT_IS = "nothing fitted"
SHUFFLED = "outcomes shuffled"


def try_predictors(study: Study, settings: TrySettings, folder: Path) -> pd.DataFrame:
    """Cross-validate every try; what is finished is kept in the folder.

    Returns:
        The tables of `evaluate_predictors` and `evaluate_single_tasks`, one below the other, with a
        first column `tried`.
    """
    observations, rank, seed = study.folder.observations, study.settings.rank, study.settings.seed
    options: dict[str, Any] = {
        "n_folds": rank.folds,
        "seed": seed,
        "clusters": HeadClusters(rank.reducer, seed=seed),  # type: ignore[arg-type]
    }
    evaluate = partial(evaluate_predictors, observations, features=settings.features, **options)
    tries: dict[str, Callable[[], pd.DataFrame]] = {AS_IT_IS: lambda: _as_it_is(observations, seed)}
    for classifier in settings.classifiers:
        tries[classifier] = partial(evaluate, classifier=classifier)
    for share in settings.shares:
        tries[f"{share:g} of the files"] = partial(evaluate, train_share=share)
    if settings.single_tasks:
        tries[SINGLE_TASKS] = partial(
            evaluate_single_tasks, observations, features=settings.single_tasks, **options
        )
    if settings.shuffled:
        tries[SHUFFLED] = lambda: _shuffled(observations, settings.shuffled, options)
    tables = []
    for number, (name, run) in enumerate(tries.items()):
        study.reporter.update(number, len(tries), name)
        path = folder / f"{number}.parquet"
        if not path.exists():
            write_table(path, run().assign(tried=name))
        tables.append(pd.read_parquet(path))
    table = pd.concat(tables, ignore_index=True)
    return table[["tried", *(column for column in table if column != "tried")]]


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
