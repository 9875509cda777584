"""The documentation site: built strictly, complete, offline, and its code runs as it stands.

Blocks marked `python` run, page by page from top to bottom; those marked `py` are sketches with
names or files of the reader's own.
"""

from __future__ import annotations

import functools
import http.server
import os
import re
import shlex
import subprocess
import sys
import textwrap
import threading
from html.parser import HTMLParser
from inspect import ismodule
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from outputs import assert_same_output

import aplens
from aplens.study import StudySettings

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
#: Python that runs, and the output that a page shows right below it.
BLOCK = re.compile(
    r"^( *)```python\n(.*?)^\1```(?:\n\n```text\n(.*?)^```)?", flags=re.DOTALL | re.MULTILINE
)
RUNNABLE = (
    "../README.md",
    "index.md",
    "getting-started.md",
    "examples/paper/README.md",
    *sorted(f"how-to/{p.name}" for p in DOCS.glob("how-to/*")),
)


def blocks_of(page: str) -> list[tuple[str, str]]:
    text = (DOCS / page).read_text(encoding="utf-8")
    return [(textwrap.dedent(code), shown) for _, code, shown in BLOCK.findall(text)]


PAGES_WITH_CODE = [page for page in RUNNABLE if blocks_of(page)]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("mkdocs", reason="the group `docs` is not installed")
    folder = tmp_path_factory.mktemp("site")
    result = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return folder


class Page(HTMLParser):
    """A page's tags with their attributes, and what it loads when it is opened."""

    def __init__(self, path):
        super().__init__()
        self.tags = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    @property
    def ids(self):
        return {attributes["id"] for _, attributes in self.tags if "id" in attributes}

    @property
    def loaded(self):
        for tag, attributes in self.tags:
            if tag == "link" and attributes.get("rel") != "canonical":
                yield attributes["href"]
            elif tag != "a" and attributes.get("src"):
                yield attributes["src"]


@pytest.fixture(scope="module")
def loaded():
    """`load_model` and `rank_heads` for all pages: what several of them ask for is made once."""
    load, rank = functools.cache(aplens.load_model), aplens.rank_heads
    rankings: list[tuple[aplens.Scenarios, dict, aplens.HeadRanking]] = []

    def rank_once(model, scenarios, **options):
        if "mae" in options:
            return rank(model, scenarios, **options)
        for known, with_options, ranking in rankings:
            if known == scenarios and with_options == options:
                return ranking
        rankings.append((scenarios, options, rank(model, scenarios, **options)))
        return rankings[-1][-1]

    return {"load_model": load, "rank_heads": rank_once}


