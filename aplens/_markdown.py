"""Tables in Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


#: What stands for NaN.
_NONE = "–"


def table_lines(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """The lines of a table, and an empty one after it."""
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
    return "\n".join(table_lines([name.replace("_", " ") for name in shown], rows)).rstrip("\n")


def _format(value: Any, digits: int) -> str:
    if not isinstance(value, float):
        return str(value)
    return _NONE if math.isnan(value) else f"{value:.{digits}f}"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
