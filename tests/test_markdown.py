"""Tables in Markdown."""

from __future__ import annotations

import re

import pandas as pd
import pytest
from markdown_it import MarkdownIt

from aplens._markdown import code, escape, frame_to_markdown

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


def test_bounds_share_a_cell_with_their_figure_and_nan_is_a_dash():
    frame = pd.DataFrame(
        {
            "name": ["a|b", "c"],
            "auc": [0.51234, float("nan")],
            "auc_low": [0.4, float("nan")],
            "auc_high": [0.6, float("nan")],
            "n_seen": [3, 4],
        }
    )
    assert frame_to_markdown(frame).splitlines() == [
        "| name | auc | n seen |",
        "| --- | --- | --- |",
        "| a\\|b | 0.512 [0.400, 0.600] | 3 |",
        "| c | – | 4 |",
    ]


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
    tags, shown = read(frame_to_markdown(frame))
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
