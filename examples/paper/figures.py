"""The figures of docs/results/study.md, from studies' folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter

from aplens.plots import draw_ablation_curve
from aplens.study import StudyFolder
from aplens.style import CORRECT, GREEN, GREY, INCORRECT, INK, WIDTH, new_figure, tidy
from paper.over_tasks import MEAN_OF_TASKS

#: Features of the learning curve, with their colours and markers; those are drawn that were tried.
CURVES = {
    "confidence": (GREY, "s"),
    "statistics+confidence": (GREEN, "^"),
    "statistics": (GREEN, "^"),
    "statistics+regions": (GREEN, "v"),
    "surprise": (CORRECT, "o"),
    "surprise+unexpected": (CORRECT, "o"),
    "surprise+confidence": (INCORRECT, "D"),
    "surprise+unexpected+confidence": (INCORRECT, "D"),
}
#: Interventions of the figure of gates.
SHOWN = {
    "answer bias": (GREY, "s"),
    "learned": (CORRECT, "o"),
    "learned + answer bias": (INCORRECT, "D"),
    "patterns sharpened": (GREEN, "^"),
}
#: Of the training files in a fold of five.
TRAINING_SHARE = 0.8


def draw_scenarios(folder: Path, together: Path | None) -> Figure:
    """AUC against the number of scenarios fitted on; two studies together stand apart."""
    whole = StudyFolder(folder).predictors
    shares = pd.read_parquet(folder / "tries.parquet")
    if "train_share" not in shares:
        raise ValueError(f"{folder / 'tries.parquet'} has no train_share: run `tries` again")
    shares = shares[(shares["train_share"] < 1) & (shares["task"] == "all")]
    parts = [
        shares.assign(share=shares["train_share"]),
        whole[whole["task"] == "all"].assign(share=1.0),
    ]
    if together is not None:
        frame = pd.read_parquet(together)
        parts.append(frame[frame["task"] == "all"].assign(share=1.0))
    rows = pd.concat(parts, ignore_index=True)
    rows["fitted"] = rows["share"] * rows["n_scenarios"] * TRAINING_SHARE
    figure = new_figure(WIDTH, 4.0)
    axes = figure.subplots()
    tried = [name for name in CURVES if name in set(shares["features"])]
    for place, name in enumerate(tried):
        style = CURVES[name]
        own = rows[rows["features"] == name].sort_values("fitted")
        one_study = own["n_scenarios"] == own["n_scenarios"].min()
        _errorbar(axes, own[one_study], "fitted", "auc", name, style, place, "-")
        _errorbar(axes, own[~one_study], "fitted", "auc", None, style, place, "")
    _log_axis(axes, sorted({round(value) for value in rows["fitted"]}))
    last = "" if together is None else "; the last: two studies together"
    axes.set_xlabel(f"scenarios fitted on (log scale){last}")
    axes.set_ylabel("AUC (95 % interval)")
    axes.legend(frameon=False, fontsize=9)
    return figure


def draw_gates(studies: dict[str, Path]) -> Figure:
    """The balanced gain of gates and of the bias, task by task, one panel a study."""
    frames = {name: pd.read_parquet(folder / "gates.parquet") for name, folder in studies.items()}
    counts = [frame["task"].nunique() for frame in frames.values()]
    figure = new_figure(WIDTH, 1.2 + 0.42 * sum(counts))
    panels = figure.subplots(len(frames), 1, sharex=True, height_ratios=counts, squeeze=False)
    for axes, (title, frame) in zip(panels[:, 0], frames.items(), strict=True):
        tasks = [MEAN_OF_TASKS, *sorted(set(frame["task"]) - {MEAN_OF_TASKS}, reverse=True)]
        shown = [name for name in SHOWN if name in set(frame["intervention"])]
        for place, name in enumerate(shown):
            rows = frame[frame["intervention"] == name].set_index("task").loc[tasks]
            color, marker = SHOWN[name]
            heights = np.arange(len(tasks)) + 0.16 * ((len(shown) - 1) / 2 - place)
            axes.errorbar(
                rows["gain"],
                heights,
                xerr=_bounds(rows, "gain"),
                label=name,
                color=color,
                marker=marker,
                linestyle="",
                markersize=4,
                elinewidth=1,
            )
        axes.axvline(0, color=INK, linewidth=1, linestyle=":")
        axes.set_yticks(range(len(tasks)), [task.replace("_", " ") for task in tasks])
        axes.set_title(title, loc="left", fontsize=10)
        tidy(axes, grid="x")
    last = panels[-1, 0]
    last.xaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=""))
    last.set_xlabel("balanced gain, points (95 % interval)")
    handles = {
        label: handle
        for axes in panels[:, 0]
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles, loc="outside upper center", ncols=4, frameon=False)
    return figure


def draw_sweeps(folders: list[Path]) -> Figure:
    """Accuracy against the number of heads ablated, one panel a method."""
    sweeps = [StudyFolder(folder).sweep for folder in folders]
    figure = new_figure(WIDTH, 3.4)
    panels = figure.subplots(1, len(sweeps), sharey=True, squeeze=False)[0]
    for axes, sweep in zip(panels, sweeps, strict=True):
        draw_ablation_curve(axes, sweep.summary(), sweep.clean_accuracy)
        axes.set_title(str(sweep.setup["method"]), loc="left", fontsize=10)
        axes.set_xlabel("heads ablated")
    panels[0].set_ylabel("accuracy, as they come")
    panels[0].set_ylim(bottom=0)
    panels[0].legend(frameon=False, fontsize=8)
    return figure


def draw_task_sweeps(folder: Path) -> Figure:
    """Balanced accuracy against the heads ablated, ranked over all tasks and for each by itself."""
    files = {"one ranking": "trials.parquet", "a ranking for each task": "own_rankings.parquet"}
    figure = new_figure(WIDTH, 3.4)
    panels = figure.subplots(1, len(files), sharey=True)
    for axes, (title, name) in zip(panels, files.items(), strict=True):
        frame = pd.read_parquet(folder / "by_task" / name)
        means = frame[(frame["task"] == MEAN_OF_TASKS) & frame["gain"].notna()]
        ends = {f"change{end}": means[f"gain{end}"] for end in ("", "_low", "_high")}
        summary = means.assign(accuracy=0.5 + means["gain"], **ends)
        draw_ablation_curve(axes, summary, 0.5)
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel("heads ablated")
        axes.tick_params(axis="x", labelsize=8, rotation=45)
    panels[0].set_ylabel("balanced accuracy, mean of tasks")
    panels[0].set_ylim(bottom=0)
    panels[0].legend(frameon=False, fontsize=8)
    return figure


def _errorbar(
    axes: Axes,
    rows: pd.DataFrame,
    x: str,
    y: str,
    label: str | None,
    style: tuple[str, str],
    place: int,
    line: str,
) -> None:
    """One line with its intervals, moved a little, or those of one place would hide each other."""
    color, marker = style
    axes.errorbar(
        rows[x] * 1.04 ** (place - 1.5),
        rows[y],
        yerr=_bounds(rows, y),
        label=label,
        color=color,
        marker=marker,
        linestyle=line,
        markersize=5,
        elinewidth=1,
        capsize=2,
    )


def _bounds(rows: pd.DataFrame, name: str) -> np.ndarray:
    """How far the ends of an interval are from its middle, as matplotlib wants it."""
    return np.stack([rows[name] - rows[f"{name}_low"], rows[f"{name}_high"] - rows[name]]).clip(0)


def _log_axis(axes: Axes, ticks: list[int]) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([str(tick) for tick in ticks])
    tidy(axes, grid="y")
