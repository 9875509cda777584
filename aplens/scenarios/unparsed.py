"""What a grammar could not read of a file: the fewest statements that hold its errors."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import tree_sitter

ByteRange = tuple[int, int]


def find_unparsed(root: tree_sitter.Node, blocks: Collection[str]) -> list[ByteRange]:
    """The stretches of a file whose syntax tree is not to be trusted, in order, none touching.

    An error spoils the statement, declaration or member that it stands in, but not the blocks that
    this one has: a class with a head that the grammar does not know still has its methods. What
    the parser skipped between two statements may belong to either, and spoils both.
    """
    found: list[ByteRange] = []
    todo = [[root] if root.is_error else root.children]
    while todo:
        pieces = todo.pop()
        for i, piece in enumerate(pieces):
            if not piece.has_error:
                continue
            inner, is_spoilt = _outermost_blocks(piece, blocks)
            todo.extend(block.children for block in inner if block.has_error)
            if is_spoilt:
                found.extend(_around(piece, inner))
            if piece.is_error:
                for neighbour in (*pieces[max(i - 1, 0) : i], *pieces[i + 1 : i + 2]):
                    found.extend(_around(neighbour, _outermost_blocks(neighbour, blocks)[0]))
    return _merged(found)


def _outermost_blocks(
    piece: tree_sitter.Node, blocks: Collection[str]
) -> tuple[list[tree_sitter.Node], bool]:
    """The blocks in a piece of a file, in order, and whether there is an error outside of them."""
    inner: list[tree_sitter.Node] = []
    is_spoilt = False
    todo = [piece]
    while todo:
        node = todo.pop()
        is_spoilt |= node.is_error or node.is_missing
        if node.type in blocks:
            inner.append(node)
        else:
            todo.extend(reversed(node.children))
    return inner, is_spoilt


def _around(piece: tree_sitter.Node, inner: list[tree_sitter.Node]) -> Iterator[ByteRange]:
    """The ranges of a piece that are outside of its blocks."""
    start = piece.start_byte
    for block in inner:
        yield start, block.start_byte
        start = block.end_byte
    yield start, piece.end_byte


def _merged(ranges: list[ByteRange]) -> list[ByteRange]:
    merged: list[ByteRange] = []
    for start, end in sorted(ranges):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        elif start < end:
            merged.append((start, end))
    return merged