@pytest.mark.real
@pytest.mark.parametrize("page", PAGES_WITH_CODE)
def test_a_pages_code_runs_as_it_stands(page, loaded, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, function in loaded.items():
        monkeypatch.setattr(aplens, name, function)
    names: dict[str, object] = {}
    for code, shown in blocks_of(page):
        capsys.readouterr()
        exec(compile(code, page, "exec"), names)
        if shown:
            assert_same_output(capsys.readouterr().out, shown)
    if page == "getting-started.md":
        assert len(names["ranking"]) == 270
    if page == "how-to/score-heads.md":
        assert {"error", "relative_error", "variation", "template"} <= set(names["table"].columns)
    if page == "how-to/look.md":
        assert (tmp_path / "heads.html").stat().st_size > 10_000


@pytest.mark.parametrize("page", ["../README.md", "getting-started.md"])
def test_what_is_printed_is_shown(page):
    for code, shown in blocks_of(page):
        assert ("print(" in code) == bool(shown), code


@pytest.mark.parametrize("page", sorted(DOCS.glob("results/**/*.md")), ids=lambda page: page.stem)
def test_results_can_be_read(page):
    text = page.read_text(encoding="utf-8")
    tables = re.compile(r"(?:^\|.*\n)+", flags=re.MULTILINE)
    assert len(tables.sub("", text).split()) < 1200
    for table in tables.findall(text):
        rows = table.splitlines()
        assert len(rows) - 2 <= 10, rows[0]
        assert rows[0].count("|") - 1 <= 5, rows[0]


def test_the_important_pages_have_code_that_runs():
    pages = {
        "../README.md",
        "getting-started.md",
        "how-to/rank-heads.md",
        "how-to/path-patching.md",
    }
    assert pages <= set(PAGES_WITH_CODE)


def test_commands_in_the_docs_exist():
    from typer.main import get_command

    from aplens.cli import app
    from paper.__main__ import app as paper

    pages = [*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "examples" / "paper" / "README.md"]
    pages.remove(DOCS / "changelog.md")  # it may name what is gone
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    fenced = re.findall(r"^ *```(?:\w+)?\n(.*?)^ *```$", text, re.DOTALL | re.MULTILINE)
    code = "\n".join([*fenced, *re.findall("`([^`\n]+)`", text)])
    targets = set(re.findall(r"^ *make ([a-z0-9-]+)", code, re.MULTILINE))
    commands = set(re.findall(r"^ *aplens ([a-z]+)", code, re.MULTILINE))
    assert {"demo", "docs-pictures"} <= targets
    of_paper = set(re.findall(r"\bpython -m paper ([a-z][a-z-]*)", code))
    assert {"run", "train"} <= commands
    assert {"evaluate", "catalogue", "predict", "gates", "handoff"} <= of_paper
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert targets <= set(re.findall(r"^([a-z0-9-]+):", makefile, re.MULTILINE))
    assert commands <= set(get_command(app).commands)
    assert of_paper <= set(get_command(paper).commands)


def test_settings_that_the_results_commands_change_exist():
    checked = 0
    for page in DOCS.glob("results/**/*.md"):
        for line in page.read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
            if found := re.match(r"(?:JAVA_HOME=… )?aplens (?:run|train) (.*\.toml.*)", line):
                study, *words = shlex.split(found[1], comments=True)
                changes = [b for a, b in pairwise(words) if a == "--set"]
                StudySettings.from_toml(ROOT / "examples" / study, changes)
                checked += len(changes)
    assert checked > 5


def test_study_files_in_the_docs_exist():
    pages = [*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "examples" / "paper" / "README.md"]
    pages += [*(ROOT / "aplens").rglob("README.md")]
    for page in pages:
        named = re.findall(
            r"(?<![\w/])((?:examples/)?(?:paper/)?studies/[\w.-]+\.toml)",
            page.read_text(encoding="utf-8"),
        )
        for name in named:  # from the root, or in examples/, where the paper's part runs
            assert (ROOT / name).exists() or (ROOT / "examples" / name).exists(), (page, name)


def test_pictures_are_small_and_shown():
    text = "\n".join(page.read_text(encoding="utf-8") for page in DOCS.rglob("*.md"))
    pictures = sorted(DOCS.glob("images/*"))
    assert len(pictures) >= 6
    for picture in pictures:
        assert picture.stat().st_size < 100_000, picture.name
        assert f"images/{picture.name})" in text, picture.name


def test_the_map_of_heads_is_small_and_linked():
    page = DOCS / "assets" / "map.html"
    assert page.stat().st_size < 3_000_000
    assert "heads of smollm2-135m, gemma3-270m" in page.read_text(encoding="utf-8")
    how_to = (DOCS / "how-to" / "map-heads.md").read_text(encoding="utf-8")
    assert "(../assets/map.html)" in how_to


def test_every_public_name_is_in_the_reference(site):
    documented = set().union(*(Page(path).ids for path in site.glob("reference/*/index.html")))
    public = {name: getattr(aplens, name) for name in aplens.__all__}
    homes = {name: found.__module__ for name, found in public.items() if not ismodule(found)}
    missing = [
        name
        for name, home in homes.items()
        if not any(f"{module}.{name}" in documented for module in (home, home.rpartition(".")[0]))
    ]
    assert missing == []
    overview = (site / "reference" / "index.html").read_text(encoding="utf-8")
    assert [name for name in homes if f"<code>{name}</code>" not in overview] == []
    assert "aplens.heads.HeadRanking.top" in documented  # methods too


def test_links_within_the_site_lead_somewhere(site):
    broken = []
    for path in site.rglob("*.html"):
        for tag, attributes in Page(path).tags:
            link = urlsplit(attributes.get("href") or "")
            if tag != "a" or link.scheme or link.netloc or not link.path or path.name == "404.html":
                continue
            target = path.parent / unquote(link.path)
            if not (target / "index.html" if target.is_dir() else target).is_file():
                broken.append(f"{path.relative_to(site)}: {link.path}")
    assert broken == []


def test_nothing_comes_from_another_server(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for path in pages:
        loaded = list(Page(path).loaded)
        assert loaded or path == site / "assets" / "map.html"  # which has all in itself
        assert [url for url in loaded if urlsplit(url).netloc] == [], path
    for path in site.rglob("*.css"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"@import|url\([\"']?(?:https?:)?//", text), path


@pytest.fixture(scope="module")
def served(site):
    """The site's address on this machine."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Quiet, directory=str(site))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.browser
@pytest.mark.parametrize(
    "page_path",
    [
        "",
        "getting-started/",
        "concepts/",
        "reference/patterns/",
        "results/claims/correctness-scenarios/",
    ],
)
@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 400)])
def test_pages_render_offline(served, chromium, page_path, scheme, width):
    context = chromium.new_context(color_scheme=scheme, viewport={"width": width, "height": 900})
    page = context.new_page()
    logged, requested = [], []
    page.on("console", lambda message: logged.append(message.text))
    page.on("pageerror", lambda error: logged.append(str(error)))
    page.on("request", lambda request: requested.append(request.url))
    page.goto(served + page_path)
    page.wait_for_load_state("networkidle")
    own = (served, "data:", "blob:")
    assert logged == []
    assert [url for url in requested if not url.startswith(own)] == []
    assert page.locator("h1").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    boxes = "pre code, .md-typeset__scrollwrap" if width >= 560 else "pre code"
    assert page.evaluate(  # no line of code and no column is cut
        f"[...document.querySelectorAll('article :is({boxes})')]"
        ".every(box => box.scrollWidth <= box.clientWidth + 1)"
    )
    assert page.evaluate("[...document.images].every(image => image.naturalWidth > 100)")
    assert page.locator("body").get_attribute("data-md-color-scheme") == (
        "slate" if scheme == "dark" else "default"
    )
    context.close()


@pytest.mark.browser
def test_search_finds_a_name(served, chromium):
    page = chromium.new_page(viewport={"width": 1300, "height": 900})
    page.goto(served)
    page.fill("input.md-search__input", "collect_patterns")
    page.wait_for_selector("a.md-search-result__link", timeout=10_000)
    found = page.locator("a.md-search-result__link").evaluate_all("as => as.map(a => a.href)")
    assert any("reference/patterns/" in link for link in found)
    page.close()
