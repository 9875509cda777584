"""A study's tables in Markdown, to be put into a text: `results.md` beside the report."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from aplens._markdown import code, escape, frame_to_markdown
from aplens.study.report import task_accuracy

if TYPE_CHECKING:
    import pandas as pd

    from aplens.study.run import Study

#: The columns of a table of predictors.
PREDICTORS = ["features", "auc", "accuracy", "over_confidence", "over_statistics"]
PREDICTORS += ["over_hand_made", "calibration_error"]
_SWEEP = ["choice", "size", "n_seeds", "accuracy", "change", "over_random"]


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
    yield "Predictors of correctness", with_bounds(predictors, shown)
    title = f"Ablations ({sweep.setup['method']}) on {len(sweep.clean)} held-out scenarios"
    yield f"{title}, {sweep.clean_accuracy:.3f} correct", with_bounds(sweep.summary(), _SWEEP)


def with_bounds(frame: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """Some columns, each with its interval where it has one."""
    wanted = [column for name in names for column in (name, f"{name}_low", f"{name}_high")]
    alias = {"low": "accuracy_low", "high": "accuracy_high"}
    named = frame.rename(columns=alias) if "accuracy_low" not in frame else frame
    return named[[column for column in wanted if column in named]]
