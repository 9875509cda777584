"""The notebooks in examples/: they run as they stand, and are kept with their output."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="the group `docs` is not installed")

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
EXECUTED = ROOT / "runs" / "notebooks"
#: What the kernel runs before each notebook: its names are gone, a model that was loaded is kept.
AFRESH = """
get_ipython().run_line_magic("reset", "-f")
import functools, aplens
if not hasattr(aplens.load_model, "cache_info"):
    aplens.load_model = functools.cache(aplens.load_model)
del functools, aplens
"""


def code_cells(path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def text_of(output):
    """Everything an output shows."""
    return "".join([output.get("text", ""), *map(str, output.get("data", {}).values())])


def shown_kinds(cell):
    """The kinds of results that a cell shows; what it prints may come in any number of pieces."""
    return [list(output.data) for output in cell.outputs if "data" in output]


def test_there_are_five():
    assert [path.name[0] for path in NOTEBOOKS] == ["1", "2", "3", "4", "5"]


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


@pytest.fixture(scope="module")
def execute():
    """Executes notebooks in one kernel, which imports and loads the model once for all of them."""
    from jupyter_client.manager import KernelManager
    from nbclient import NotebookClient

    manager = KernelManager()

    def in_kernel(notebook):  # raises what a cell raises
        client = NotebookClient(notebook, km=manager, timeout=900)
        try:
            client.execute(cwd=str(ROOT / "examples"))
        finally:
            client.kc.stop_channels()

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TQDM_DISABLE", "1")
        patch.setenv("PYTHONWARNINGS", "ignore:IProgress not found")
        yield in_kernel
    if manager.has_kernel:
        manager.shutdown_kernel(now=True)


@pytest.mark.real
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_as_it_stands(path, execute):
    v4 = nbformat.v4
    execute(v4.new_notebook(cells=[v4.new_code_cell(AFRESH)]))
    notebook = nbformat.read(path, as_version=4)
    execute(notebook)
    EXECUTED.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, EXECUTED / path.name)
    for cell, stored in zip(code_cells(EXECUTED / path.name), code_cells(path), strict=True):
        assert shown_kinds(cell) == shown_kinds(stored), cell.source


@pytest.mark.browser
def test_views_draw_in_an_exported_notebook_with_no_network(chromium, tmp_path):
    from nbconvert import HTMLExporter

    (path,) = (path for path in NOTEBOOKS if path.stem == "2_look_at_patterns")
    page_path = tmp_path / "exported.html"
    page_path.write_text(HTMLExporter().from_filename(str(path))[0], encoding="utf-8")
    context = chromium.new_context(viewport={"width": 1000, "height": 900})
    # nbconvert's own page asks for its scripts elsewhere: it gets none.
    context.route(re.compile("^https?:"), lambda route: route.abort())
    page = context.new_page()
    page.goto(page_path.as_uri())
    frames = [frame.content_frame() for frame in page.query_selector_all("iframe")]
    assert len(frames) == 1
    (heads,) = frames
    heads.wait_for_selector("#pattern[data-head='0'] canvas", timeout=20_000)
    heads.locator("#heads button").nth(1).click()
    heads.wait_for_selector("#pattern[data-head='1']", timeout=20_000)
    figures = page.locator(".jp-RenderedImage img").all()
    assert len(figures) == 4  # a map of heads, a habit, a reconstruction, clusters
    assert min(figure.evaluate("image => image.naturalWidth") for figure in figures) > 300
    context.close()
