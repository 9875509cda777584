"""The views in a real JupyterLab. It is no dependency: what `jupyter-lab` is found is used.

    JUPYTER_LAB=/elsewhere/bin/jupyter-lab pytest tests/test_jupyterlab.py

Pictures of what it saw go to `runs/jupyterlab/`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import pytest

nbformat = pytest.importorskip("nbformat", reason="the group `docs` is not installed")

LAB = os.environ.get("JUPYTER_LAB") or shutil.which("jupyter-lab")
ROOT = Path(__file__).parent.parent
PICTURES = ROOT / "runs" / "jupyterlab"
CELLS = (
    """import aplens
model = aplens.load_model("smollm2-135m")
mae = aplens.APMAE.from_pretrained("aplens-short")
clean = "When Mary and John went to the store, John gave a drink to"
corrupted = clean.replace("John gave", "Mary gave")
aplens.show_heads(model, clean, "L2H1, L9H6, L11H1", mae=mae)""",
    """patterns = aplens.collect_patterns(model, clean, "L2H1, L9H6")
mae.reconstruct(patterns).plot(labels=patterns.heads)""",
    """scenarios = aplens.make_scenarios(model, [clean], [" Mary"], [" John"])
metric = aplens.logit_difference(scenarios)
heads = "L11H1, L17H6"
aplens.activation_patch(model, clean, corrupted, heads, metric=metric, by_position=True).plot()""",
)

pytestmark = [
    pytest.mark.real,
    pytest.mark.browser,
    pytest.mark.skipif(LAB is None, reason="no jupyter-lab on the PATH or in JUPYTER_LAB"),
]


@pytest.fixture
def lab(tmp_path):
    """The address of a running JupyterLab whose kernel is this Python, with a notebook to run."""
    kernel = tmp_path / "share" / "kernels" / "aplens"
    kernel.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel.joinpath("kernel.json").write_text(
        json.dumps({"argv": argv, "display_name": "aplens", "language": "python"})
    )
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS],
        metadata={"kernelspec": {"name": "aplens", "display_name": "aplens"}},
    )
    folder = tmp_path / "notebooks"
    folder.mkdir()
    nbformat.write(notebook, folder / "views.ipynb")
    environment = os.environ | {
        "JUPYTER_PATH": str(tmp_path / "share"),
        "JUPYTER_DATA_DIR": str(tmp_path / "data"),
        "JUPYTER_CONFIG_DIR": str(tmp_path / "config"),
        "JUPYTER_RUNTIME_DIR": str(tmp_path / "runtime"),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "TQDM_DISABLE": "1",
    }
    options = ("--no-browser", "--allow-root", "--IdentityProvider.token=", "--ip=127.0.0.1")
    log = tmp_path / "lab.log"
    with log.open("wb") as written:
        server = subprocess.Popen(
            [str(LAB), *options, f"--ServerApp.root_dir={folder}", "--ServerApp.port=0"],
            env=environment,
            stdout=written,
            stderr=subprocess.STDOUT,
        )
    try:
        yield wait_for_server(tmp_path / "runtime", log)
    finally:
        server.terminate()
        server.wait(30)


def wait_for_server(runtime, log, seconds=120):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for path in runtime.glob("jpserver-*.json"):
            address = json.loads(path.read_text())["url"]
            with urlopen(address + "api/status") as answer:
                assert answer.status == 200
            return address
        time.sleep(0.5)
    raise AssertionError(f"JupyterLab did not start:\n{log.read_text()}")


def view_of(page, cell):
    """The frame that a cell shows, once it is there."""
    output = page.locator(".jp-CodeCell").nth(cell).locator("iframe[srcdoc]")
    output.wait_for(timeout=400_000)
    output.scroll_into_view_if_needed()
    return output.element_handle().content_frame()


def test_views_are_drawn_and_can_be_used(chromium, lab):
    page = chromium.new_page(viewport={"width": 1280, "height": 1100})
    page.goto(f"{lab}lab/tree/views.ipynb")
    page.locator(".jp-CodeCell").first.wait_for(timeout=120_000)
    page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").wait_for(timeout=120_000)
    run_all_cells(page)
    use_views(page)
    page.close()


def run_all_cells(page):
    """Ask until the first cell runs: what is asked before the kernel is connected is lost."""
    prompt = page.locator(".jp-CodeCell").first.locator(".jp-InputPrompt")
    for _ in range(20):
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        page.wait_for_timeout(5_000)
        if prompt.inner_text() != "[ ]:":
            return
    raise AssertionError("JupyterLab runs no cell")


def use_views(page):
    PICTURES.mkdir(parents=True, exist_ok=True)
    heads = view_of(page, 0)
    heads.wait_for_selector("#pattern[data-head='0']", timeout=60_000)
    heads.locator("#heads button").nth(1).click()
    heads.wait_for_selector("#pattern[data-head='1']")
    heads.locator("#find").fill("john")
    page.keyboard.press("Enter")
    assert heads.locator("#query p").first.inner_text() == "Query ·John (4) · kept"
    page.keyboard.press("Escape")
    page.keyboard.press("ArrowDown")  # which JupyterLab does not take for its own
    assert heads.locator("#query p").first.inner_text() == "Query ·went (5) · kept"
    page.keyboard.press("ArrowRight")
    heads.wait_for_selector("#pattern[data-head='2']")
    assert heads.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.screenshot(path=PICTURES / "heads.png")
    page.emulate_media(color_scheme="dark")
    page.screenshot(path=PICTURES / "heads-dark.png")

    for cell, name in ((1, "reconstruction-dark"), (2, "patching")):
        plot = page.locator(".jp-CodeCell").nth(cell).locator(".jp-RenderedImage img")
        plot.wait_for(timeout=400_000)
        plot.scroll_into_view_if_needed()
        assert plot.evaluate("image => image.naturalWidth") > 300
        page.screenshot(path=PICTURES / f"{name}.png")
