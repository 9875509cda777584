"""A study file to begin with: every setting with what it means, out of the settings themselves."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import re
import textwrap
from pathlib import Path
from typing import Any

from aplens._io import atomic_write
from aplens.study.config import (
    MAESettings,
    RankSettings,
    ScenarioSettings,
    SplitSettings,
    StudySettings,
)

_INTRODUCTION = """\
A study: which attention heads matter for a model's answers, and what they do.
Check it with `aplens run --plan FILE`, run it with `aplens run FILE`.
A line that begins with "# " before its key is left out: take the sign away to set it."""

#: What a first study does: an AP-MAE that comes with the package, so that nothing is trained.
_FIRST = StudySettings(
    title="My study",
    scenarios=(ScenarioSettings(per_task=60, per_file=3, context_length=128),),
    split=SplitSettings(autoencoder=0.0, fit=0.5, rank=0.3, ablate=0.2),
    mae=MAESettings(pretrained="aplens-base"),
    rank=RankSettings(reducer="pca"),
)


def write_template(path: str | os.PathLike[str]) -> Path:
    """Write a commented study file that runs as it is, where there is none, and return its path."""
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path} is there already: choose another name")
    with atomic_write(path) as temporary:
        temporary.write_text(_describe(_FIRST), encoding="utf-8")
    return path


def _describe(settings: StudySettings) -> str:
    lines = [_comment(_INTRODUCTION), "", f"title = {json.dumps(settings.title)}"]
    lines += [f"seed = {settings.seed}  # of everything that is drawn at random"]
    for field in dataclasses.fields(settings):
        table = getattr(settings, field.name)
        table = table[0] if isinstance(table, tuple) else table
        if dataclasses.is_dataclass(table):
            lines += ["", "", *_describe_table(field.name, table)]
    return "\n".join(lines) + "\n"


def _describe_table(name: str, table: Any) -> list[str]:
    summary, meanings = _read_docstring(inspect.getdoc(table) or "")
    lines = [_comment(summary), f"[{name}]"]
    nested = []
    for field in dataclasses.fields(table):
        value = getattr(table, field.name)
        comment = _comment(meanings[field.name])
        if isinstance(value, dict):
            nested += ["", comment, f"[{name}.{field.name}]"]
        elif value is None:
            lines += ["", comment, f"# {field.name} ="]
        else:
            lines += ["", comment, f"{field.name} = {_to_toml(value)}"]
    return lines + nested


def _read_docstring(text: str) -> tuple[str, dict[str, str]]:
    """The part before "Attributes:", and what is said of each of them."""
    summary, _, attributes = text.partition("Attributes:\n")
    found = re.findall(r"^    (\w+): (.*(?:\n {8,}.*)*)", attributes, re.MULTILINE)
    summary = re.sub(r"^`\[\w+\]`: ", "", summary)
    return _join(summary.split("; see `")[0]), {name: _join(meaning) for name, meaning in found}


def _join(text: str) -> str:
    sentence = " ".join(text.split()).rstrip(".")
    return sentence[:1].upper() + sentence[1:] + "."


def _comment(text: str) -> str:
    wrapped = [textwrap.wrap(line, 96) for line in text.splitlines()]
    return "\n".join(f"# {line}" for lines in wrapped for line in lines)


def _to_toml(value: Any) -> str:
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)
