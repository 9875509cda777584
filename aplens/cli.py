"""The `aplens` command: parse, call, print."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from aplens._io import atomic_write
from aplens._processes import join_processes
from aplens.study.stages import Reporter

app = typer.Typer(
    help="Rank, draw and switch off attention heads with AP-MAE.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

StudyFile = Annotated[Path, typer.Argument(help="The study's TOML file.")]
Folder = Annotated[
    Path | None,
    typer.Option(
        "--folder", "-o", help="Where results go [default: runs/<name of the study file>]"
    ),
]
Redo = Annotated[
    str | None,
    typer.Option(help="Run this stage again from its beginning, and with it all that follow."),
]

Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Replace a setting of the study file, such as mae.config.base=none. Repeatable.",
    ),
]

#: Without a terminal a line is printed this often, in seconds, in place of a moving bar.
_LINE_EVERY = 5.0


@app.command()
def demo(
    folder: Annotated[Path, typer.Option("--folder", "-o", help="Where results go.")] = Path(
        "runs/demo"
    ),
    redo: Redo = None,
) -> None:
    """Rank and ablate SmolLM2's heads on real Java, in under 10 minutes on two cores."""
    with as_file(files("aplens") / "studies" / "demo.toml") as study_file:
        _run(study_file, folder, "report", redo)


@app.command()
def mine(
    study_file: StudyFile, folder: Folder = None, redo: Redo = None, changes: Changes = None
) -> None:
    """Mine completion scenarios from the study's corpus."""
    _run(study_file, folder, "mine", redo, changes)


@app.command()
def train(
    study_file: StudyFile, folder: Folder = None, redo: Redo = None, changes: Changes = None
) -> None:
    """Train an AP-MAE on the study's model, or fetch the pretrained one it names."""
    _run(study_file, folder, "train", redo, changes)


@app.command()
def observe(
    study_file: StudyFile, folder: Folder = None, redo: Redo = None, changes: Changes = None
) -> None:
    """Run the model on the scenarios; keep every head's embedding, and the outcome."""
    _run(study_file, folder, "observe", redo, changes)


@app.command()
def rank(
    study_file: StudyFile, folder: Folder = None, redo: Redo = None, changes: Changes = None
) -> None:
    """Cluster, predict correctness beside its baselines, and rank the heads by SHAP."""
    _run(study_file, folder, "rank", redo, changes)


@app.command()
def tries(
    study_file: StudyFile, folder: Folder = None, redo: Redo = None, changes: Changes = None
) -> None:
    """Predict correctness in other ways: other classifiers, fewer files, one task at a time."""
    _run(study_file, folder, "tries", redo, changes)


@app.command()
def ablate(
    study_file: StudyFile, folder: Folder = None, redo: Redo = None, changes: Changes = None
) -> None:
    """Switch off ranked and random heads on held-out scenarios, and count what changes."""
    _run(study_file, folder, "ablate", redo, changes)


@app.command()
def gates(
    study_file: StudyFile, folder: Folder = None, redo: Redo = None, changes: Changes = None
) -> None:
    """Scale heads, task by task, and see which held-out predictions change."""
    _run(study_file, folder, "gates", redo, changes)


@app.command()
def truth(
    study_file: StudyFile, folder: Folder = None, redo: Redo = None, changes: Changes = None
) -> None:
    """Ablate every head by itself, and compare rankings with what that does."""
    _run(study_file, folder, "truth", redo, changes)


@app.command()
def report(
    study_file: StudyFile, folder: Folder = None, redo: Redo = None, changes: Changes = None
) -> None:
    """Write the study's report, one self-contained HTML file."""
    _run(study_file, folder, "report", redo, changes)


