"""Measuring AP-MAEs on a study's prompts, and on other models asked to complete the same files."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from aplens.mae import APMAE
from aplens.study import Reporter, Study, StudySettings
from paper.evaluation.measure import Evaluation, EvaluationSettings, evaluate_apmaes
from paper.evaluation.tables import evaluation_to_markdown
from paper.files import write_table, write_text

_REFERENCE, _HELD_OUT = "autoencoder", "fit"


def evaluate_study(
    settings: StudySettings,
    folder: str | os.PathLike[str],
    maes: Sequence[str],
    evaluation: EvaluationSettings,
    *,
    models: Sequence[str],
    reporter: Reporter,
    command: str,
) -> str:
    """Measure AP-MAEs on the part `fit` of a study; baselines learn from the part `autoencoder`.

    Writes `evaluation/reconstruction.parquet`, `probes.parquet`, `correctness.parquet` (where it
    was asked for) and `evaluation.md` below the folder. Prompts are mined where they are missing.
    """
    import pandas as pd

    loaded, text = _load(maes), ""
    results: list[Evaluation] = []
    for name, study in studies_of(settings, Path(folder), models, reporter):
        study.run("mine")
        started = time.monotonic()
        reporter.start("evaluate", f"{', '.join(loaded)} on {name}")
        result = _evaluate_model(study, loaded, evaluation)
        results.append(Evaluation(*(table.assign(model=name) for table in result)))
        joined = Evaluation(
            *(pd.concat(tables, ignore_index=True) for tables in zip(*results, strict=True))
        )
        text = evaluation_to_markdown(joined, evaluation, command)
        wrote = _write(joined, text, Path(folder) / "evaluation")
        reporter.finish("evaluate", time.monotonic() - started, wrote)
    return text


def _load(maes: Sequence[str]) -> dict[str, APMAE]:
    """AP-MAEs by the last part of their names, or by the whole where that is not enough."""
    short = [Path(name).name for name in maes]
    labels = short if len(set(short)) == len(short) else maes
    return {label: APMAE.from_pretrained(name) for label, name in zip(labels, maes, strict=True)}


def studies_of(
    settings: StudySettings, folder: Path, models: Sequence[str], reporter: Reporter
) -> Iterator[tuple[str, Study]]:
    """The study of each model; that of the study's own model is the study itself."""
    own = settings.model.name
    for name in models or (own,):
        changed = dataclasses.replace(settings.model, name=name)
        place = folder if name == own else folder / "models" / name.replace("/", "--")
        yield Path(name).name, Study(dataclasses.replace(settings, model=changed), place, reporter)


def _evaluate_model(
    study: Study, maes: dict[str, APMAE], evaluation: EvaluationSettings
) -> Evaluation:
    missing = [name for name in (_REFERENCE, _HELD_OUT) if name not in study.folder.parts]
    if missing:
        raise ValueError(
            f"an evaluation needs the study's parts {_REFERENCE!r} and {_HELD_OUT!r}: give "
            f"split.{missing[0]} a share above 0"
        )
    return evaluate_apmaes(
        study.model,
        maes,
        study.folder.parts[_REFERENCE],
        study.folder.parts[_HELD_OUT],
        evaluation,
        study.reporter.update,
    )


def _write(evaluation: Evaluation, text: str, folder: Path) -> list[Path]:
    wrote = [folder / "evaluation.md"]
    write_text(wrote[0], text)
    for name, table in evaluation._asdict().items():
        if len(table):
            wrote.append(folder / f"{name}.parquet")
            write_table(wrote[-1], table)
    return wrote
