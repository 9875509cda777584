"""Text and tables in Markdown, in which names out of data stay what they are."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


#: What stands for NaN.
_NONE = "–"

#: What HTML would read as its own; Markdown lets HTML through.
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
#: What begins or ends markup inside a line. An underscore between letters is none.
_MARKUP = re.compile(r"[\\`*\[\]{}~#|]|(?<![^\W_])_|_(?![^\W_])")
_ENTITY = re.compile("[&<>]")
_LINE_ENDS = re.compile(r"[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]+")


def escape(text: str) -> str:
    """Text that reads in Markdown as it stands, on one line: neither markup nor HTML."""
    line = _LINE_ENDS.sub(" ", text)
    marked = _MARKUP.sub(lambda found: "\\" + found[0], line)
    return _ENTITY.sub(lambda found: _ENTITIES[found[0]], marked)


def code(text: str) -> str:
    """Text as code inside a line. Backslashes stay in code, so that its fence has to be longer."""
    line = _LINE_ENDS.sub(" ", text)
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    pad = " " if "`" in line else ""
    return f"{fence}{pad}{line}{pad}{fence}"


def table_lines(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """The lines of a table of Markdown, and an empty one after it; texts of data are escaped."""
    yield _row(header)
    yield _row(["---"] * len(header))
    for row in rows:
        yield _row(row)
    yield ""


def frame_to_markdown(frame: pd.DataFrame, digits: int = 3) -> str:
    """A whole data frame: `name`, `name_low` and `name_high` share a cell, "0.5 [0.4, 0.6]"."""
    names = [str(name) for name in frame.columns]
    bounds = {f"{name}_{end}" for name in names for end in ("low", "high")} & set(names)
    shown = [name for name in names if name not in bounds]

    def cell(row: Any, name: str) -> str:
        text = _format(row[name], digits)
        if f"{name}_low" in bounds and text != _NONE:
            ends = (_format(row[f"{name}_{end}"], digits) for end in ("low", "high"))
            text += f" [{', '.join(ends)}]"
        return text

    rows = ([cell(row, name) for name in shown] for _, row in frame.iterrows())
    header = [escape(name.replace("_", " ")) for name in shown]
    return "\n".join(table_lines(header, rows)).rstrip("\n")


def _format(value: Any, digits: int) -> str:
    if not isinstance(value, float):
        return escape(str(value))
    return _NONE if math.isnan(value) else f"{value:.{digits}f}"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
