"""Files that appear whole or not at all, and are read as they were written or refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A name beside the file to write to; it becomes the file when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".partial-{path.name}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table as Parquet."""
    with whole_file(path) as temporary:
        table.to_parquet(temporary, index=False)


def write_document(path: Path, content: Any) -> None:
    """Write what JSON can hold, with its checksum."""
    write_text(path, json.dumps({"sha256": _checksum(content), "content": content}))


def read_document(path: Path) -> Any:
    """Read what `write_document` wrote.

    Raises:
        OSError: When the file cannot be read.
        ValueError: When it is something else, or damaged; the message names it.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["sha256"] == _checksum(document["content"]):
            return document["content"]
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise ValueError(f"{path} is damaged, delete it: {error}") from error
    raise ValueError(f"{path} is damaged, delete it: it does not match its checksum")


def claim(folder: Path, setup: Any) -> None:
    """Note what a folder's files depend on, so that they are never taken for others.

    Raises:
        ValueError: When the folder holds results of something else; what differs is named.
    """
    path, now = folder / "setup.json", json.loads(json.dumps(setup))
    if not path.exists():
        write_document(path, now)
        return
    before, now = _given(read_document(path)), _given(now)
    if different := [key for key in {**before, **now} if before.get(key) != now.get(key)]:
        raise ValueError(
            f"{folder} holds results with another {', '.join(different)}: delete it, or choose "
            "another folder with -o"
        )


def _given(value: Any) -> Any:
    """A setup without what was left out, which older versions noted as "" or 0."""
    if not isinstance(value, dict):
        return value
    return {key: _given(one) for key, one in value.items() if one not in (None, "", 0)}


def _checksum(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
