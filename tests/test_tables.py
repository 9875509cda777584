"""Tables as Markdown, HTML and text."""

from __future__ import annotations

import re

import pandas as pd
import pytest
from markdown_it import MarkdownIt

from aplens.tables import Table, code, escape

HOSTILE = [
    "</title><script>alert(1)</script>",
    '<img src="x" onerror="alert(1)">',
    "&lt;b&gt; &amp; &copy;",
    "[a](https://example.com) ![b](x.png) [c]: d <https://example.com>",
    "*a* _b_ __c__ ~~d~~ `e` ``f`` snake_case _",
    "C# ## of {: onclick=alert(1) } \\ \\* \\<i>",
    "a | b \\| c",
    "one\n# two\r\n- three\u2028\n\n<b>four",
]


FRAME = pd.DataFrame(
    {
        "name": ["a|b", "c"],
        "auc": [-0.51234, float("nan")],
        "auc_low": [-0.6, float("nan")],
        "auc_high": [0.4, float("nan")],
        "n_seen": [3, 4],
    }
)


def test_bounds_share_a_cell_with_their_figure_and_nan_is_a_dash():
    assert Table.from_frame(FRAME).to_markdown().splitlines() == [
        "| name | auc | n seen |",
        "| --- | --- | --- |",
        "| a\\|b | -0.512 [-0.600, 0.400] | 3 |",
        "| c | – | 4 |",
    ]
    assert Table.from_frame(FRAME, caption="Some *figures*").to_text().splitlines() == [
        "Some *figures*",
        "name  auc                     n seen",
        "a|b   -0.512 [-0.600, 0.400]  3",
        "c     –                       4",
    ]


def test_columns_are_chosen_named_and_formatted():
    columns = {"n_seen": "seen", "auc": "points", "gone": "gone"}
    table = Table.from_frame(FRAME, columns, formats={"auc": "+.1%"})
    assert table.headers == ["seen", "points"]
    assert table.rows == [["3", "-51.2 [-60.0, +40.0]"], ["4", "–"]]


def test_a_page_has_a_true_minus_and_nothing_hidden():
    hostile = "<script>\u202e"
    page = Table.from_frame(FRAME.assign(name=hostile), caption=hostile).to_html()
    assert "<td>−0.512\u00a0[−0.600,\u00a00.400]</td>" in page
    assert "<script" not in page
    assert "\u202e" not in page
    assert page.count(r"&lt;script&gt;\u{202E}") == 3  # the caption, and each row's name


def read(text):
    """The text that a reader of the page sees, by tag; nothing but the tags of `text` is there."""
    page = MarkdownIt("gfm-like", {"linkify": False}).render(text)
    tags = re.findall(r"<(\w+)", page)
    shown = [
        part.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", '"').replace("&amp;", "&")
        for part in re.findall(r">([^<>]*)<", page)
    ]
    return tags, [part for part in shown if part.strip()]


@pytest.mark.parametrize("text", HOSTILE)
def test_text_out_of_data_reads_as_it_stands_in_headings_and_tables(text):
    one_line = " ".join(re.split(r"[\n\r\u2028]+", text))
    assert read(f"# {escape(text)}") == (["h1"], [one_line])
    frame = pd.DataFrame({text: [text]})
    tags, shown = read(Table.from_frame(frame).to_markdown())
    assert tags == ["table", "thead", "tr", "th", "tbody", "tr", "td"]
    assert shown == [one_line.replace("_", " ").strip(), one_line]


@pytest.mark.parametrize("text", HOSTILE)
def test_code_out_of_data_stays_code(text):
    one_line = " ".join(re.split(r"[\n\r\u2028]+", text))
    assert read(f"Command: {code(text)}.") == (["p", "code"], ["Command: ", one_line, "."])


def test_plain_names_are_not_littered_with_escapes():
    plain = "aplens run x.toml: toward_incorrect, 5 heads (+0.5 %)"
    assert escape(plain) == plain
    assert code(plain) == f"`{plain}`"
