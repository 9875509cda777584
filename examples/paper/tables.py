"""The tables of docs/results/study.md, from studies' folders."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pandas as pd

from aplens.heads import HeadRanking
from aplens.study import StudyFolder
from aplens.tables import Table
from paper.by_task import tabulate_rankings
from paper.over_tasks import MEAN_OF_TASKS

#: Interventions that are shown with their interval on every task.
_WITH_INTERVAL = ("learned", "patterns sharpened", "answer bias")

#: What ends the names of a figure's columns: itself, and its interval.
_ENDS = ("", "_low", "_high")


def predictors(folders: Iterable[Path]) -> Iterator[Table]:
    """AUC of every set of features, one column a study, and what they add to confidence."""
    frames = {folder.name: StudyFolder(folder).predictors for folder in folders}
    found = {
        name: frame[frame["task"] == "all"].set_index("features") for name, frame in frames.items()
    }
    names = list(dict.fromkeys(name for frame in found.values() for name in frame.index))
    added = [name for name in names if name != "confidence" and "confidence" in name]
    auc = _side_by_side("features", found, "auc", names, ".3f")
    over = _side_by_side("features", found, "over_confidence", added, "+.3f")
    rows = [[f"{name}, over confidence", *figures] for name, *figures in over.rows]
    yield Table(auc.headers, [*auc.rows, *rows])


def tries(folder: Path) -> Iterator[Table]:
    """Every try on all tasks together, and the accuracy of the predictors of one task."""
    frame = pd.read_parquet(folder / "tries.parquet")
    figures = {"auc": "AUC", "accuracy": "accuracy", "over_confidence": "over confidence"}
    figures |= {"calibration_error": "calibration error"}
    columns = {"tried": "tried", "features": "features", **figures}
    yield Table.from_frame(frame[frame["task"] == "all"], columns)
    single = frame[frame["task"] != "all"]
    sizes = single.groupby("task", sort=False)["n_scenarios"].first()
    by_features = {name: rows.set_index("task") for name, rows in single.groupby("features")}
    order = {name: by_features[name] for name in dict.fromkeys(single["features"])}
    table = _side_by_side("task", order, "accuracy", sizes.index, ".3f")
    rows = [
        [_spaced(task), str(n), *cells] for (task, *cells), n in zip(table.rows, sizes, strict=True)
    ]
    yield Table(["task", "n", *order], rows)


def gates(folder: Path) -> Iterator[Table]:
    """What interventions gain on the mean of tasks, and task by task, in points."""
    frame = pd.read_parquet(folder / "gates.parquet")
    yield _trials(frame, "over the bias")
    yield _by_task(frame[~frame["gated"] & (frame["task"] != MEAN_OF_TASKS)])


def sweep(folder: Path) -> Iterator[Table]:
    """What ablations gain on the mean of tasks, and task by task, in points."""
    frame = pd.read_parquet(folder / "by_task" / "trials.parquet")
    yield _trials(frame, "over random")
    yield _by_task(frame[frame["task"] != MEAN_OF_TASKS])


def task_sweeps(folder: Path) -> Iterator[Table]:
    """The same with a ranking for each task, after how good the predictors behind these are."""
    paths = sorted((folder / "by_task" / "rankings").glob("*.json"))
    rankings = tabulate_rankings({path.stem: HeadRanking.load(path) for path in paths})
    columns = {"task": "task", "n_train": "fitted on", "n_test": "held out"}
    columns |= {"auc": "AUC of its predictor", "confidence_auc": "AUC of confidence"}
    if len(rankings):
        rankings = rankings.assign(task=rankings["task"].map(_spaced))
    yield Table.from_frame(rankings, columns)
    frame = pd.read_parquet(folder / "by_task" / "own_rankings.parquet")
    yield _trials(frame, "over random")
    toward = frame["choice"] == "toward_incorrect"
    yield _by_task(frame[toward & (frame["task"] != MEAN_OF_TASKS)], intervals=True)


def _trials(frame: pd.DataFrame, over: str) -> Table:
    points = {"gain": "balanced gain", "over_baseline": over, "change": "change as they come"}
    counts = ("incorrect_to_correct", "correct_to_incorrect")
    return Table.from_frame(
        frame[frame["task"] == MEAN_OF_TASKS],
        {"intervention": "intervention", **points}
        | {name: name.replace("_to_", " → ") for name in counts},
        formats=dict.fromkeys(points, "+.1%"),
    )


def _by_task(frame: pd.DataFrame, intervals: bool = False) -> Table:
    """A row a task, a column an intervention; not every task has enough heads to choose from."""
    found = {name: rows.set_index("task") for name, rows in frame.groupby("intervention")}
    order = {
        name: found[name] if intervals or name in _WITH_INTERVAL else found[name][["gain"]]
        for name in dict.fromkeys(frame["intervention"])
    }
    sizes = frame.groupby("task", sort=False)[["n", "n_correct"]].first()
    table = _side_by_side("task", order, "gain", sizes.index, "+.1%")
    rows = [
        [_spaced(task), f"{size.n} ({size.n_correct})", *cells]
        for (task, *cells), size in zip(table.rows, sizes.itertuples(), strict=True)
    ]
    return Table(["task", "held out (correct)", *order], rows)


def _side_by_side(
    first: str, frames: Mapping[str, pd.DataFrame], figure: str, rows: Iterable[str], spec: str
) -> Table:
    """One figure of several frames, a column each; the rows are called as the frames' index."""
    columns = {
        name + end: frame[figure + end]
        for name, frame in frames.items()
        for end in _ENDS
        if figure + end in frame
    }
    wide = pd.DataFrame(columns).reindex(list(rows)).rename_axis(first).reset_index()
    return Table.from_frame(
        wide, {name: name for name in (first, *frames)}, formats=dict.fromkeys(frames, spec)
    )


def _spaced(name: str) -> str:
    return name.replace("_", " ")
