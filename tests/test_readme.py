"""The README: it is short, and its links lead into the repository (test_docs.py runs its code)."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_fits_on_two_screens():
    prose = re.sub(r"```.*?```", "", README, flags=re.DOTALL)
    assert len(re.sub(r"\]\([^)]*\)", "]", prose).split()) <= 600


def test_the_readmes_links_and_commands_exist():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    repository = project["urls"]["Repository"]
    raw = repository.replace("github.com", "raw.githubusercontent.com")
    inside = re.findall(rf"\]\((?:{repository}/(?:blob|tree)|{raw})/main/([^)#]+)\)", README)
    assert len(inside) >= 6
    for target in inside:
        assert (ROOT / target).exists(), target
    relative = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert relative == []  # an index shows the README without the repository around it
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for command in re.findall(r"^make (\w+)", README, flags=re.MULTILINE):
        assert re.search(rf"^{command}:", makefile, flags=re.MULTILINE), command
