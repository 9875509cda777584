"""Tasks: where in a file a prompt may stop, found in its syntax tree or, in prose, its text."""

from __future__ import annotations

import importlib
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from importlib import resources
from typing import NamedTuple

import numpy as np
import tree_sitter

from aplens._words import shorten
from aplens.scenarios.languages import LANGUAGES, Language
from aplens.scenarios.scenario import ScenarioError
from aplens.scenarios.unparsed import ByteRange, find_unparsed

RANDOM_TASK = "random"
"""The one task that every language has: a run of 3 to 10 tokens anywhere in the file."""

MAX_DEPTH = 500
"""Levels of the deepest syntax tree that is searched: a search takes the square of the depth."""

_QUERIES = resources.files("aplens.scenarios.languages")
_LINE_BREAK = re.compile(rb"[ \t\f]*(\r\n|\n|\r)")


class Span(NamedTuple):
    """A stretch of a file, in characters, its end excluded."""

    start: int
    end: int


def get_language(name: str) -> Language:
    """The language of that name."""
    if name not in LANGUAGES:
        raise ScenarioError(f"unknown language {shorten(name)}; there are {sorted(LANGUAGES)}")
    return LANGUAGES[name]


def list_tasks(language: str = "java") -> tuple[str, ...]:
    """Names of a language's tasks: `random`, then one for each of its queries or patterns."""
    if patterns := get_language(language).patterns:
        return (RANDOM_TASK, *sorted(patterns))
    names = (entry.name for entry in (_QUERIES / language).iterdir())
    return (RANDOM_TASK, *sorted(name.removesuffix(".scm") for name in names if ".scm" in name))


def parse(text: str, language: str) -> SourceText | SourceTree:
    """A file of a language, parsed in that language's way."""
    return (SourceText if get_language(language).patterns else SourceTree)(text, language)


class SourceText:
    """A text in a natural language, which has no syntax tree."""

    is_too_deep = False

    def __init__(self, text: str, language: str) -> None:
        self.unparsed: list[Span] = []
        self._text = text
        self._patterns = get_language(language).patterns

    def spans(self, task: str) -> list[Span]:
        """Where a task's spans are, in the order of the text."""
        return [Span(*match.span()) for match in re.finditer(self._patterns[task], self._text)]


class SourceTree:
    """A source file in a programming language, parsed."""

    def __init__(self, text: str, language: str) -> None:
        self._language = language
        self._source = text.encode()
        self._root = tree_sitter.Parser(_grammar(language)).parse(self._source).root_node
        self._is_ascii = text.isascii()

    @cached_property
    def unparsed(self) -> list[Span]:
        """The statements with code that the parser does not know, in the order of the file.

        Nothing is mined from them. The blocks below such a statement are no part of it, and so a
        class with an error in one method has its other methods.
        """
        return [self._span(place) for place in self._unparsed]

    @cached_property
    def _unparsed(self) -> list[ByteRange]:
        return find_unparsed(self._root, get_language(self._language).blocks)

    @property
    def is_too_deep(self) -> bool:
        """Whether some node lies more than `MAX_DEPTH` below the root."""
        cursor, depth = self._root.walk(), 0
        while depth <= MAX_DEPTH:
            if cursor.goto_first_child():
                depth += 1
                continue
            while not cursor.goto_next_sibling():
                if not cursor.goto_parent():
                    return False
                depth -= 1
        return True

    def spans(self, task: str) -> list[Span]:
        """Where a query task's spans are, in the order of the file.

        None is inside a string, and none in code that could not be parsed (see `unparsed`).
        Comments need no such care: they are leaves of the tree.
        """
        captures = tree_sitter.QueryCursor(_query(self._language, task)).captures(self._root)
        skipped = {node.byte_range for node in captures.pop("skip", ())}
        found = {
            span
            for capture, nodes in captures.items()
            for node in nodes
            if node.byte_range not in skipped
            and not node.is_missing
            and (span := _CAPTURES[capture](self._source, node)) is not None
            and not self._is_inside_string(span)
            and not overlap(self._unparsed, node.start_byte, span[1])
        }
        return [self._span(place) for place in sorted(found)]

    def _is_inside_string(self, span: ByteRange) -> bool:
        """Whether a string literal contains the span and is not the span itself."""
        index = bisect_right(self._strings, span[0], key=lambda string: string[0]) - 1
        if index < 0:
            return False
        string = self._strings[index]
        return span != string and span[1] <= string[1]

    @cached_property
    def _strings(self) -> list[ByteRange]:
        """Byte ranges of the outermost string literals, in the order of the file."""
        query = _string_query(self._language)
        captures = tree_sitter.QueryCursor(query).captures(self._root)
        outermost: list[ByteRange] = []
        for start, end in sorted(node.byte_range for node in captures.get("string", ())):
            if not outermost or start >= outermost[-1][1]:
                outermost.append((start, end))
        return outermost

    def _span(self, place: ByteRange) -> Span:
        return Span(*map(self._character, place))

    def _character(self, byte: int) -> int:
        return byte if self._is_ascii else int(self._characters_before[byte])

    @cached_property
    def _characters_before(self) -> np.ndarray:
        """Number of characters that begin before each byte, and before the file's end."""
        first_bytes = (np.frombuffer(self._source, dtype=np.uint8) & 0xC0) != 0x80
        return np.concatenate([[0], np.cumsum(first_bytes)])


def overlap(places: Sequence[tuple[int, int]], start: int, end: int) -> bool:
    """Whether any of these places, which are in order, shares something with a stretch of text."""
    index = bisect_left(places, end, key=lambda place: place[0]) - 1  # the last that begins before
    return index >= 0 and places[index][1] > start


def _whole_node(source: bytes, node: tree_sitter.Node) -> ByteRange | None:
    return node.byte_range


def _node_at_line_end(source: bytes, node: tree_sitter.Node) -> ByteRange | None:
    return node.byte_range if _LINE_BREAK.match(source, node.end_byte) else None


def _break_after_node(source: bytes, node: tree_sitter.Node) -> ByteRange | None:
    line_break = _LINE_BREAK.match(source, node.end_byte)
    return line_break.span(1) if line_break else None


_CAPTURES: dict[str, Callable[[bytes, tree_sitter.Node], ByteRange | None]] = {
    "span": _whole_node,
    "span.line_end": _node_at_line_end,
    "line_end": _break_after_node,
}


@lru_cache
def _grammar(language: str) -> tree_sitter.Language:
    module = importlib.import_module(get_language(language).grammar)
    return tree_sitter.Language(module.language())


@lru_cache
def _query(language: str, task: str) -> tree_sitter.Query:
    text = (_QUERIES / language / f"{task}.scm").read_text(encoding="utf-8")
    return tree_sitter.Query(_grammar(language), text)


@lru_cache
def _string_query(language: str) -> tree_sitter.Query:
    kinds = " ".join(f"({kind})" for kind in get_language(language).strings)
    return tree_sitter.Query(_grammar(language), f"[{kinds}] @string")