@app.command()
def evaluate(
    study_file: StudyFile,
    mae: Annotated[
        list[str], typer.Option(help="An AP-MAE: a bundled name, a folder or a hub id. Repeatable.")
    ],
    folder: Folder = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="A model to measure on; without, the study's own. Repeatable."),
    ] = None,
    prompts: Annotated[int, typer.Option(help="Held-out prompts.")] = 48,
    reference: Annotated[int, typer.Option(help="Prompts that the baselines learn from.")] = 48,
    patterns_per_prompt: Annotated[
        int, typer.Option(help="Heads of a prompt to look at, drawn at random; 0: all.")
    ] = 0,
    mask_ratio: Annotated[
        float, typer.Option(help="Share of the patches to hide; 0: each AP-MAE's own.")
    ] = 0.0,
    mask_seeds: Annotated[int, typer.Option(help="Masks a pattern.")] = 3,
    tokens: Annotated[int, typer.Option(help="First tokens of a prompt to look at; 0: all.")] = 0,
    correctness: Annotated[
        int, typer.Option(help="Held-out prompts to predict correctness on; 0: none.")
    ] = 0,
    pool: Annotated[
        list[str] | None,
        typer.Option(help="A pooling of tokens to probe, such as 'cls'; without, all. Repeatable."),
    ] = None,
    changes: Changes = None,
) -> None:
    """Measure AP-MAEs beside baselines: reconstruction, linear probes, correctness."""
    from aplens.evaluation import EvaluationSettings
    from aplens.evaluation.embeddings import POOLS
    from aplens.study import StudySettings
    from aplens.study.evaluate import evaluate_study

    with _reporting() as (console, reporter):
        if not join_processes().is_main:
            return  # it is not shared
        settings = StudySettings.from_toml(study_file, changes or ())
        wanted = EvaluationSettings(
            prompts=prompts,
            reference=reference,
            patterns_per_prompt=patterns_per_prompt,
            mask_ratio=mask_ratio,
            mask_seeds=mask_seeds,
            tokens=tokens,
            correctness=correctness,
            pools=tuple(pool or POOLS),
            seed=settings.seed,
        )
        text = evaluate_study(
            settings,
            _target(study_file, folder),
            mae,
            wanted,
            models=model or (),
            reporter=reporter,
            command=_command(),
        )
        console.print(text, markup=False, soft_wrap=True)


@app.command()
def catalogue(
    study_file: StudyFile,
    folder: Folder = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="A model to look at; without, the study's own. Repeatable."),
    ] = None,
    prompts: Annotated[int, typer.Option(help="Prompts of each language.")] = 40,
    clusters: Annotated[int, typer.Option(help="Clusters of all patterns together.")] = 100,
    changes: Changes = None,
) -> None:
    """Catalogue recurring patterns across heads, domains and models, and check their names."""
    from aplens.study import StudySettings
    from aplens.study.catalogue import catalogue_study

    with _reporting() as (console, reporter):
        if not join_processes().is_main:
            return  # it is not shared
        text = catalogue_study(
            StudySettings.from_toml(study_file, changes or ()),
            _target(study_file, folder),
            models=model or (),
            prompts=prompts,
            n_clusters=clusters,
            reporter=reporter,
            command=_command(),
        )
        console.print(text, markup=False, soft_wrap=True)


@app.command()
def predict(
    folders: Annotated[list[Path], typer.Argument(help="Folders of studies that were observed.")],
    features: Annotated[
        list[str] | None,
        typer.Option(help="A set of features, such as 'surprise+confidence'. Repeatable."),
    ] = None,
    folds: Annotated[int, typer.Option(help="Folds, by source file.")] = 5,
    by_task: Annotated[bool, typer.Option(help="One row a task as well.")] = False,
    train_share: Annotated[
        float, typer.Option(help="Share of each fold's training files to fit on.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Of folds, resamples and predictors.")] = 0,
    keep: Annotated[
        Path | None, typer.Option(help="A file that keeps predictions, so that a run goes on.")
    ] = None,
    table: Annotated[Path | None, typer.Option(help="A Parquet file for the table.")] = None,
) -> None:
    """Predict correctness from the observations of several studies together."""
    from aplens.scoring import FEATURE_SETS
    from aplens.study.predict import predict_together, predictions_to_markdown

    with _reporting() as (console, reporter):
        if not join_processes().is_main:
            return  # it is not shared
        reporter.start("predict", f"correctness, {folds} folds by source file")
        found = predict_together(
            folders,
            features or FEATURE_SETS,
            n_folds=folds,
            by_task=by_task,
            train_share=train_share,
            seed=seed,
            keep=keep,
            progress=reporter.update,
        )
        if table is not None:
            with atomic_write(table) as temporary:
                found.to_parquet(temporary, index=False)
        text = predictions_to_markdown(found, _command())
        console.print(text, markup=False, soft_wrap=True)


