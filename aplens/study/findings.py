"""What a run's numbers say, in plain words. Every verdict rests on 95 % intervals."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import pandas as pd

from aplens._words import split_features
from aplens.heads import HeadRanking
from aplens.intervals import Estimate
from aplens.mae import BASELINES
from aplens.plots import PREDICTOR_BASELINES, is_baseline


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
    best, rival = (_lowest(part, "error") for part in _split(frame, "predictor", BASELINES))
    own, other = (Estimate(*row[["error", "low", "high"]]) for row in (best, rival))
    return (
        f"On masked patches AP-MAE's squared error is {own:.4f}; the best baseline "
        f"({rival['predictor']}) has {other:.4f}. "
        f"{_judge(own, other, 'AP-MAE', 'that baseline', lower_is_better=True)}"
    )


def describe_predictors(frame: pd.DataFrame) -> str:
    """Whether AP-MAE's features tell right from wrong better than the model's own confidence.

    Features that are the confidence and AP-MAE's together are judged on their own: they can be good
    for the confidence's sake.

    Args:
        frame: Columns `features`, `auc`, `auc_low`, `auc_high`.
    """
    own, _ = _split(frame, "features", PREDICTOR_BASELINES)
    together = own["features"].map(lambda name: "confidence" in split_features(name)).astype(bool)
    rivals = frame[frame["features"] == "confidence"]
    if together.all():
        return "No predictor of correctness on AP-MAE's features alone was fitted."
    best = _highest(own[~together], "auc")
    text = (
        f"Of AP-MAE's features, {best['features']} predict best whether an answer is right: "
        f"AUC {_auc(best)}; the model's own confidence "
    )
    if rivals.empty:
        return text + "was not measured."
    rival = _auc(rivals.iloc[0])
    text += f"reaches {rival}. {_judge(_auc(best), rival, 'AP-MAE', 'the confidence')}"
    if together.any():
        both = _auc(_highest(own[together], "auc"))
        text += f" Both together reach {both}. "
        text += _judge(both, rival, "Both together", "the confidence")
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
    best, lowest = _highest(chosen, "accuracy"), _lowest(summary, "accuracy")
    raised = "It clearly raised accuracy"
    sentences = [
        f"Ablating the heads that push toward incorrect gives at best {best['accuracy']:.1%} "
        f"({_count(best['size'], 'head')}); the unchanged model has {clean_accuracy:.1%}.",
        _count_sizes(chosen, "change", raised, f"{raised} at no size"),
    ]
    compared = chosen.dropna(subset=["over_random"])
    if compared.empty:
        sentences.append("There are no random heads to compare with.")
    else:
        none = "It did not clearly beat random heads at any size"
        sentences.append(
            _count_sizes(compared, "over_random", "It clearly beat random heads", none)
        )
    if worse := int((compared["over_random_high"] < 0).sum()):
        sentences.append(f"It was clearly worse than random heads at {_count(worse, 'size')}.")
    if len(compared) > 1:
        sentences.append("These intervals are not corrected for trying several sizes.")
    if lowest["change_high"] < 0:
        sentences.append(
            f"Accuracy falls to {lowest['accuracy']:.1%} with {_count(lowest['size'], 'head')} "
            f"({lowest['choice'].replace('_', ' ')})."
        )
    return " ".join(sentences)


def _judge(
    own: Estimate, rival: Estimate, name: str, other: str, *, lower_is_better: bool = False
) -> str:
    """Who won: only intervals that do not overlap decide."""
    ahead = own.value < rival.value if lower_is_better else own.value > rival.value
    if np.isnan([*own, *rival]).any():
        order = "ahead of" if ahead else "not ahead of"
        return f"{name}: {order} {other}, without an interval to say whether by chance."
    if own.low <= rival.high and rival.low <= own.high:
        return f"The intervals overlap: no clear difference from {other}."
    verb = "beat" if ahead else "did worse than"
    return f"{name} {verb} {other}: the intervals do not overlap."


def _auc(row: pd.Series[Any]) -> Estimate:
    return Estimate(*row[["auc", "auc_low", "auc_high"]])


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


def _count_sizes(rows: pd.DataFrame, column: str, some: str, none: str) -> str:
    """At how many sizes a difference's interval lies above zero, with the largest of them."""
    above = rows[rows[f"{column}_low"] > 0]
    if above.empty:
        return f"{none} ({len(rows)} tried)."
    best = _highest(above, column)
    points = Estimate(*(100 * best[column + end] for end in ("", "_low", "_high")))
    value, interval = f"{points:+.1f}".split(" ", 1)
    return (
        f"{some} at {len(above)} of {_count(len(rows), 'size')}, most with "
        f"{_count(best['size'], 'head')}: {value} points {interval}."
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
