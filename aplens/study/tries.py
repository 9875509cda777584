"""The stage `tries`: what else could predict correctness, on the observations that are there.

The model's own probability, taken at its word; other classifiers on the same features; the same
classifier on fewer source files, which tells whether more would help; and the paper's own setting,
one predictor a task on balanced outcomes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from aplens._io import atomic_write
from aplens.scoring import HeadClusters, Observations, evaluate_predictors, evaluate_single_tasks
from aplens.scoring.evaluation import score_table
from aplens.scoring.features import has_head_features

if TYPE_CHECKING:
    import pandas as pd

    from aplens.study.config import TrySettings

#: What a row of the table was tried with, where it is no classifier or share of the files.
SINGLE_TASKS = "one predictor a task, balanced"
AS_IT_IS = "nothing fitted"


def try_predictors(
    observations: Observations,
    settings: TrySettings,
    clusters: HeadClusters,
    *,
    n_folds: int,
    seed: int,
    folder: Path,
    tell: Callable[[int, int, str], object] = lambda done, total, note: None,
) -> pd.DataFrame:
    """Cross-validate every try; what is finished is kept in the folder.

    Args:
        observations: What to predict.
        settings: What to try.
        clusters: The settings of "clusters".
        n_folds: Folds, by source file.
        seed: As for `evaluate_predictors`.
        folder: Where each try's table is kept.
        tell: Called with (tries done, tries in all, what is done next).

    Returns:
        The tables of `evaluate_predictors` and `evaluate_single_tasks`, one below the other, with a
        first column `tried`.
    """
    import pandas as pd

    def evaluate(features: Sequence[str], **options: object) -> pd.DataFrame:
        return evaluate_predictors(
            observations,
            features=features,
            n_folds=n_folds,
            seed=seed,
            clusters=clusters,
            **options,  # type: ignore[arg-type]
        )

    features = settings.features
    of_heads = [name for name in features if has_head_features(name)]
    tries: dict[str, Callable[[], pd.DataFrame]] = {AS_IT_IS: lambda: _as_it_is(observations, seed)}
    for classifier in settings.classifiers:
        read = of_heads if classifier == "pooling" else features
        tries[classifier] = partial(evaluate, read, classifier=classifier)
    for share in settings.shares:
        tries[f"{share:g} of the files"] = partial(evaluate, features, train_share=share)
    if settings.single_tasks:
        tries[SINGLE_TASKS] = lambda: evaluate_single_tasks(
            observations,
            features=settings.single_tasks,
            n_folds=n_folds,
            seed=seed,
            clusters=clusters,
        )
    folder.mkdir(exist_ok=True)
    tables = []
    for number, (name, run) in enumerate(tries.items()):
        tell(number, len(tries), name)
        path = folder / f"{number}.parquet"
        if not path.exists():
            with atomic_write(path) as temporary:
                run().assign(tried=name).to_parquet(temporary, index=False)
        tables.append(pd.read_parquet(path))
    tell(len(tries), len(tries), "done")
    table = pd.concat(tables, ignore_index=True)
    return table[["tried", *(column for column in table if column != "tried")]]


def _as_it_is(observations: Observations, seed: int) -> pd.DataFrame:
    """The model's own probability as the probability of being right."""
    wrong = 1 - observations.table["top_probability"].to_numpy(dtype=float)
    return score_table(observations, {"top probability": wrong}, seed=seed)
