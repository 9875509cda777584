"""The languages that scenarios are mined from.

A programming language is a folder of tree-sitter queries beside this file and one line in
`LANGUAGES`. Each query file is a task, named after it; its captures say what the task's spans are:

`@span`
    The node is a span.
`@span.line_end`
    The node is a span where nothing but blanks follows it on its line.
`@line_end`
    The line break after the node is a span, where nothing but blanks stands between the two.
`@skip`
    The node is no span, whatever else captures it.

A natural language has no grammar to parse by: its line in `LANGUAGES` has a regular expression for
each task, which matches the task's spans.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Language:
    """How a language's files are found, and its tasks' spans in them.

    Attributes:
        suffixes: File name endings of its files.
        patterns: Of a natural language, by task, a regular expression that matches its spans.
        grammar: Of a programming language, the name of the installed module whose `language()` is
            the tree-sitter grammar.
        strings: Node types of its string literals. Interpolated code stands in the syntax tree
            below them; it is part of a string all the same, and nothing inside is mined.
        blocks: Node types whose children are statements, declarations or members. An error spoils
            the child that it stands in and none beside it.
    """

    suffixes: tuple[str, ...]
    patterns: Mapping[str, str] = field(default_factory=dict)
    grammar: str = ""
    strings: tuple[str, ...] = ()
    blocks: tuple[str, ...] = ()


_PROSE_TASKS = {
    # After a word, a comma or a semicolon: no word that begins a sentence, a heading or an item.
    "word": r"(?<=[\w,;][ \n])[^\W\d_]+(?:['’-][^\W\d_]+)*(?=[.,;:?!)]*\s)",
    # At the end of a word only: not in 1.5, aplens.scenarios or a::b.
    "punctuation": r"(?<=[^\W_])[.,;:?!](?=[\"'”’)]*(?:\s|\Z))",
}

LANGUAGES: dict[str, Language] = {
    "java": Language(
        (".java",),
        grammar="tree_sitter_java",
        strings=("string_literal",),
        blocks=(
            "annotation_type_body",
            "block",
            "class_body",
            "constructor_body",
            "enum_body",
            "enum_body_declarations",
            "interface_body",
            "switch_block",
        ),
    ),
    "python": Language(
        (".py",), grammar="tree_sitter_python", strings=("string",), blocks=("block",)
    ),
    "prose": Language((".txt", ".md", ".rst"), _PROSE_TASKS),
}
