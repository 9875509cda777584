"""The programming languages that scenarios are mined from.

A language is a folder of tree-sitter queries beside this file and one line in `LANGUAGES`. Each
query file is a task, named after it; its captures say what the task's spans are:

`@span`
    The node is a span.
`@span.line_end`
    The node is a span where nothing but blanks follows it on its line.
`@line_end`
    The line break after the node is a span, where nothing but blanks stands between the two.
`@skip`
    The node is no span, whatever else captures it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Language:
    """How a language's files are found and parsed.

    Attributes:
        grammar: Name of the installed module whose `language()` is the tree-sitter grammar.
        suffixes: File name endings of its source files.
        strings: Node types of its string literals. Interpolated code stands in the syntax tree
            below them; it is part of a string all the same, and nothing inside is mined.
    """

    grammar: str
    suffixes: tuple[str, ...]
    strings: tuple[str, ...]


LANGUAGES: dict[str, Language] = {
    "java": Language("tree_sitter_java", (".java",), strings=("string_literal",)),
    "python": Language("tree_sitter_python", (".py",), strings=("string",)),
}
