"""The commands on a study of aplens: gates, tries, truth, by-task; and on a model: changed.

Those on a study are given a TOML file that names it (`study = "smollm2-java.toml"`) and has the
command's table. Each brings the study up to the stage that it needs, does its part, and writes
Parquet tables and one of Markdown into the study's folder; what is finished is not done again.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from aplens.cli import Changes, Folder
from aplens.study import Reporter, Store, Study, StudySettings, read_settings, reporting
from aplens.tables import Table
from paper.files import open_store, write_table, write_text
from paper.over_tasks import MEAN_OF_TASKS
from paper.settings import PaperSettings

File = Annotated[Path, typer.Argument(help="A TOML file that names a study, and has this table.")]

#: Given a study, a command's table and where it keeps what is finished: what it found.
Work: TypeAlias = Callable[[Study, Any, Store], Iterable[Table]]

_PREDICTORS = ["features", "auc", "accuracy", "over_confidence", "over_statistics"]
_PREDICTORS += ["over_hand_made", "calibration_error"]
_TRIALS = ["intervention", "task", "gain", "over_baseline", "change"]
_TRIALS += ["incorrect_to_correct", "correct_to_incorrect"]
_RANKINGS = ["n_train", "n_test", "confidence_auc"]


def gates(file: File, folder: Folder = None, changes: Changes = None) -> None:
    """Scale heads, task by task, and see which held-out predictions change."""
    from paper.task_gates import gate_tasks

    def work(study: Study, wanted: Any, store: Store) -> Iterator[Table]:
        table = gate_tasks(study, wanted, store)
        write_table(study.folder.path / "gates.parquet", table)
        means = table["task"] == MEAN_OF_TASKS
        yield Table.from_frame(table[means], _TRIALS, caption="Gates, mean of tasks")
        yield Table.from_frame(table[~means], _TRIALS, caption="Gates, task by task")

    # A task's gates depend on neither of the two that are left out.
    _run("gates", "rank", file, folder, changes, work, apart=("tasks", "predictor"))


def tries(file: File, folder: Folder = None, changes: Changes = None) -> None:
    """Predict correctness in other ways: other classifiers, fewer files, one task at a time."""
    from paper.tries import try_predictors

    def work(study: Study, wanted: Any, store: Store) -> Iterator[Table]:
        table = try_predictors(study, wanted, store.folder)
        write_table(study.folder.path / "tries.parquet", table)
        columns = ["tried", "task", *_PREDICTORS]
        yield Table.from_frame(table, columns, caption="Other predictors of correctness")

    _run("tries", "observe", file, folder, changes, work)


def truth(file: File, folder: Folder = None, changes: Changes = None) -> None:
    """Ablate every head by itself, and compare rankings with what that does."""
    from paper.truth import rank_against_truth

    def work(study: Study, wanted: Any, _: Store) -> Iterator[Table]:
        table = rank_against_truth(study, wanted)
        write_table(study.folder.path / "truth.parquet", table)
        yield Table.from_frame(table, caption="Rankings against every head's own ablation")

    _run("truth", "rank", file, folder, changes, work)


def by_task(file: File, folder: Folder = None, changes: Changes = None) -> None:
    """Judge a study's predictors and ablations task by task; rank heads for each task by itself."""
    from paper.by_task import tabulate_by_task

    def work(study: Study, wanted: Any, store: Store) -> Iterator[Table]:
        names = list(dict.fromkeys(["task", *_PREDICTORS, *_TRIALS, *_RANKINGS]))
        for title, table in tabulate_by_task(study, wanted, store.folder):
            yield Table.from_frame(table, names, caption=title)

    _run("by_task", "ablate", file, folder, changes, work, apart=("own_rankings",))


