"""The parts of a report, ready for the template: sentences, pictures, tables of formatted text."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

import pandas as pd
from matplotlib.figure import Figure

from aplens import plots
from aplens.style import to_svg
from aplens.viz import findings

if TYPE_CHECKING:
    from aplens.heads import HeadRanking
    from aplens.interventions import AblationSweep
    from aplens.mae import Reconstruction
    from aplens.viz.report import ReportData, SampleScenario

_TOP_HEADS = 15
_SAMPLE_LINES = 14
_NO_BREAK = "\u00a0"

#: Unicode's bidirectional controls, other control characters, and halves of surrogate pairs: they
#: reorder or hide text, or are no text at all.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff"
    "\ud800-\udfff\ufffe\uffff]"
)


@dataclass(frozen=True)
class Table:
    """Formatted numbers. The first column names the row; `folded` ones open on a click."""

    caption: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    folded: bool = True


@dataclass(frozen=True)
class Picture:
    """A figure as the address of its own data."""

    source: str
    alt: str
    caption: str


@dataclass(frozen=True)
class Section:
    """One part of the page."""

    name: str
    title: str
    text: Sequence[str]
    pictures: Sequence[Picture]
    tables: Sequence[Table]


@dataclass(frozen=True)
class Sample:
    """A scenario's source code and tokens as they are to be shown."""

    task: str
    place: str
    code: str
    cut: bool
    target: str
    predicted: str
    confidence: str
    correct: bool


def visible(text: str) -> str:
    """Text with the characters that could reorder or hide it written as their numbers."""
    text = text.replace("\r\n", "\n")
    return _INVISIBLE.sub(lambda match: f"\\u{{{ord(match.group()):04X}}}", text)


def summarize(report: ReportData) -> Iterator[str]:
    """What the report's numbers say, one sentence or two a part."""
    if _has_rows(report.task_accuracy):
        yield findings.describe_task_accuracy(report.task_accuracy)
    if _has_rows(report.reconstruction_error):
        yield findings.describe_reconstruction(
            report.reconstruction_error, report.reconstruction_baselines
        )
    if _has_rows(report.predictors):
        yield findings.describe_predictors(
            report.predictors, report.predictor_baselines, report.confidence
        )
    if report.sweep is not None and report.sweep.results:
        yield findings.describe_ablation(report.sweep.summary(), report.sweep.clean_accuracy)


def build_sections(report: ReportData) -> Iterator[Section]:
    """The sections there is something to show in, in reading order."""
    if _has_rows(report.task_accuracy):
        yield _task_section(report.task_accuracy)
    if report.reconstruction is not None or _has_rows(report.reconstruction_error):
        yield _reconstruction_section(report)
    if _has_rows(report.predictors):
        yield _predictor_section(report.predictors, report)
    if report.ranking is not None and len(report.ranking):
        yield _ranking_section(report.ranking)
    if report.sweep is not None and report.sweep.results:
        yield _ablation_section(report.sweep)
    if report.timings:
        yield _timing_section(report)


def build_samples(samples: Sequence[SampleScenario]) -> list[Sample]:
    """The samples' source code cut to its last lines, nothing in it invisible."""
    return [
        Sample(
            task=visible(sample.task),
            place=visible(f"{sample.file}:{sample.line}"),
            code="\n".join(visible(sample.prompt).split("\n")[-_SAMPLE_LINES:]),
            cut=sample.prompt.count("\n") >= _SAMPLE_LINES,
            target=_token(sample.target),
            predicted=_token(sample.predicted),
            confidence=f"{sample.confidence:.0%}",
            correct=sample.correct,
        )
        for sample in samples
    ]


def _task_section(frame: pd.DataFrame) -> Section:
    ordered = frame.sort_values("accuracy", ascending=False)
    return Section(
        name="tasks",
        title="The model's accuracy by task",
        text=["The unchanged model's most probable next token against the file's own."],
        pictures=[
            _picture(
                plots.plot_task_accuracy(frame),
                f"Dot plot: accuracy on each of {len(frame)} tasks with 95 % intervals.",
                "Share of scenarios whose first token the model predicts, by task. Intervals are "
                "bootstrapped over source files.",
            )
        ],
        tables=[
            _table(
                "Accuracy by task",
                ordered,
                {
                    "task": lambda row: str(row["task"]),
                    "scenarios": lambda row: f"{row['n']:,}",
                    "accuracy, % [95 %]": lambda row: _percent(row, "accuracy", "low", "high"),
                },
            )
        ],
    )


