"""Predictors of correctness over several studies' observations together."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from aplens.correctness import HEAD_NUMBERS, Observations, evaluate_predictors
from aplens.study import StudyFolder
from aplens.tables import Table, code

_FIGURES = ("auc", "accuracy", "over_confidence", "over_statistics", "over_hand_made")
_FIGURES += ("calibration_error",)


def predict_together(
    folders: Sequence[str | os.PathLike[str]], features: Sequence[str] | None, **options: Any
) -> pd.DataFrame:
    """Cross-validate predictors on the scenarios of several studies of one model and AP-MAE.

    What more scenarios would give, without observing again what is there: a second study with
    another seed, or of other files, is enough. Files of the same name count as one. Without
    `features`, those of `FEATURE_SETS` whose numbers all studies kept.
    """
    parts = [StudyFolder(folder).observations for folder in folders]
    return evaluate_predictors(join_observations(parts), features=features, **options)


def join_observations(parts: Sequence[Observations]) -> Observations:
    """Observations of one model one below the other; nothing is loaded before it is asked for.

    Scenarios of source files with the same name are taken for the same file's: no split puts them
    on two sides. Numbers of heads are those that all parts have.
    """
    first = parts[0]
    for name in ("model", "heads", "mae"):
        for number, part in enumerate(parts):
            if getattr(part, name) != getattr(first, name):
                raise ValueError(
                    f"cannot join observations whose {name} differs: part 0 has "
                    f"{getattr(first, name)}, part {number} has {getattr(part, name)}"
                )
    table = pd.concat([part.table for part in parts], ignore_index=True)

    def join_numbers(name: str) -> np.ndarray:
        return np.concatenate([part.numbers(name) for part in parts])

    return Observations(
        table.assign(scenario=range(len(table))),
        first.heads,
        lambda: np.concatenate([np.asarray(part.embeddings) for part in parts]),
        {
            name: partial(join_numbers, name)
            for name, kept_by in HEAD_NUMBERS.items()
            if all(kept_by in part.kept for part in parts)
        },
        model=first.model,
        mae=first.mae,
    )


def predictions_to_markdown(table: pd.DataFrame, command: str) -> str:
    """The table of `predict_together` and what it is over; intervals 95 %, over source files."""
    whole = table.iloc[0]
    lines = [f"Command: {code(command)}.", ""]
    lines += [f"{whole['n_scenarios']} scenarios of {whole['n_files']} source files.", ""]
    return "\n".join([*lines, Table.from_frame(table, ("features", *_FIGURES)).to_markdown(), ""])
