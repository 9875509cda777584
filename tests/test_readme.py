"""The README's Python, as it stands, on the real model."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """Where a reader would be: with Java sources at the README's path."""
    from aplens.scenarios import find_jdk_source

    source = find_jdk_source()
    if source is None:
        pytest.skip("no JDK with sources here")
    folder = tmp_path / "path" / "to" / "java"
    folder.mkdir(parents=True)
    with zipfile.ZipFile(source) as archive:
        names = [name for name in archive.namelist() if name.startswith("java.base/java/util/")]
        for number, name in enumerate(names[:60]):
            (folder / f"{number}.java").write_bytes(archive.read(name))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.real
def test_the_readmes_python_runs_as_it_stands(reader):
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) == 4
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert names["table"].to_frame()["recovered"].abs().max() > 0.1
    assert names["patterns"].values.shape[1] == 6
    assert names["embeddings"].shape[:2] == names["patterns"].values.shape[:2]
    assert names["surprise"].sum(-1).abs().max() < 1e-3  # both are shares of all attention
    assert len(names["ranking"]) == 270
    assert len(names["ranking"].measured) == 58  # the first 40, and the first two layers
    assert list(names["errors"]["features"]) == ["confidence", "surprise+unexpected+confidence"]


def test_the_readmes_links_and_commands_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
    makefile = (ROOT / "Makefile").read_text()
    for command in re.findall(r"^make (\w+)", README, flags=re.MULTILINE):
        assert re.search(rf"^{command}:", makefile, flags=re.MULTILINE), command