def _reconstruction_section(report: ReportData) -> Section:
    pictures: list[Picture] = []
    tables: list[Table] = []
    if report.reconstruction is not None:
        pictures.append(
            _picture(
                plots.plot_reconstruction(
                    report.reconstruction, list(report.reconstruction_labels) or None
                ),
                "Attention patterns of some heads: original, with patches masked, and as AP-MAE "
                "reconstructs them.",
                "Log-normalized attention of some heads; grey patches were hidden from AP-MAE. "
                "Nothing lies above the diagonal: no token attends to a later one.",
            )
        )
        tables.append(_pattern_table(report.reconstruction, report.reconstruction_labels))
    if _has_rows(report.reconstruction_error):
        frame = report.reconstruction_error.sort_values("error")
        pictures.append(
            _picture(
                plots.plot_reconstruction_error(frame, report.reconstruction_baselines),
                f"Dot plot: squared error on masked patches of {len(frame)} predictors.",
                "Mean squared error on masked patches, on source files never trained on. Grey: "
                "predictors that are no AP-MAE.",
            )
        )
        tables.append(
            _table(
                "Reconstruction error",
                frame,
                {
                    "predictor": lambda row: str(row["predictor"]),
                    "squared error [95 %]": lambda row: _interval(
                        row, "error", "low", "high", ".4f"
                    ),
                },
            )
        )
    return Section(
        "reconstruction", "Reconstruction of masked attention patterns", [], pictures, tables
    )


def _pattern_table(reconstruction: Reconstruction, labels: Sequence[str]) -> Table:
    errors = reconstruction.error.reshape(-1).tolist()
    hidden = reconstruction.mask.reshape(len(errors), -1).float().mean(dim=-1).tolist()
    names = list(labels) or [f"pattern {index}" for index in range(len(errors))]
    return Table(
        "Patterns shown",
        ["pattern", "patches hidden", "squared error"],
        [
            [visible(name), f"{share:.0%}", f"{error:.4f}"]
            for name, share, error in zip(names, hidden, errors, strict=True)
        ],
    )


def _predictor_section(frame: pd.DataFrame, report: ReportData) -> Section:
    ordered = frame.sort_values("auc", ascending=False)
    columns: dict[str, Callable[[Any], str]] = {
        "features": lambda row: str(row["features"]),
        "kind": lambda row: (
            "baseline"
            if findings.is_baseline(row["features"], report.predictor_baselines)
            else "AP-MAE"
        ),
        "AUC [95 %]": lambda row: _interval(row, "auc", "auc_low", "auc_high"),
        "accuracy, % [95 %]": lambda row: _percent(
            row, "accuracy", "accuracy_low", "accuracy_high"
        ),
    }
    if "over_confidence" in frame:
        columns["AUC over confidence [95 %]"] = lambda row: _interval(
            row, "over_confidence", "over_confidence_low", "over_confidence_high", "+.3f"
        )
    return Section(
        name="predictors",
        title="Predicting whether the model is right",
        text=[
            "Without knowing the answer, and on source files not fitted on. A predictor is worth "
            "something only against the baselines, the model's own confidence first of all."
        ],
        pictures=[
            _picture(
                plots.plot_predictors(frame, report.predictor_baselines),
                f"Dot plot: AUC of {len(frame)} sets of features with 95 % intervals.",
                "Area under the ROC curve. Grey: features that need no AP-MAE. Intervals are "
                "bootstrapped over source files.",
            )
        ],
        tables=[_table("Predictors of correctness", ordered, columns, folded=False)],
    )


def _ranking_section(ranking: HeadRanking) -> Section:
    frame = ranking.to_frame()
    scores = frame.pivot_table(index="layer", columns="head", values="mean")
    best = str(ranking.top(1)[0])
    return Section(
        name="heads",
        title="The heads, ranked",
        text=[
            "SHAP values of the correctness predictor, averaged over scenarios. They say which "
            "heads the predictor reads, not which heads cause an error: that is for the ablations."
        ],
        pictures=[
            _picture(
                plots.plot_head_map(ranking, "mean"),
                f"Heat map, layers by heads: mean SHAP value of {len(ranking)} heads.",
                "Mean SHAP value of every head. Red pushes the prediction toward incorrect, blue "
                "toward correct.",
            ),
            _picture(
                plots.plot_shap_summary(ranking, _TOP_HEADS),
                f"Bar chart: SHAP values of the most important heads, {best} first.",
                "The most important heads: how far each pushes toward incorrect (right) and toward "
                "correct (left).",
            ),
        ],
        tables=[
            _table(
                "Top heads",
                frame.head(_TOP_HEADS),
                {
                    "head": lambda row: str(row.name),
                    "importance": lambda row: _short(row["importance"]),
                    "mean": lambda row: _short(row["mean"], signed=True),
                    "toward incorrect": lambda row: _short(row["toward_incorrect"]),
                    "toward correct": lambda row: _short(row["toward_correct"]),
                },
                folded=False,
            ),
            Table(
                "Mean SHAP value of every head",
                ["layer", *(f"head {head}" for head in scores.columns)],
                [
                    [str(layer), *(_short(value, signed=True) for value in row)]
                    for layer, row in zip(scores.index, scores.to_numpy(), strict=True)
                ],
            ),
        ],
    )


