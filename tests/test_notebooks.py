"""The notebooks in examples/: they run as they stand, and are kept with their output."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="the group `docs` is not installed")

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
EXECUTED = ROOT / "runs" / "notebooks"


def code_cells(path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def text_of(output):
    """Everything an output shows."""
    return "".join([output.get("text", ""), *map(str, output.get("data", {}).values())])


def test_there_are_four():
    assert [path.name[0] for path in NOTEBOOKS] == ["1", "2", "3", "4"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_output_is_kept_and_clean(path):
    cells = code_cells(path)
    assert all(cell.execution_count is not None for cell in cells)
    outputs = [output for cell in cells for output in cell.outputs]
    assert len(outputs) >= len(cells) / 2
    assert not [output for output in outputs if output.output_type == "error"]
    shown = "\n".join(map(text_of, outputs))
    # Neither the machine it ran on, nor anything that is fetched when the notebook is opened.
    assert not re.search(r"/(root|home|work|tmp|Users)/\w", shown)
    assert not re.search(r"""(src|href)=["']?https?:""", shown)
    assert path.stat().st_size < 2_000_000


@pytest.mark.real
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_as_it_stands(path, monkeypatch):
    from nbclient import NotebookClient

    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.setenv("PYTHONWARNINGS", "ignore:IProgress not found")
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook, timeout=900, resources={"metadata": {"path": str(path.parent)}}
    ).execute()  # raises what a cell raises
    EXECUTED.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, EXECUTED / path.name)
    stored = code_cells(path)
    for cell, before in zip(code_cells(EXECUTED / path.name), stored, strict=True):
        kinds = [output.output_type for output in cell.outputs]
        assert kinds == [output.output_type for output in before.outputs], cell.source
