"""The command line: parse, call, print."""

from __future__ import annotations

import shlex
import sys
import warnings
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from aplens.cli import Changes, Folder, StudyFile
from aplens.study import StudySettings, reporting
from paper import commands

app = typer.Typer(
    help="The paper's study and ours, on top of aplens.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

#: Where `figures` draws.
PICTURES = Path(__file__).parents[2] / "docs" / "images"


class Table(StrEnum):
    """The tables of docs/results/study.md."""

    predictors = "predictors"
    tries = "tries"
    gates = "gates"
    sweep = "sweep"
    task_sweeps = "task_sweeps"


class Picture(StrEnum):
    """The figures of docs/results/study.md."""

    scenarios = "scenarios"
    gates = "gates"
    sweeps = "sweeps"
    task_sweeps = "task_sweeps"


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
    from paper.evaluation.embeddings import POOLS
    from paper.evaluation.measure import EvaluationSettings
    from paper.evaluation.study import evaluate_study

    with reporting() as (console, reporter):
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
            folder or Path("runs") / study_file.stem,
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
    from paper.catalogue_study import catalogue_study

    with reporting() as (console, reporter):
        text = catalogue_study(
            StudySettings.from_toml(study_file, changes or ()),
            folder or Path("runs") / study_file.stem,
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
    seed: Annotated[int, typer.Option(help="Of folds, resamples and predictors.")] = 0,
    keep: Annotated[
        Path | None, typer.Option(help="A folder that keeps predictions, so that a run goes on.")
    ] = None,
    table: Annotated[Path | None, typer.Option(help="A Parquet file for the table.")] = None,
) -> None:
    """Predict correctness from the observations of several studies together."""
    from paper.files import write_table
    from paper.predict import predict_together, predictions_to_markdown

    with reporting() as (console, reporter):
        reporter.start("predict", f"correctness, {folds} folds by source file")
        found = predict_together(
            folders,
            features,
            n_folds=folds,
            seed=seed,
            folder=keep,
            progress=reporter.update,
        )
        if table is not None:
            write_table(table, found)
        console.print(predictions_to_markdown(found, _command()), markup=False, soft_wrap=True)


@app.command()
def handoff(
    task: Annotated[
        list[str] | None,
        typer.Option(help="ioi, induction or java; without, all three. Repeatable."),
    ] = None,
    folder: Annotated[Path, typer.Option("--folder", "-o", help="Where results go.")] = Path(
        "runs/handoff"
    ),
    tables: Annotated[bool, typer.Option("--tables", help="Print what the folder holds.")] = False,
    figure: Annotated[
        Path | None, typer.Option(help="Draw what the folder holds into this file.")
    ] = None,
    csv: Annotated[
        Path | None, typer.Option(help="Write every figure of the folder into this file.")
    ] = None,
    model: str = "smollm2-135m",
    kind: str = "hooked",
    mae: str = "aplens-short",
    n_truth: Annotated[int, typer.Option(help="Prompts that the truth is measured on.")] = 64,
    n_choice: Annotated[int, typer.Option(help="Prompts that heads are chosen on.")] = 32,
    seeds: Annotated[int, typer.Option(help="Draws of these.")] = 3,
    n_matter: Annotated[int, typer.Option(help="Heads with the largest effects.")] = 20,
) -> None:
    """Which rankings find the heads that matter, and at what cost; what is finished is kept."""
    from paper import handoff as study
    from paper.handoff_tasks import TASKS

    with reporting() as (console, reporter), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*HookedTransformer is deprecated.*")
        if unknown := sorted(set(task or ()) - set(TASKS)):
            raise ValueError(f"task must be one of {list(TASKS)}, got {unknown[0]!r}")
        if tables:
            console.print(study.tables(folder), markup=False, soft_wrap=True)
        if figure is not None:
            study.draw(folder, figure)
        if csv is not None:
            study.all_figures(folder).round(4).to_csv(csv, index=False)
        if not tables and figure is None and csv is None:
            setup = study.Setup(model, kind, mae, n_truth, n_choice, seeds, n_matter)
            for name in task or TASKS:
                study.run_task(name, folder, setup, reporter)


@app.command()
def fit_fingerprint(
    mae: Annotated[str, typer.Argument(help="An AP-MAE: a bundled name, a folder or a hub id.")],
    folder: Annotated[Path, typer.Option("--folder", "-o", help="Where it goes, in float16.")],
    model: str = "smollm2-135m",
    prompts: Annotated[int, typer.Option(help="Of each domain: Java, Python, prose.")] = 16,
    dim: Annotated[int, typer.Option(help="Numbers in a fingerprint.")] = 64,
) -> None:
    """Give an AP-MAE a fingerprint, fitted on files that no evaluation uses."""
    from paper.fit_fingerprint import fit

    with reporting() as (_, reporter):
        fit(mae, model, prompts, folder, reporter, dim)


@app.command()
def train_fingerprint(
    mae: Annotated[str, typer.Argument(help="The AP-MAE to begin from: a name, folder or hub id.")],
    folder: Annotated[Path, typer.Option("--folder", "-o", help="Where it goes.")],
    model: Annotated[
        list[str] | None,
        typer.Option(help="Whose heads to tell apart. Repeatable.", show_default="smollm2-135m"),
    ] = None,
    prompts: Annotated[int, typer.Option(help="Of each domain: Java, Python, prose.")] = 96,
    minutes: Annotated[float, typer.Option(help="How long to train.")] = 30.0,
    seed: Annotated[int, typer.Option(help="Of the order, heads and masks.")] = 0,
) -> None:
    """Train an AP-MAE to tell heads apart, on files that no evaluation uses."""
    from paper.train_fingerprint import Recipe, train

    models = tuple(model or ["smollm2-135m"])
    with reporting() as (_, reporter):
        train(mae, Recipe(models, prompts, 60 * minutes, seed=seed), folder, reporter)


@app.command()
def fingerprint_trials(
    mae: Annotated[str, typer.Argument(help="The AP-MAE to begin from: a name, folder or hub id.")],
    folder: Annotated[Path, typer.Option("--folder", "-o", help="Where trials go.")],
    model: Annotated[
        list[str] | None,
        typer.Option(help="Whose heads to tell apart. Repeatable.", show_default="smollm2-135m"),
    ] = None,
    patterns: Annotated[int, typer.Option(help="How many to train each on.")] = 20_480,
) -> None:
    """Train fingerprints in other ways, one change at a time, and measure each."""
    from paper.fingerprint_trials import run_trials

    with reporting() as (console, reporter):
        models = tuple(model or ["smollm2-135m"])
        table = run_trials(mae, models, patterns, folder, reporter)
        console.print(table.to_markdown(), markup=False, soft_wrap=True)


@app.command()
def average(
    maes: Annotated[list[str], typer.Argument(help="AP-MAEs: names, folders or hub ids.")],
    folder: Annotated[Path, typer.Option("--folder", "-o", help="Where it goes, in float16.")],
) -> None:
    """Make an AP-MAE with the mean of others' weights."""
    from paper.average import average

    with reporting():
        average(maes, folder)


@app.command()
def fingerprints(
    mae: Annotated[
        str, typer.Option(help="An AP-MAE with a fingerprint: a bundled name, a folder, a hub id.")
    ] = "aplens-short",
    folder: Annotated[
        Path | None,
        typer.Option(
            "--folder", "-o", help="Where results go.", show_default="runs/fingerprints/<mae>"
        ),
    ] = None,
    prompts: Annotated[int, typer.Option(help="Of each domain.")] = 24,
    errors: Annotated[int, typer.Option(help="Scenarios to foretell errors on; 0: not now.")] = 240,
    model: str = "smollm2-135m",
    other: Annotated[str, typer.Option(help="A model that nothing was fitted on.")] = "gemma3-270m",
    page: Annotated[
        Path | None,
        typer.Option(
            help="Write the tables into this page, between its comments, and every figure "
            "into tables/fingerprints-<mae>.csv beside it."
        ),
    ] = None,
) -> None:
    """Are heads told apart, are kin found in another model, do clusters stay? Beside baselines."""
    from aplens.mae import APMAE
    from paper import fingerprints as study

    with reporting() as (console, reporter):
        place = folder or Path("runs") / "fingerprints" / Path(mae).name
        setup = study.Setup(mae, (model, other), "bridge", prompts, errors)
        study.measure(setup, place, reporter)
        n_tokens = APMAE.from_pretrained(mae).config.n_ctx
        text = study.tables(place, n_tokens)
        if page is not None:
            name = f"fingerprints-{Path(mae).name}"
            study.write_into(page, name, text)
            figures = study.all_figures(place)
            figures.to_csv(page.parent / "tables" / f"{name}.csv", index=False)
        console.print(text, markup=False, soft_wrap=True)


@app.command()
def tables(
    table: Table,
    folders: Annotated[list[Path], typer.Argument(help="Folders of studies that were run.")],
) -> None:
    """Print a table of docs/results/study.md from studies' folders."""
    from paper import tables as made

    with reporting() as (console, _):
        if table is Table.predictors:
            found = [*made.predictors(folders)]
        else:
            make = getattr(made, table.value)
            found = [one for folder in folders for one in make(folder)]
        text = "\n\n".join(one.to_markdown() for one in found)
        console.print(text, markup=False, soft_wrap=True)


@app.command()
def figures(
    picture: Picture,
    folders: Annotated[
        list[str],
        typer.Argument(help="Folders of studies that were run; for 'gates' each as TITLE=FOLDER."),
    ],
    together: Annotated[
        Path | None, typer.Option(help="For 'scenarios': what `predict --table` wrote.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Of the picture.", show_default="the figure's")
    ] = None,
) -> None:
    """Draw a figure of docs/results/study.md from studies' folders into docs/images."""
    from paper import figures as drawn

    with reporting() as (console, _):
        match picture:
            case Picture.scenarios:
                figure = drawn.draw_scenarios(Path(folders[0]), together)
            case Picture.gates:
                studies = dict(pair.split("=", 1) for pair in folders)
                figure = drawn.draw_gates({title: Path(place) for title, place in studies.items()})
            case Picture.task_sweeps:
                figure = drawn.draw_task_sweeps(Path(folders[0]))
            case Picture.sweeps:
                figure = drawn.draw_sweeps([Path(folder) for folder in folders])
        path = PICTURES / f"study-{name or picture.value}.png".replace("_", "-")
        figure.savefig(path, dpi=110)
        console.print(f"wrote {path}", markup=False, soft_wrap=True)


for command in (
    commands.gates,
    commands.tries,
    commands.truth,
    commands.by_task,
    commands.changed,
):
    app.command()(command)


def _command() -> str:
    return shlex.join(["python", "-m", "paper", *sys.argv[1:]])


if __name__ == "__main__":
    app()
