"""Predictors of correctness over several studies' observations together."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aplens._markdown import code, frame_to_markdown
from aplens.study.results import PREDICTORS, with_bounds

if TYPE_CHECKING:
    import pandas as pd


def predict_together(
    folders: Sequence[str | os.PathLike[str]], features: Sequence[str], **options: Any
) -> pd.DataFrame:
    """Cross-validate predictors on the scenarios of several studies of one model and AP-MAE.

    What more scenarios would give, without observing again what is there: a second study with
    another seed, or of other files, is enough. Files of the same name count as one.

    Args:
        folders: The studies' folders; they must have been observed.
        features: As for `evaluate_predictors`.
        options: As for `evaluate_predictors`.

    Returns:
        As `evaluate_predictors`.

    Raises:
        FileNotFoundError: When a folder has no observations.
        ValueError: As `Observations.open`, `Observations.join` and `evaluate_predictors`.
    """
    from aplens.scoring import Observations, evaluate_predictors

    parts = [Observations.open(Path(folder) / "observations") for folder in folders]
    return evaluate_predictors(Observations.join(parts), features=features, **options)


def predictions_to_markdown(table: pd.DataFrame, command: str) -> str:
    """The table of `predict_together` and what it is over; intervals 95 %, over source files."""
    whole = table[table["task"] == "all"].iloc[0]
    lines = [f"Command: {code(command)}.", ""]
    lines += [f"{whole['n_scenarios']} scenarios of {whole['n_files']} source files.", ""]
    columns = ["task", *PREDICTORS] if (table["task"] != "all").any() else PREDICTORS
    return "\n".join([*lines, frame_to_markdown(with_bounds(table, columns)), ""])
