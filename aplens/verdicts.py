"""What a ranking's numbers say, in a sentence. Every verdict rests on 95 % intervals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from aplens.intervals import COVERAGE, Estimate

if TYPE_CHECKING:
    import pandas as pd

#: What an effect is counted in, by the metric.
METRIC_UNITS = {"log_prob": "nats", "logit_diff": "logits"}

_LARGEST = 3

#: A mean effect that is smaller reads 0.00.
_SEEN = 0.005


def describe_ranking(frame: pd.DataFrame, facts: Mapping[str, Any]) -> str:
    """Whether a ranking's order can be used, and what it found; `facts` are its metadata."""
    if "auc" in facts:
        return _describe_predictor(facts)
    if "metric" in facts:
        return f"{describe_effects(frame, str(facts['metric']))}."
    return "How these scores were made is not recorded."


def is_at_chance(facts: Mapping[str, Any]) -> bool:
    """Whether a ranking is by a predictor that tells errors no better than chance does."""
    return "auc" in facts and not facts["auc"][1] > 0.5  # NaN: nobody knows


def has_no_effect(frame: pd.DataFrame, facts: Mapping[str, Any]) -> bool:
    """Whether heads were ablated, and none of them has an effect that is clearly not 0."""
    if "metric" not in facts or "measured" not in frame:
        return False
    measured = frame[frame["measured"]]
    if (frame["mean"].abs() < _SEEN).all():
        return True
    known = measured["low"].notna()
    return bool(known.any() and not ((measured["low"] > 0) | (measured["high"] < 0)).any())


def describe_effects(frame: pd.DataFrame, metric: str) -> str:
    """How many of the heads that were measured have an effect, and which are the largest."""
    unit = METRIC_UNITS.get(metric, metric)
    if (frame["mean"].abs() < _SEEN).all():
        return (
            f"No head has an effect: ablating any one of them moves the answer by 0.00 {unit} "
            "on average"
        )
    measured = frame[frame["measured"]] if "measured" in frame else frame.iloc[:0]
    if measured.empty:
        return "No head's effect was measured, all are estimates"
    if measured["low"].isna().all():
        return (
            f"{len(measured)} heads were measured, on prompts of a single file: there is no "
            "interval to say which effects are not by chance"
        )
    clear = measured[(measured["low"] > 0) | (measured["high"] < 0)]
    if clear.empty:
        return f"None of {len(measured)} heads measured has an effect whose interval excludes 0"
    largest = ", ".join(
        f"{name} ({Estimate(row['mean'], row['low'], row['high']):+.2f} {unit})"
        for name, row in clear.head(_LARGEST).iterrows()
    )
    by_chance = (1 - COVERAGE) * len(measured)
    return (
        f"Of {len(measured)} heads measured, {len(clear)} have an effect on the answer whose "
        f"interval excludes 0 (by chance: about {by_chance:.0f}); the largest are {largest}"
    )


def _describe_predictor(facts: Mapping[str, Any]) -> str:
    auc = Estimate(*facts["auc"])
    if is_at_chance(facts):
        return (
            f"At chance: do not use its order. Its predictor tells errors on held-out files with "
            f"AUC {auc}, where 0.5 is chance."
        )
    return f"Its predictor tells errors on held-out files with AUC {auc}, better than chance (0.5)."
