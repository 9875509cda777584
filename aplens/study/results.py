"""A study's tables in Markdown, to be put into a text: `results.md` beside the report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from aplens._markdown import code, escape, frame_to_markdown
from aplens.intervals import MEAN_OF_TASKS
from aplens.study.report import task_accuracy

if TYPE_CHECKING:
    import pandas as pd

    from aplens.heads import HeadRanking
    from aplens.study.run import Study

#: The columns of a table of predictors.
PREDICTORS = ["features", "auc", "accuracy", "over_confidence", "over_statistics"]
PREDICTORS += ["over_hand_made", "calibration_error"]
_RANKINGS = ["task", "n_train", "n_test", "auc", "confidence_auc"]
_SWEEP = ["choice", "size", "n_seeds", "accuracy", "change", "over_random"]
_GATES = ["intervention", "task", "gain", "over_baseline", "change"]
_GATES += ["incorrect_to_correct", "correct_to_incorrect"]


def results_to_markdown(study: Study) -> str:
    """Every table of a study, each with what it is over; intervals are 95 %, over source files."""
    settings = study.settings
    parts = ", ".join(f"{name} {len(part)}" for name, part in study.parts.items())
    lines = [f"# {escape(settings.title)}", ""]
    lines += [f"Command: {code(study.command)}, seed {settings.seed}.", ""]
    lines += [f"Scenarios by part, no source file in two: {parts}.", ""]
    for title, table in _tables(study):
        lines += [f"## {escape(title)}", "", frame_to_markdown(table), ""]
    return "\n".join(lines)


def _tables(study: Study) -> Iterator[tuple[str, pd.DataFrame]]:
    accuracy = task_accuracy(study.observations.table)
    yield "The model", with_bounds(accuracy, ["task", "n", "accuracy"])
    predictors, sweep = study.predictors, study.sweep
    shown = [name for name in PREDICTORS if name in predictors]
    whole = predictors["task"] == "all"
    yield "Predictors of correctness", with_bounds(predictors[whole], shown)
    if not whole.all():
        yield "Task by task", with_bounds(predictors[~whole], ["task", *shown])
    if study.settings.tries is not None:
        yield "Tries", with_bounds(study.tries, ["tried", "task", *PREDICTORS])
    title = f"Ablations ({sweep.setup['method']}) on {len(sweep.clean)} held-out scenarios"
    yield f"{title}, {sweep.clean_accuracy:.3f} correct", with_bounds(sweep.summary(), _SWEEP)
    yield "Ablations, balanced and task by task", with_bounds(study.sweep_trials, _GATES)
    if study.task_sweeps is not None:
        rankings = tabulate_rankings(study.task_rankings)
        yield "Each task's own ranking: its predictor", with_bounds(rankings, _RANKINGS)
        yield "Ablations by each task's own ranking", with_bounds(study.task_sweeps, _GATES)
    if study.settings.gates is not None:
        means = study.gates["task"] == MEAN_OF_TASKS
        yield "Gates, mean of tasks", with_bounds(study.gates[means], _GATES)
        yield "Gates, task by task", with_bounds(study.gates[~means], _GATES)
    if study.settings.truth is not None:
        yield "Rankings against every head's own ablation", study.truth


def tabulate_rankings(rankings: Mapping[str, HeadRanking]) -> pd.DataFrame:
    """How well each task's own predictor does on held-out files, beside the model's confidence."""
    import pandas as pd

    rows = []
    for task, ranking in rankings.items():
        row = {"task": task, **{key: ranking.metadata[key] for key in ("n_train", "n_test")}}
        for name in ("auc", "confidence_auc"):
            ends = zip(("", "_low", "_high"), ranking.metadata[name], strict=True)
            row |= {name + end: value for end, value in ends}
        rows.append(row)
    return pd.DataFrame(rows)


def with_bounds(frame: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """Some columns, each with its interval where it has one."""
    wanted = [column for name in names for column in (name, f"{name}_low", f"{name}_high")]
    alias = {"low": "accuracy_low", "high": "accuracy_high"}
    named = frame.rename(columns=alias) if "accuracy_low" not in frame else frame
    return named[[column for column in wanted if column in named]]
