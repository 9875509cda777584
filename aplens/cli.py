"""The `aplens` command: parse, call, print."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated

import typer

from aplens import __version__
from aplens._processes import join_processes
from aplens.study.terminal import reporting

app = typer.Typer(
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


@app.command(name="run")
def run_study(
    study_file: StudyFile,
    until: Annotated[
        str, typer.Option(help="The last stage: mine, train, observe, rank, ablate or report.")
    ] = "report",
    folder: Folder = None,
    redo: Redo = None,
    changes: Changes = None,
) -> None:
    """Run a study. A stage that is done is skipped, one that was interrupted goes on."""
    _run(study_file, folder, until, redo, changes)


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
            help="A text file with one prompt a line, or a JSON list of texts [default: 24 "
            "passages of English prose and 24 of Python that every installation has]"
        ),
    ] = None,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="The page; or a .safetensors file for HeadMap.load."),
    ] = Path("map.html"),
    mae: Annotated[
        str, typer.Option(help="The AP-MAE: a bundled name, a folder or a hub id.")
    ] = "aplens-short",
) -> None:
    """Map the heads of one or several models: like heads near each other, on one page."""
    from aplens.study.head_maps import map_models

    with reporting() as (console, reporter):
        found = map_models(models, prompts, output, mae=mae, reporter=reporter)
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

    with reporting() as (console, reporter):
        settings = StudySettings.from_toml(study_file, changes or ())
        study = Study(settings, _target(study_file, folder), reporter, _command())
        study.run(until, redo=redo)
        if until == "report" and join_processes().is_main:
            console.print(study.summary(), markup=False, soft_wrap=True)


def _target(study_file: Path, folder: Path | None) -> Path:
    return folder or Path("runs") / study_file.stem


def _command() -> str:
    return shlex.join(["aplens", *sys.argv[1:]])


if __name__ == "__main__":
    app()
