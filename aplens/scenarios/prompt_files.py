"""Prompts, with their answers where there are any, out of a CSV, JSON or text file."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from aplens._io import parse_json
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
        path: A CSV file with a header (`.csv`), JSON lines or a JSON list (`.jsonl`, `.json`) of
            objects or texts, or a text file with a prompt a line (`.txt`). The columns, or keys,
            are `prompt`, and where there are any `answer`, `wrong_answer` and `group` (what belongs
            together, such as a template). A text alone is a prompt. Blanks are kept: " Mary" and
            "Mary" are different answers.

    Returns:
        Scenarios; of a file without answers the prompts alone.

    Raises:
        FileNotFoundError: When there is no such file.
        ScenarioError: When it is no such file or has no prompts, a row lacks a value that others
            have, a column is unknown, or as `make_scenarios` does; the message names the file and
            the line.
    """
    path = Path(path)
    columns = read_columns(path)
    if "answer" not in columns:
        if len(columns) > 1:
            raise ScenarioError(f"{path} has no column 'answer', but {list(columns)[1]!r}")
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


def read_columns(path: Path) -> dict[str, list[str]]:
    """The columns that a file of prompts has, by name, `prompt` first; see `read_prompt_file`."""
    read = _READERS.get(path.suffix.lower())
    if read is None:
        raise ScenarioError(f"expected a file of prompts ({', '.join(_READERS)}), got {path}")
    try:
        rows = list(read(path))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ScenarioError(f"{path} cannot be read as prompts: {error}") from error
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
    return {name: [row[name] for _, row in rows] for name in there}


def _read_csv(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, restkey="more values than columns")
        for row in reader:
            yield reader.line_num, row


def _read_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in _lines_of(path.read_text(encoding="utf-8-sig")):
        yield number, {"prompt": line}


def _read_json(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    text = path.read_text(encoding="utf-8-sig")
    rows: Iterable[tuple[int, Any]]
    if text.lstrip().startswith("["):  # a list of all rows, or the first of lines, which is refused
        rows = enumerate(_parse(text, f"{path}, as a JSON list"), start=1)
    else:
        rows = ((n, _parse(line, f"{path}, line {n}")) for n, line in _lines_of(text))
    for number, row in rows:
        if not isinstance(row, (dict, str)):
            raise ScenarioError(
                f"{path}, line {number}: expected an object or a text, got {shorten(row)}"
            )
        yield number, row if isinstance(row, dict) else {"prompt": row}


def _lines_of(text: str) -> Iterator[tuple[int, str]]:
    """The lines that hold something, by number. `splitlines` would cut a prompt at a \\u2028."""
    lines = enumerate(text.split("\n"), start=1)
    return ((number, line) for number, line in lines if line.strip())


def _parse(text: str, where: str) -> Any:
    try:
        return parse_json(text)
    except ValueError as error:
        raise ScenarioError(f"{where}: no JSON: {error}") from error


_READERS = {
    ".csv": _read_csv,
    ".jsonl": _read_json,
    ".json": _read_json,
    ".txt": _read_lines,
}
