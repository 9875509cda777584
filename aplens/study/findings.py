"""What a run's numbers say, in plain words. Every verdict rests on 95 % intervals."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

import pandas as pd

from aplens.heads import HeadRanking
from aplens.intervals import Estimate
from aplens.mae import BASELINES
from aplens.plots import PREDICTOR_BASELINES, is_baseline

Verdict = Literal["better", "worse", "unclear", "no interval"]


def describe_task_accuracy(frame: pd.DataFrame) -> str:
    """How often the unchanged model is right, and on which tasks most and least.

    Args:
        frame: Columns `task`, `n`, `accuracy`; a task named "all" is all of them together.
    """
    is_total = frame["task"] == "all"
    tasks = frame[~is_total]
    counted = frame[is_total] if is_total.any() else tasks
    n = int(counted["n"].sum())
    overall = (counted["accuracy"] * counted["n"]).sum() / n
    text = f"The model is right on {overall:.0%} of {n:,} scenarios"
    if len(tasks) > 1:
        least, most = _lowest(tasks, "accuracy"), _highest(tasks, "accuracy")
        text += (
            f", from {least['accuracy']:.0%} ({least['task']}) "
            f"to {most['accuracy']:.0%} ({most['task']})"
        )
    return text + "."


def describe_reconstruction(frame: pd.DataFrame) -> str:
    """Whether AP-MAE fills in masked patches better than the best predictor that is no AP-MAE.

    Args:
        frame: Columns `predictor`, `error`, `low`, `high`.
    """
    own, other = _split(frame, "predictor", BASELINES)
    best, rival = _lowest(own, "error"), _lowest(other, "error")
    verdict = compare(
        (-best["error"], -best["high"], -best["low"]),
        (-rival["error"], -rival["high"], -rival["low"]),
    )
    ahead = best["error"] < rival["error"]
    return (
        f"On masked patches AP-MAE's squared error is {best['error']:.4f}{_bounds(best, 4)}; the "
        f"best baseline ({rival['predictor']}) has {rival['error']:.4f}{_bounds(rival, 4)}. "
        f"{_say(verdict, 'AP-MAE', 'that baseline', ahead)}"
    )


def describe_predictors(frame: pd.DataFrame) -> str:
    """Whether AP-MAE's features tell right from wrong better than the model's own confidence.

    Features that are the confidence and AP-MAE's together are judged on their own: they can be good
    for the confidence's sake.

    Args:
        frame: Columns `features`, `auc`, `auc_low`, `auc_high`.
    """
    own, _ = _split(frame, "features", PREDICTOR_BASELINES)
    with_confidence = own["features"].map(lambda name: "confidence" in name.split("+"))
    alone, together = own[~with_confidence.astype(bool)], own[with_confidence.astype(bool)]
    rivals = frame[frame["features"] == "confidence"]
    if alone.empty:
        return "No predictor of correctness on AP-MAE's features alone was fitted."
    best = _highest(alone, "auc")
    text = (
        f"Of AP-MAE's features, {best['features']} predict best whether an answer is right: "
        f"AUC {best['auc']:.3f}{_bounds(best, 3, 'auc_')}"
    )
    if rivals.empty:
        return text + "; the model's own confidence was not measured."
    rival = rivals.iloc[0]
    text += f"; the model's own confidence reaches {rival['auc']:.3f}{_bounds(rival, 3, 'auc_')}."
    text += f" {_judge_auc(best, rival, 'AP-MAE')}"
    if not together.empty:
        both = _highest(together, "auc")
        text += f" Both together reach {both['auc']:.3f}{_bounds(both, 3, 'auc_')}."
        text += f" {_judge_auc(both, rival, 'Both together')}"
    return text


def describe_ranking(ranking: HeadRanking) -> str:
    """How good the predictor behind a study's ranking is; a ranking is no better than that."""
    auc, confidence = (Estimate(*ranking.metadata[key]) for key in ("auc", "confidence_auc"))
    return (
        f"The ranking's predictor has AUC {auc} on held-out files; the model's own confidence has "
        f"{confidence}."
    )


