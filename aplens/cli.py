"""The `aplens` command: parse, call, print."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated, Literal

import typer

from aplens import __version__
from aplens._io import atomic_write
from aplens._processes import join_processes
from aplens.study.terminal import reporting

app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)

#: The study that `demo` runs, every setting explained.
_DEMO = files("aplens") / "studies" / "demo.toml"

StudyFile = Annotated[Path, typer.Argument(help="The study's TOML file.")]
Folder = Annotated[
    Path | None,
    typer.Option(
        "--folder",
        "-o",
        help="Where results go, and where an interrupted run is gone on with.",
        show_default="runs/<name of the study file>",
    ),
]
Redo = Annotated[
    str | None,
    typer.Option(
        metavar="STAGE",
        help="Run this stage again from its beginning, and with it all that follow: what they had "
        "written is removed.",
    ),
]

Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Replace a setting of the study file for this run, such as scenarios.per_task=50. "
        "May be given several times.",
    ),
]


@app.command()
def demo(
    folder: Annotated[Path, typer.Option("--folder", "-o", help="Where results go.")] = Path(
        "runs/demo"
    ),
    redo: Redo = None,
) -> None:
    """Rank and ablate SmolLM2's heads on real Java, in about 6 minutes on two cores."""
    with as_file(_DEMO) as study_file:
        _run(study_file, folder, "report", redo)


@app.command(name="run")
def run_study(
    study_file: StudyFile,
    until: Annotated[
        str,
        typer.Option(
            metavar="STAGE",
            help="The last stage to run: mine, train, observe, rank, ablate or report.",
        ),
    ] = "report",
    folder: Folder = None,
    redo: Redo = None,
    changes: Changes = None,
    plan: Annotated[
        bool,
        typer.Option(
            "--plan",
            help="Run nothing: say how many prompts and passes of the model each stage takes, and "
            "about how long, how much memory and how much disk. Loads the model and times it on a "
            "batch of random tokens.",
        ),
    ] = False,
) -> None:
    """Run a study. A stage that is done is skipped, one that was interrupted goes on."""
    if plan:
        _plan(study_file, changes)
    else:
        _run(study_file, folder, until, redo, changes)


@app.command()
def rank(
    model: Annotated[
        str,
        typer.Option(
            help="The model: a name such as smollm2-135m or gpt2, the folder of a saved model, or "
            "a GGUF file."
        ),
    ],
    prompts: Annotated[
        Path,
        typer.Option(
            help="A CSV file with a header or JSON lines, with the columns or keys prompt, answer "
            "and wrong_answer; or a text file with a prompt a line. Write answers with the blank "
            "before them. Without answers the model's own prediction counts."
        ),
    ],
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print JSON, with every head, in place of a table."),
    ] = False,
    top: Annotated[int, typer.Option(min=1, help="How many heads the table lists.")] = 20,
    verify: Annotated[
        int,
        typer.Option(
            min=0,
            help="How many of the first heads are ablated one by one after all were estimated, "
            "beside those of the first two layers. 0 ablates none.",
        ),
    ] = 40,
    kind: Annotated[
        str,
        typer.Option(
            help="The model's class: hooked, bridge, or auto for the first that is the same model "
            "as Hugging Face's."
        ),
    ] = "auto",
) -> None:
    """Rank a model's heads by what ablating each does to its answers on your own prompts."""
    with reporting() as (console, _):
        from aplens.models import load_model
        from aplens.ranking import rank_heads
        from aplens.scenarios import read_prompt_file

        loaded = load_model(model, kind)  # type: ignore[arg-type]  # it refuses other words
        ranking = rank_heads(loaded, read_prompt_file(loaded, prompts), verify=verify)
        text = ranking.to_json() if as_json else ranking.to_text(top)
        console.print(text, markup=False, soft_wrap=True)


@app.command()
def init(
    study_file: Annotated[
        Path, typer.Argument(help="The file to write. One that is there is left as it is.")
    ] = Path("study.toml"),
) -> None:
    """Write the study of `aplens demo` to a file of your own, every setting explained."""
    with reporting() as (console, _):
        if study_file.exists():
            raise FileExistsError(f"{study_file} is there already: choose another name")
        with atomic_write(study_file) as temporary:
            temporary.write_bytes(_DEMO.read_bytes())
        path = shlex.quote(str(study_file))
        console.print(
            f"wrote {study_file}. What it will cost: aplens run --plan {path}",
            markup=False,
            soft_wrap=True,
        )


@app.command()
def train(
    study_file: StudyFile, folder: Folder = None, redo: Redo = None, changes: Changes = None
) -> None:
    """Train an AP-MAE on the study's model, or fetch the pretrained one it names."""
    _run(study_file, folder, "train", redo, changes)


@app.command(name="map")
def map_models(
    models: Annotated[
        list[str], typer.Argument(help="Names or folders of models, as load_model takes them.")
    ],
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="A text file with a prompt a line, a JSON list of texts, or a CSV file or JSON "
            "lines with the column or key prompt.",
            show_default="24 passages of English prose and 24 of Python, which every "
            "installation has",
        ),
    ] = None,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="The page; or a .safetensors file for HeadMap.load."),
    ] = Path("map.html"),
    mae: Annotated[
        str, typer.Option(help="The AP-MAE: a bundled name, a folder or a hub id.")
    ] = "aplens-short",
    reducer: Annotated[
        Literal["pca", "umap"],
        typer.Option(
            help="What lays the heads of the page out: pca, or umap, which keeps like heads nearer "
            "together and needs umap-learn."
        ),
    ] = "pca",
) -> None:
    """Map the heads of one or several models: like heads near each other, on one page."""
    from aplens.study.head_maps import map_models

    with reporting() as (console, reporter):
        found = map_models(
            models,
            prompts,
            output,
            mae=mae,
            reducer=reducer,
            reporter=reporter,
        )
        console.print(repr(found), markup=False, soft_wrap=True)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"aplens {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_show_version,
            is_eager=True,
            help="Print the version, and leave.",
        ),
    ] = False,
) -> None:
    """Which attention heads matter, and what they do."""


def _run(
    study_file: Path,
    folder: Path | None,
    until: str,
    redo: str | None,
    changes: Sequence[str] | None = None,
) -> None:
    """Bring a stage, and what it needs, up to date."""
    from aplens.study import Study, StudySettings

    started = time.monotonic()
    with reporting() as (console, reporter):
        settings = StudySettings.from_toml(study_file, changes or ())
        study = Study(settings, _target(study_file, folder), reporter, _command())
        study.run(until, redo=redo)
        if until == "report" and join_processes().is_main:
            minutes, seconds = divmod(round(time.monotonic() - started), 60)
            console.print(f"this run took {minutes} min {seconds:02d} s")
            console.print(study.summary(), markup=False, soft_wrap=True)


def _plan(study_file: Path, changes: Sequence[str] | None) -> None:
    """Print what a study will cost."""
    from aplens.study import Study, StudySettings
    from aplens.study.plan import plan_study

    with reporting() as (console, reporter):
        settings = StudySettings.from_toml(study_file, changes or ())
        model = Study(settings, _target(study_file, None), reporter).model
        console.print(plan_study(settings, model).to_text(), markup=False, soft_wrap=True)


def _target(study_file: Path, folder: Path | None) -> Path:
    return folder or Path("runs") / study_file.stem


def _command() -> str:
    return shlex.join(["aplens", *sys.argv[1:]])


if __name__ == "__main__":
    app()