def changed(
    layers: Annotated[str, typer.Option(help="Layers to train, such as 6,13,22.")] = "6,13,22",
    model: Annotated[str, typer.Option(help="The model.")] = "smollm2-135m",
    mae: Annotated[str, typer.Option(help="The AP-MAE.")] = "aplens-short",
    package: Annotated[str, typer.Option(help="The Python package to train on.")] = "sympy",
    steps: Annotated[int, typer.Option(help="Training steps.")] = 20,
    prompts: Annotated[int, typer.Option(help="Prompts that heads are compared on.")] = 8,
    seed: Annotated[int, typer.Option(help="Of files and prompts.")] = 0,
    table: Annotated[Path | None, typer.Option(help="A Parquet file for the heads.")] = None,
) -> None:
    """Train some layers of a model, and see whether a map of heads finds theirs."""
    import aplens
    from paper.changed import ChangeSettings, try_change

    with reporting() as (console, reporter):
        chosen = tuple(int(layer) for layer in layers.split(","))
        wanted = ChangeSettings(chosen, package, steps=steps, prompts=prompts, seed=seed)
        reporter.start("changed", f"layers {layers} of {model}, {steps} steps on {package}")
        started = time.monotonic()
        loaded, reader = aplens.load_model(model, "bridge"), aplens.APMAE.from_pretrained(mae)
        heads, judged = try_change(loaded, reader, wanted, reporter.say)
        if table is not None:
            write_table(table, heads)
        reporter.finish("changed", time.monotonic() - started, [table] if table else [])
        first = heads.head(10).reset_index()
        names = ["name", "moved", "between_halves", "attention", "free"]
        tables = [
            Table.from_frame(judged, caption="How well heads of the trained layers are found"),
            Table.from_frame(first, names, caption="The heads that moved farthest"),
        ]
        text = "\n\n".join(one.to_markdown() for one in tables)
        console.print(text, markup=False, soft_wrap=True)


def _run(
    name: str,
    until: str,
    file: Path,
    folder: Path | None,
    changes: Iterable[str] | None,
    work: Work,
    apart: Iterable[str] = (),
) -> None:
    """Bring the study up to a stage, do a command's work, and write its tables in Markdown."""
    command = shlex.join(["python", "-m", "paper", *sys.argv[1:]])
    with reporting() as (console, reporter):
        paper = read_settings(PaperSettings, file)
        wanted = getattr(paper, name)
        study = open_study(paper, file, folder, changes or (), reporter, command)
        if wanted is None:
            raise ValueError(f"{file} has no table [{name}]")
        study.run(until)
        started, place = time.monotonic(), study.folder.path / name
        reporter.start(name, f"on {study.settings.title}")
        own = {key: value for key, value in asdict(wanted).items() if key not in apart}
        store = open_store(place, {**own, "study": _depends_on(study.settings, until)})
        tables = [table.to_markdown() for table in work(study, wanted, store)]
        first = f"Command: `{command}`, seed {study.settings.seed}."
        written = study.folder.path / f"{name}.md"
        write_text(written, "\n\n".join([first, *tables]) + "\n")
        wrote = [study.folder.path / f"{name}.parquet", place, written]
        seconds = time.monotonic() - started
        reporter.finish(name, seconds, [path for path in wrote if path.exists()])
        console.print("\n\n".join(tables), markup=False, soft_wrap=True)


def open_study(
    paper: PaperSettings,
    file: Path,
    folder: Path | None,
    changes: Iterable[str],
    reporter: Reporter,
    command: str,
) -> Study:
    """The study that a file names, with its settings checked against the file's tables."""
    if not paper.study:
        raise ValueError(f'{file} names no study: expected a line such as study = "study.toml"')
    path = file.parent / paper.study
    settings = StudySettings.from_toml(path, changes)
    try:
        paper.check_against(settings)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    return Study(settings, folder or Path("runs") / path.stem, reporter, command)


def _depends_on(settings: StudySettings, until: str) -> dict[str, Any]:
    """The study's settings, but for what changes nothing up to that stage."""
    apart = {"title"} if until == "ablate" else {"title", "ablate"}
    return {key: value for key, value in settings.to_dict().items() if key not in apart}