def describe_ablation(summary: pd.DataFrame, clean_accuracy: float) -> str:
    """Whether ablating the heads said to push toward incorrect helps, and more than random heads.

    Args:
        summary: `AblationSweep.summary()`.
        clean_accuracy: The unchanged model's accuracy on the same scenarios.
    """
    chosen = summary[summary["choice"] == "toward_incorrect"]
    if chosen.empty:
        return "No heads chosen toward incorrect were ablated."
    best = _highest(chosen, "accuracy")
    sentences = [
        f"Ablating the heads that push toward incorrect gives at best {best['accuracy']:.1%} "
        f"({_heads(best['size'])}); the unchanged model has {clean_accuracy:.1%}.",
        _count_sizes(
            chosen, "change", "It clearly raised accuracy", "It clearly raised accuracy at no size"
        ),
    ]
    compared = chosen.dropna(subset=["over_random"])
    if compared.empty:
        sentences.append("There are no random heads to compare with.")
    else:
        sentences.append(
            _count_sizes(
                compared,
                "over_random",
                "It clearly beat random heads",
                "It did not clearly beat random heads at any size",
            )
        )
        worse = int((compared["over_random_high"] < 0).sum())
        if worse:
            sentences.append(f"It was clearly worse than random heads at {_sizes(worse)}.")
        if len(compared) > 1:
            sentences.append("These intervals are not corrected for trying several sizes.")
    lowest = _lowest(summary, "accuracy")
    if lowest["change_high"] < 0:
        sentences.append(
            f"Accuracy falls to {lowest['accuracy']:.1%} with {_heads(lowest['size'])} "
            f"({lowest['choice'].replace('_', ' ')})."
        )
    return " ".join(sentences)


def compare(own: tuple[float, float, float], rival: tuple[float, float, float]) -> Verdict:
    """Compare two (value, low, high), higher being better: only disjoint intervals decide."""
    if any(pd.isna(bound) for bound in (*own[1:], *rival[1:])):
        return "no interval"
    if own[1] > rival[2]:
        return "better"
    return "worse" if own[2] < rival[1] else "unclear"


def _say(verdict: Verdict, own: str, rival: str, ahead: bool) -> str:
    match verdict:
        case "better":
            return f"{own} beat {rival}: the intervals do not overlap."
        case "worse":
            return f"{own} did worse than {rival}: the intervals do not overlap."
        case "unclear":
            return f"The intervals overlap: no clear difference from {rival}."
        case _:
            order = "ahead of" if ahead else "not ahead of"
            return f"{own}: {order} {rival}, without an interval to say whether by chance."


def _judge_auc(own: pd.Series[Any], rival: pd.Series[Any], name: str) -> str:
    verdict = compare(
        (own["auc"], own["auc_low"], own["auc_high"]),
        (rival["auc"], rival["auc_low"], rival["auc_high"]),
    )
    return _say(verdict, name, "the confidence", own["auc"] > rival["auc"])


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


def _bounds(row: pd.Series[Any], digits: int, prefix: str = "") -> str:
    low, high = row[f"{prefix}low"], row[f"{prefix}high"]
    return "" if pd.isna(low) or pd.isna(high) else f" [{low:.{digits}f}, {high:.{digits}f}]"


def _count_sizes(rows: pd.DataFrame, column: str, some: str, none: str) -> str:
    """At how many sizes a difference's interval lies above zero, with the largest of them."""
    above = rows[rows[f"{column}_low"] > 0]
    if above.empty:
        return f"{none} ({len(rows)} tried)."
    best = _highest(above, column)
    return (
        f"{some} at {len(above)} of {_sizes(len(rows))}, most with {_heads(best['size'])}: "
        f"{100 * best[column]:+.1f} points "
        f"[{100 * best[f'{column}_low']:+.1f}, {100 * best[f'{column}_high']:+.1f}]."
    )


def _heads(number: int) -> str:
    return f"{number} head" if number == 1 else f"{number} heads"


def _sizes(number: int) -> str:
    return f"{number} size" if number == 1 else f"{number} sizes"
