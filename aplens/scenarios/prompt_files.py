"""Prompts with their answers out of a CSV or JSON lines file."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aplens._words import shorten
from aplens.prompts import Prompts, read_prompts
from aplens.scenarios.own import make_scenarios
from aplens.scenarios.scenario import ScenarioError, Scenarios

#: What a file's columns, or an object's keys, are called.
_COLUMNS = ("prompt", "answer", "wrong_answer", "group")


def read_prompt_file(model: Any, path: str | os.PathLike[str]) -> Scenarios | Prompts:
    """Read prompts, with their answers where the file has them.

    Args:
        model: A HookedTransformer or TransformerBridge, for its tokenizer.
        path: A CSV file with a header, or JSON lines (`.jsonl`, `.json`), an object a line. The
            columns, or keys, are `prompt`, and where there are any `answer`, `wrong_answer` and
            `group` (what belongs together, such as a template). Blanks are kept: " Mary" and "Mary"
            are different answers.

    Returns:
        Scenarios; of a file without answers the prompts alone.

    Raises:
        FileNotFoundError: When there is no such file.
        ScenarioError: When it has no prompts, a row lacks a value that others have, a column is
            unknown, or as `make_scenarios` does; the message names the file and the line.
    """
    path = Path(path)
    rows = list(_read_json_lines(path) if path.suffix in (".jsonl", ".json") else _read_csv(path))
    if not rows:
        raise ScenarioError(f"{path} has no prompts")
    there = [name for name in _COLUMNS if any(name in row for _, row in rows)]
    for line, row in rows:
        if unknown := [str(name) for name in row if name not in _COLUMNS]:
            raise ScenarioError(
                f"{path}, line {line}: unknown column {shorten(unknown[0])}; known are "
                f"{', '.join(_COLUMNS)}"
            )
        for name in dict.fromkeys(["prompt", *there]):
            if not isinstance(row.get(name), str) or not row[name]:
                got = shorten(row.get(name))
                raise ScenarioError(f"{path}, line {line}: expected a text as {name}, got {got}")
    columns = {name: [row[name] for _, row in rows] for name in there}
    if "answer" not in columns:
        if len(columns) > 1:
            raise ScenarioError(f"{path} has no column 'answer', but {there[1]!r}")
        return read_prompts(model, columns["prompt"])
    try:
        return make_scenarios(
            model,
            columns["prompt"],
            columns["answer"],
            columns.get("wrong_answer"),
            groups=columns.get("group"),
            task=path.stem,
        )
    except ScenarioError as error:
        raise ScenarioError(f"{path}: {error}") from error


def _read_csv(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, restkey="more values than columns")
        for row in reader:
            yield reader.line_num, row


def _read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ScenarioError(f"{path}, line {number}: no JSON: {error}") from error
        if not isinstance(row, dict):
            raise ScenarioError(f"{path}, line {number}: expected an object, got {shorten(row)}")
        yield number, row
