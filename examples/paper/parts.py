"""Some of a study's scenarios, and how its settings name a format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from aplens import parse_heads

if TYPE_CHECKING:
    from aplens import Head, HeadRanking
    from aplens.scenarios import Scenarios

#: Below this mean |SHAP| a head pushes neither way (docs/method.md, step 10).
NEUTRAL_THRESHOLD = 1e-5

#: What the paper calls the orders of a study's stage `ablate`, where it has them.
NAMES_IN_PAPER = {
    "SHAP toward incorrect": "toward_incorrect",
    "SHAP toward correct": "toward_correct",
}


def paper_orders(ranking: HeadRanking) -> dict[str, tuple[Head, ...]]:
    """The paper's orders of a ranking's heads, beside random ones."""
    return {
        "toward_incorrect": ranking.top(len(ranking), by="toward_incorrect"),
        "toward_correct": ranking.top(len(ranking), by="toward_correct"),
        "neutral": neutral_heads(ranking),
    }


def neutral_heads(ranking: HeadRanking) -> tuple[Head, ...]:
    """The heads that push neither way, least important first."""
    frame = ranking.to_frame()
    neutral = frame[frame["mean"].abs() <= NEUTRAL_THRESHOLD]
    return parse_heads(neutral.sort_values("importance", kind="stable").index)


def of_task(scenarios: Scenarios, task: str) -> Scenarios:
    """The scenarios of one task."""
    return scenarios.select([i for i, each in enumerate(scenarios.tasks) if each == task])


def first_of_each(tasks: Sequence[str], n: int) -> list[int]:
    """The places of the first n of each task."""
    names = pd.Series(tasks)
    return np.flatnonzero(names.groupby(names).cumcount() < n).tolist()


def dtype_of(name: str | None) -> torch.dtype | None:
    """The format that torch calls so; None for no name."""
    return getattr(torch, name) if name else None
