"""The tables of docs/results/study.md, from studies' folders."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from aplens.heads import HeadRanking
from aplens.intervals import MEAN_OF_TASKS
from aplens.study import table_lines
from paper.by_task import tabulate_rankings

#: Interventions that are shown with their interval on every task.
_WITH_INTERVAL = ("learned", "patterns sharpened", "answer bias")


def predictors(folders: Iterable[Path]) -> Iterator[str]:
    """AUC of every set of features, one column a study, and what they add to confidence."""
    frames = {folder.name: pd.read_parquet(folder / "predictors.parquet") for folder in folders}
    found = {
        name: frame[frame["task"] == "all"].set_index("features") for name, frame in frames.items()
    }
    names = list(dict.fromkeys(name for frame in found.values() for name in frame.index))

    def cell(frame: pd.DataFrame, name: str, column: str, sign: str = "") -> str:
        return _figure(frame.loc[name], column, sign) if name in frame.index else "–"

    rows = [[name, *(cell(frame, name, "auc") for frame in found.values())] for name in names]
    rows += [
        [
            f"{name}, over confidence",
            *(cell(f, name, "over_confidence", "+") for f in found.values()),
        ]
        for name in names
        if name != "confidence" and "confidence" in name
    ]
    yield from table_lines(["features", *found], rows)


def tries(folder: Path) -> Iterator[str]:
    """Every try on all tasks together, and the accuracy of the predictors of one task."""
    frame = pd.read_parquet(folder / "tries.parquet")
    columns = {"auc": "AUC", "accuracy": "accuracy", "over_confidence": "over confidence"}
    columns |= {"calibration_error": "calibration error"}
    yield from table_lines(
        ["tried", "features", *columns.values()],
        [
            [row["tried"], row["features"], *(_figure(row, column) for column in columns)]
            for _, row in frame[frame["task"] == "all"].iterrows()
        ],
    )
    single = frame[frame["task"] != "all"]
    names = list(dict.fromkeys(single["features"]))
    yield from table_lines(
        ["task", "n", *names],
        [
            [_spaced(task), str(rows["n_scenarios"].iloc[0])]
            + [
                _figure(row, "accuracy")
                for _, row in rows.set_index("features").loc[names].iterrows()
            ]
            for task, rows in single.groupby("task", sort=False)
        ],
    )


def gates(folder: Path) -> Iterator[str]:
    """What interventions gain on the mean of tasks, and task by task, in points."""
    frame = pd.read_parquet(folder / "gates.parquet")
    yield from _trials(frame, "over the bias")
    plain = frame[~frame["gated"] & (frame["task"] != MEAN_OF_TASKS)]
    yield from _by_task(plain)


def sweep(folder: Path) -> Iterator[str]:
    """What ablations gain on the mean of tasks, and task by task, in points."""
    frame = pd.read_parquet(folder / "by_task" / "trials.parquet")
    yield from _trials(frame, "over random")
    yield from _by_task(frame[frame["task"] != MEAN_OF_TASKS])


def task_sweeps(folder: Path) -> Iterator[str]:
    """The same with a ranking for each task, after how good the predictors behind these are."""
    paths = sorted((folder / "by_task" / "rankings").glob("*.json"))
    rankings = tabulate_rankings({path.stem: HeadRanking.load(path) for path in paths})
    yield from table_lines(
        ["task", "fitted on", "held out", "AUC of its predictor", "AUC of confidence"],
        [
            [
                _spaced(row["task"]),
                str(row["n_train"]),
                str(row["n_test"]),
                *(_figure(row, column) for column in ("auc", "confidence_auc")),
            ]
            for _, row in rankings.iterrows()
        ],
    )
    frame = pd.read_parquet(folder / "by_task" / "own_rankings.parquet")
    yield from _trials(frame, "over random")
    toward = frame["choice"] == "toward_incorrect"
    yield from _by_task(frame[toward & (frame["task"] != MEAN_OF_TASKS)], intervals=True)


def _trials(frame: pd.DataFrame, over: str) -> Iterator[str]:
    columns = {"gain": "balanced gain", "over_baseline": over, "change": "change as they come"}
    columns = {key: name for key, name in columns.items() if key in frame}
    yield from table_lines(
        ["intervention", *columns.values(), "incorrect → correct", "correct → incorrect"],
        [
            [
                row["intervention"],
                *(_points(row, column) for column in columns),
                str(row["incorrect_to_correct"]),
                str(row["correct_to_incorrect"]),
            ]
            for _, row in frame[frame["task"] == MEAN_OF_TASKS].iterrows()
        ],
    )


def _by_task(frame: pd.DataFrame, intervals: bool = False) -> Iterator[str]:
    names = list(dict.fromkeys(frame["intervention"]))
    rows = []
    for task, group in frame.groupby("task", sort=False):
        found = group.set_index("intervention")
        first = found.iloc[0]
        cells = [
            _points(found.loc[name], "gain", intervals or name in _WITH_INTERVAL)
            if name in found.index  # not every task has enough heads to choose from
            else "–"
            for name in names
        ]
        rows.append([_spaced(task), f"{first['n']} ({first['n_correct']})", *cells])
    yield from table_lines(["task", "held out (correct)", *names], rows)


def _figure(row: Any, column: str, sign: str = "") -> str:
    if pd.isna(row[column]):
        return "–"
    value, low, high = (
        format(row[f"{column}{end}"], f"{sign}.3f") for end in ("", "_low", "_high")
    )
    return f"{value} [{low}, {high}]"


def _points(row: Any, column: str, interval: bool = True) -> str:
    if pd.isna(row[column]):
        return "–"
    value, low, high = (
        format(100 * row[f"{column}{end}"], "+.1f") for end in ("", "_low", "_high")
    )
    return f"{value} [{low}, {high}]" if interval else value


def _spaced(name: Any) -> str:
    return str(name).replace("_", " ")
