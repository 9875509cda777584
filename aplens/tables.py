"""Tables of figures, and text out of data, as HTML, Markdown and plain text."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aplens._words import displayable

if TYPE_CHECKING:
    import pandas as pd

#: Rows of a result's table in a notebook.
SHOWN_ROWS = 10

#: What stands for a missing figure.
_NONE = "–"

#: A figure, alone or with its interval.
_FIGURE = re.compile(r"[-+\d.e]+( \[[-+\d.e]+, [-+\d.e]+\])?")

#: What HTML would read as its own; Markdown lets HTML through.
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
#: What begins or ends markup inside a line. An underscore between letters is none.
_MARKUP = re.compile(r"[\\`*\[\]{}~#|]|(?<![^\W_])_|_(?![^\W_])")
_ENTITY = re.compile("[&<>]")
_LINE_ENDS = re.compile(r"[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]+")


@dataclass(frozen=True)
class Table:
    """Formatted figures, shown the same wherever they are read.

    Attributes:
        headers: What each column is called.
        rows: Their texts, as they are to be read; the first one names the row.
        caption: What the table shows.
    """

    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""

    @classmethod
    def from_frame(
        cls,
        frame: pd.DataFrame,
        columns: Mapping[str, str] | Iterable[str] | None = None,
        *,
        caption: str = "",
        formats: Mapping[str, str] | None = None,
    ) -> Table:
        """A data frame's columns; `x`, `x_low` and `x_high` share a cell, "0.585 [0.551, 0.620]".

        Args:
            frame: The figures. A missing one is a dash.
            columns: Which to show and in which order, or what to call each (default: all by their
                names); those that the frame lacks are left out.
            caption: What the table shows.
            formats: How to write the fractions of a column, as for `format`; as ".3f" where it does
                not say. Of one in "%" the sign is left out: the column's name says it.
        """
        if columns is None:
            ends = {f"{name}_{end}" for name in frame for end in ("low", "high")}
            columns = [str(name) for name in frame if name not in ends]
        if not isinstance(columns, Mapping):
            columns = {name: name.replace("_", " ") for name in columns}
        shown = {name: header for name, header in columns.items() if name in frame}
        specs = {name: (formats or {}).get(name, ".3f") for name in shown}
        rows = [
            [_cell(row, name, spec) for name, spec in specs.items()]
            for _, row in frame.astype(object).iterrows()
        ]
        return cls(list(shown.values()), rows, caption)

    def to_markdown(self) -> str:
        """The caption as a heading, and the table in GitHub's Markdown."""
        lines = [f"## {escape(self.caption)}", ""] if self.caption else []
        for row in (self.headers, ["---"] * len(self.headers), *self.rows):
            cells = (text if _FIGURE.fullmatch(text) else escape(text) for text in row)
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)

    def to_html(self) -> str:
        """A `<table>`; all text in it is escaped, and can be seen."""
        head = "".join(f'<th scope="col">{_to_html(header)}</th>' for header in self.headers)
        body = "".join(
            f'<tr><th scope="row">{_to_html(name)}</th>'
            + "".join(f"<td>{_to_html(text)}</td>" for text in texts)
            + "</tr>\n"
            for name, *texts in self.rows
        )
        return (
            f"<table>\n<caption>{_to_html(self.caption)}</caption>\n"
            f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>"
        )

    _repr_html_ = to_html

    def to_text(self) -> str:
        """The caption, and columns of equal width for the terminal."""
        rows = [[displayable(text) for text in row] for row in (self.headers, *self.rows)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        return "\n".join([displayable(self.caption), *lines] if self.caption else lines)


class Shown:
    """A result: its `repr` is one line, and a notebook shows that line above a table."""

    def _shown_rows(self) -> pd.DataFrame:
        """What the notebook's table holds, the first row first."""
        raise NotImplementedError

    def _repr_html_(self) -> str:
        rows = self._shown_rows()
        caption = repr(self)
        if len(rows) > SHOWN_ROWS:
            caption += f": the first {SHOWN_ROWS} of {len(rows)} rows, to_frame() has all"
        return Table.from_frame(rows.head(SHOWN_ROWS), caption=caption).to_html()


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


def _cell(row: Any, name: str, spec: str) -> str:
    value, *ends = (
        _format(row[key], spec) for key in (name, f"{name}_low", f"{name}_high") if key in row
    )
    return value if _NONE in (value, *ends) or len(ends) < 2 else f"{value} [{', '.join(ends)}]"


def _format(value: Any, spec: str) -> str:
    import pandas as pd

    if pd.isna(value):
        return _NONE
    return format(value, spec).rstrip("%") if isinstance(value, float) else str(value)


def _to_html(text: str) -> str:
    if _FIGURE.fullmatch(text):  # a minus, and no break inside an interval
        return text.replace("-", "−").replace(" ", "\u00a0")
    return html.escape(displayable(text))
