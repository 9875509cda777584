"""What a run's numbers say, in plain words. Every verdict rests on 95 % intervals."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from aplens.correctness import DEFAULT_FEATURES
from aplens.heads import HeadRanking
from aplens.intervals import Estimate
from aplens.mae import BASELINES
from aplens.plots import PREDICTOR_BASELINES, is_baseline
from aplens.verdicts import describe_effects
from aplens.views.wording import count

if TYPE_CHECKING:
    from aplens.study.folder import StudyFolder

#: The orders in which a study ablates heads.
EFFECTS = "effects"
SHAP_INCORRECT, SHAP_CORRECT = "SHAP toward incorrect", "SHAP toward correct"


def describe_study(folder: StudyFolder) -> list[str]:
    """What was found, in three sentences: the heads that matter, the errors, the paper's choice."""
    summary = folder.sweep.summary()
    return [
        describe_heads(folder.ranking, summary),
        describe_predictors(folder.predictors),
        describe_shap(folder.shap, summary),
    ]


def describe_heads(ranking: HeadRanking, summary: pd.DataFrame) -> str:
    """How many heads have an effect, the largest ones, what the first do beside random heads."""
    found = describe_effects(ranking.to_frame(), ranking.metadata["metric"])
    return f"{found}; {_compare_with_random(summary, EFFECTS)}."


def describe_predictors(frame: pd.DataFrame) -> str:
    """Whether the default predictor tells errors better than the model's own confidence."""
    frame = frame[frame["task"] == "all"]
    own, _ = _split(frame, "features", PREDICTOR_BASELINES)
    if own.empty:
        return "No predictor of errors by AP-MAE was tried."
    usual = own[own["features"] == DEFAULT_FEATURES]
    row = _highest(own if usual.empty else usual, "auc")
    among = f" (the best of {len(own)} tried)" if usual.empty else ""
    text = (
        f"Errors on held-out files are told by {row['features']}{among} with AUC "
        f"{_estimate(row, 'auc')}"
    )
    rival = frame[frame["features"] == "confidence"]
    if rival.empty:
        return f"{text}; the model's confidence alone was not tried."
    gain = _estimate(row, "over_confidence")
    return (
        f"{text}, by the model's confidence alone with {_estimate(rival.iloc[0], 'auc')}: "
        f"a difference of {gain:+.3f}, {_judge(gain)}."
    )


def describe_shap(shap: HeadRanking, summary: pd.DataFrame) -> str:
    """Whether the predictor behind the SHAP ranking is any good, its order beside random heads."""
    features, auc = shap.metadata["features"], Estimate(*shap.metadata["auc"])
    of = f"{features}, the paper's choice," if features == "clusters" else features
    verdict = "no better than chance: do not use its order" if shap.is_at_chance else "above chance"
    return (
        f"The SHAP ranking on {of} is of a predictor that tells errors with AUC {auc}, {verdict}; "
        f"{_compare_with_random(summary, SHAP_INCORRECT)}."
    )


def describe_task_accuracy(frame: pd.DataFrame) -> str:
    """How often the unchanged model is right, and on which tasks most and least."""
    is_total = frame["task"] == "all"
    total, tasks = frame[is_total].iloc[0], frame[~is_total]
    text = f"The model is right on {total['accuracy']:.0%} of {total['n']:,} scenarios"
    if len(tasks) > 1:
        least, most = _lowest(tasks, "accuracy"), _highest(tasks, "accuracy")
        text += (
            f", from {least['accuracy']:.0%} ({least['task']}) "
            f"to {most['accuracy']:.0%} ({most['task']})"
        )
    return text + "."


def describe_reconstruction(frame: pd.DataFrame) -> str:
    """Whether AP-MAE fills in masked patches better than the best predictor that is no AP-MAE."""
    best, rival = (_lowest(part, "error") for part in _split(frame, "predictor", BASELINES))
    own, other = (Estimate(*row[["error", "low", "high"]]) for row in (best, rival))
    if np.isnan([*own, *other]).any():
        verdict = "there is no interval to say whether by chance"
    elif own.low <= other.high and other.low <= own.high:
        verdict = "the intervals overlap: no clear difference"
    else:
        verdict = f"AP-MAE {'beat' if own.value < other.value else 'did worse than'} it"
    return (
        f"On masked patches AP-MAE's squared error is {own:.4f}; the best baseline "
        f"({rival['predictor']}) has {other:.4f}; {verdict}."
    )


def _compare_with_random(summary: pd.DataFrame, choice: str) -> str:
    """An order's clearest difference from random heads, of all sizes tried."""
    rows = summary[summary["choice"] == choice].dropna(subset=["over_random"])
    if rows.empty:
        return f"heads by {choice} were not ablated beside random ones"
    noise = (rows["over_random_high"] - rows["over_random_low"]).clip(lower=1e-9)
    best = rows.iloc[int(np.argmax(rows["over_random"].abs() / noise))]
    gap = _estimate(best, "over_random")
    points = Estimate(*(100 * number for number in gap))
    random = best["accuracy"] - gap.value
    size = "head" if best["size"] == 1 else f"{best['size']} heads"
    return (
        f"with the first {size} by {choice} ablated the model is right on {best['accuracy']:.1%} "
        f"of held-out scenarios, with as many at random on {random:.1%}: a difference of "
        f"{points:+.1f} points, {_judge(gap)} (the clearest of {count(len(rows), 'size')} tried)"
    )


def _judge(gap: Estimate) -> str:
    if np.isnan(gap.low):
        return "without an interval to say whether by chance"
    return "clearly not 0" if gap.low > 0 or gap.high < 0 else "no clear difference"


def _estimate(row: pd.Series[Any], name: str) -> Estimate:
    return Estimate(*row[[name, f"{name}_low", f"{name}_high"]])


def _split(
    frame: pd.DataFrame, column: str, baselines: Collection[str]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """AP-MAE's rows, and the baselines'."""
    simple = frame[column].map(lambda name: is_baseline(name, baselines)).astype(bool)
    return frame[~simple], frame[simple]


def _lowest(frame: pd.DataFrame, column: str) -> pd.Series[Any]:
    return frame.sort_values(column).iloc[0]


def _highest(frame: pd.DataFrame, column: str) -> pd.Series[Any]:
    return frame.sort_values(column, ascending=False).iloc[0]