@app.command(name="run")
def run_study(
    study_file: StudyFile, folder: Folder = None, redo: Redo = None, changes: Changes = None
) -> None:
    """Run a whole study. A stage that is done is skipped, one that was interrupted goes on."""
    _run(study_file, folder, "report", redo, changes)


def _run(
    study_file: Path,
    folder: Path | None,
    until: str,
    redo: str | None,
    changes: Sequence[str] | None = None,
) -> None:
    """Bring a stage, and what it needs, up to date."""
    from aplens.study import Study, StudySettings

    with _reporting() as (console, reporter):
        settings = StudySettings.from_toml(study_file, changes or ())
        study = Study(settings, _target(study_file, folder), reporter, _command())
        study.run(until, redo=redo)
        if until == "report" and join_processes().is_main:
            console.print(study.summary(), markup=False, soft_wrap=True)


@contextmanager
def _reporting() -> Iterator[tuple[Console, TerminalReporter]]:
    """Show progress; errors become one line and exit code 1.

    Of several processes only the first one speaks, and whichever meets an error.
    """
    console = Console(stderr=False, highlight=False)
    try:
        if not join_processes().is_main:
            console.quiet = True
        with TerminalReporter(console).running() as reporter:
            yield console, reporter
    except KeyboardInterrupt:
        console.print("\nInterrupted. What was finished is kept: the same command goes on.")
        raise typer.Exit(130) from None
    except (ValueError, TypeError, OSError, RuntimeError, ImportError) as error:
        console.quiet = False
        console.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(1) from error


def _target(study_file: Path, folder: Path | None) -> Path:
    return folder or Path("runs") / study_file.stem


def _command() -> str:
    return shlex.join(["aplens", *sys.argv[1:]])


class TerminalReporter(Reporter):
    """Shows stages and their progress: a moving bar on a terminal, lines elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("  {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None
        self._stage = ""
        self._last_line = 0.0

    @contextmanager
    def running(self) -> Iterator[TerminalReporter]:
        """Show the bar for as long as the study runs."""
        with self._progress:
            yield self

    def start(self, stage: str, message: str) -> None:
        """A stage begins."""
        self._stage = stage
        self._last_line = time.monotonic()
        self._print(f"{stage}: {message}")
        self._task = self._progress.add_task(stage, total=None, note="")

    def update(self, done: int, total: int, note: str = "") -> None:
        """`done` of `total` steps of the stage are done."""
        if self._task is not None:
            self._progress.update(self._task, completed=done, total=total, note=note)
        if not self._console.is_terminal and time.monotonic() - self._last_line > _LINE_EVERY:
            self._last_line = time.monotonic()
            self._print(f"  {done} of {total}  {note}".rstrip())

    def say(self, message: str) -> None:
        """Something worth reading."""
        self._print(f"  {message}")

    def finish(self, stage: str, seconds: float, wrote: Sequence[Path]) -> None:
        """A stage ended, having written these files."""
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None
        self._print(f"  done in {seconds:.0f} s, wrote {_listed(wrote)}")

    def skip(self, stage: str, wrote: Sequence[Path]) -> None:
        """A stage was done before, with the same settings."""
        self._print(f"{stage}: done before, in {_listed(wrote)}")

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)
        sys.stdout.flush()


def _listed(paths: Sequence[Path]) -> str:
    return ", ".join(str(path) for path in paths)


if __name__ == "__main__":
    app()
