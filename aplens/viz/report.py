"""One run as one self-contained HTML page: no scripts, no network, numbers beside every figure."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from aplens._io import atomic_write
from aplens.plots import PREDICTOR_BASELINES
from aplens.viz.embed import render_template
from aplens.viz.sections import build_samples, build_sections, summarize, visible

if TYPE_CHECKING:
    import pandas as pd

    from aplens.heads import HeadRanking
    from aplens.interventions import AblationSweep
    from aplens.mae import Reconstruction


@dataclass(frozen=True)
class SampleScenario:
    """One scenario to be shown with its source code.

    Attributes:
        task: Its task.
        file: Its file inside the corpus.
        line: The line it stops at, from 1.
        prompt: What the model was given, as text; the report shows its last lines.
        target: The token the file goes on with, as text.
        predicted: The model's most probable token, as text.
        confidence: That token's probability.
        correct: Whether the two tokens are the same (texts of two tokens can be equal).
    """

    task: str
    file: str
    line: int
    prompt: str
    target: str
    predicted: str
    confidence: float
    correct: bool


@dataclass
class ReportData:
    """What a report shows. A part that is None or empty is left out of the page.

    Attributes:
        title: The page's heading.
        facts: What was run: model, corpus, command, seeds, versions, date, in the order to show.
        notes: Sentences the reader must know first, such as what the corpus was replaced by.
        task_accuracy: Columns `task`, `n`, `accuracy`, `low`, `high`; a task named "all" is all of
            them together.
        reconstruction: A few patterns as `APMAE.reconstruct` returned them.
        reconstruction_labels: A name for each of them.
        reconstruction_error: Columns `predictor`, `error`, `low`, `high` (mean squared error on
            masked patches, log-normalized units), and `ratio` (to the mean patch's) if known.
        reconstruction_baselines: The predictors among them that are no AP-MAE.
        predictors: One row a set of features, on all tasks together. Columns `features`, `auc`,
            `accuracy`, each figure with `_low` and `_high`.
        predictor_baselines: The features among them that need no AP-MAE; sets of these joined by
            "+" are baselines too.
        confidence: Which of them is the model's own confidence.
        ranking: The ranked heads.
        sweep: The ablations, on scenarios that neither the predictor nor the ranking saw.
        timings: Seconds each stage took.
        samples: Some scenarios with their source code.
    """

    title: str
    facts: Mapping[str, str]
    notes: Sequence[str] = ()
    task_accuracy: pd.DataFrame | None = None
    reconstruction: Reconstruction | None = None
    reconstruction_labels: Sequence[str] = ()
    reconstruction_error: pd.DataFrame | None = None
    reconstruction_baselines: Collection[str] = ()
    predictors: pd.DataFrame | None = None
    predictor_baselines: Collection[str] = PREDICTOR_BASELINES
    confidence: str = "confidence"
    ranking: HeadRanking | None = None
    sweep: AblationSweep | None = None
    timings: Mapping[str, float] = field(default_factory=dict)
    samples: Sequence[SampleScenario] = ()


def write_report(path: str | os.PathLike[str], report: ReportData) -> Path:
    """Write the report as one HTML file that needs nothing else, and return its path.

    Raises:
        ValueError: When a table lacks a column that the report shows; the message names both.
        OSError: When the file cannot be written.
    """
    text = render_report(report)
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


def render_report(report: ReportData) -> str:
    """The report's HTML."""
    return render_template(
        "report.html.j2",
        title=visible(report.title),
        facts=[(visible(name), visible(value)) for name, value in report.facts.items()],
        notes=[visible(note) for note in report.notes],
        findings=[visible(sentence) for sentence in summarize(report)],
        sections=list(build_sections(report)),
        samples=build_samples(report.samples),
    )