def _ablation_section(sweep: AblationSweep) -> Section:
    summary = sweep.summary()
    columns: dict[str, Callable[[Any], str]] = {
        "ablated": lambda row: f"{row['size']} {row['choice'].replace('_', ' ')}",
        "accuracy, % [95 %]": lambda row: _percent(row, "accuracy", "low", "high"),
        "change, points [95 %]": lambda row: _points(row, "change"),
        "incorrect → correct": lambda row: f"{round(row['incorrect_to_correct'], 1):g}",
        "correct → incorrect": lambda row: f"{round(row['correct_to_incorrect'], 1):g}",
    }
    text = [
        f"{len(sweep.clean):,} scenarios that neither the predictor nor the ranking saw; the "
        f"unchanged model is right on {sweep.clean_accuracy:.1%} of them. Method: "
        f"{sweep.setup.get('method', 'unknown')}."
    ]
    if sweep.skipped:
        text.append(f"Not run: {'; '.join(sweep.skipped)}.")
    return Section(
        name="ablation",
        title="Ablating heads",
        text=text,
        pictures=[
            _picture(
                sweep.plot(),
                "Line plot: accuracy against the number of ablated heads, one line for each way "
                "of choosing them, and the unchanged model's accuracy as a dotted line.",
                "Accuracy with more and more heads ablated; random heads are averaged over draws. "
                "Intervals are those of the change from the unchanged model on the same scenarios, "
                "bootstrapped over source files.",
            )
        ],
        tables=[
            _table(
                "Ablations",
                summary,
                {
                    **columns,
                    "over random, points [95 %]": lambda row: _points(row, "over_random"),
                },
                folded=False,
            ),
            _table(
                "Every setting",
                sweep.to_frame(),
                {
                    **columns,
                    "seed": lambda row: "–" if pd.isna(row["seed"]) else str(row["seed"]),
                    "heads": lambda row: row["heads"],
                },
            ),
        ],
    )


def _timing_section(report: ReportData) -> Section:
    rows = [[visible(stage), _duration(seconds)] for stage, seconds in report.timings.items()]
    total = ["all", _duration(sum(report.timings.values()))]
    return Section(
        "timings",
        "How long it took",
        [],
        [],
        [Table("Time by stage", ["stage", "time"], [*rows, total], folded=False)],
    )


def _picture(figure: Figure, alt: str, caption: str) -> Picture:
    # An <img> of data, not inline SVG: ids of several figures cannot clash, and it has a plain alt.
    data = base64.b64encode(to_svg(figure)).decode()
    return Picture(f"data:image/svg+xml;base64,{data}", alt, caption)


def _table(
    caption: str,
    frame: pd.DataFrame,
    columns: dict[str, Callable[[Any], str]],
    folded: bool = True,
) -> Table:
    rows = [[visible(show(row)) for show in columns.values()] for _, row in frame.iterrows()]
    headers = [header.replace("95 %", f"95{_NO_BREAK}%") for header in columns]
    return Table(caption, headers, rows, folded)


def _interval(row: Any, value: str, low: str, high: str, number: str = ".3f") -> str:
    """A figure with its interval, as "0.585 [0.551, 0.620]"; a dash where there is none."""
    if pd.isna(row[value]):
        return "–"
    shown = [format(row[name], number).replace("-", "−") for name in (value, low, high)]
    if pd.isna(row[low]) or pd.isna(row[high]):
        return shown[0]
    return f"{shown[0]} [{shown[1]}, {shown[2]}]".replace(" ", _NO_BREAK)


def _percent(row: Any, value: str, low: str, high: str, number: str = ".1%") -> str:
    """A share with its interval, in per cent; the header says so."""
    return _interval(row, value, low, high, number).replace("%", "")


def _points(row: Any, value: str) -> str:
    """A difference of two accuracies, in percentage points, with its interval."""
    return _percent(row, value, f"{value}_low", f"{value}_high", "+.1%")


def _short(value: float, signed: bool = False) -> str:
    if pd.isna(value):
        return "–"
    return f"{value:{'+' if signed else ''}#.3g}".replace("-", "−")


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"


def _token(text: str) -> str:
    """One token, its spaces and line ends made visible."""
    return visible(text).replace("\n", "⏎").replace("\t", "⇥").replace(" ", "␣")


def _has_rows(frame: pd.DataFrame | None) -> TypeGuard[pd.DataFrame]:
    return frame is not None and not frame.empty
