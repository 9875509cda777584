"""Ways to damage a file, and values that stand where they do not belong."""

from __future__ import annotations

import copy
import json
import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

#: `APLENS_FUZZ=30 pytest tests/test_fuzz_*.py` tries thirty times as many examples.
_TIMES = int(os.environ.get("APLENS_FUZZ", "1"))


def fuzz(examples: int) -> settings:
    """The same examples on every run; a folder may serve them all, since each writes its files."""
    return settings(
        max_examples=examples * _TIMES,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


#: What json.dumps writes that is none of the usual values, or no JSON at all.
_ODD = st.sampled_from(
    [
        None,
        True,
        False,
        0,
        -1,
        2**63,
        10**400,
        0.5,
        float("nan"),
        float("inf"),
        -1e308,
        "",
        "0",
        "\0",
        "\ud800",
        "L0H0",
        [],
        {},
        [[]],
        [None],
        {"a": {}},
    ]
)


def deep(levels: int) -> list:
    value: list = []
    for _ in range(levels):
        value = [value]
    return value


json_values = st.recursive(
    _ODD | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@st.composite
def mutations(draw, document):
    """The document with one node, at any depth, replaced, removed, repeated or added."""
    document = copy.deepcopy(document)
    node, parent, key = document, None, None
    while isinstance(node, (dict, list)) and node and draw(st.integers(0, 4)):
        parent = node
        key = draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
        node = parent[key]
    if parent is None:
        return draw(json_values)
    action = draw(st.sampled_from(["replace", "replace", "remove", "repeat", "add"]))
    if action == "replace":
        parent[key] = draw(json_values)
    elif action == "remove":
        del parent[key]
    elif isinstance(parent, dict):
        parent[draw(st.text(max_size=5))] = draw(json_values)
    else:
        parent.insert(key, copy.deepcopy(node) if action == "repeat" else draw(json_values))
    return document


def dump(value) -> bytes:
    """As Python's json writes it, NaN and lone surrogates included."""
    return json.dumps(value).encode()


@st.composite
def damaged(draw, data: bytes):
    """The bytes truncated, with a few flipped, with a piece replaced, or with a piece twice."""
    kind = draw(st.sampled_from(["truncate", "flip", "replace", "insert"]))
    place = draw(st.integers(0, max(len(data) - 1, 0)))
    if kind == "truncate":
        return data[:place]
    if kind == "flip":
        return flip(data, draw(st.lists(st.integers(0, 8 * len(data) - 1), min_size=1, max_size=4)))
    piece = draw(st.binary(min_size=1, max_size=12))
    return data[:place] + piece + data[place + (len(piece) if kind == "replace" else 0) :]


def flip(data: bytes, bits: list[int]) -> bytes:
    changed = bytearray(data)
    for bit in bits:
        changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def refusal_of(kind: type[Exception], read, *arguments) -> Exception | None:
    """The error with which a reader refuses, if it does; any other kind of error comes through."""
    try:
        read(*arguments)
    except kind as error:
        return error
    return None


def is_clear(error: Exception, *words: object) -> bool:
    """Whether an error says what it is about, in a few lines."""
    return all(str(word) in str(error) for word in words) and len(str(error)) < 2000
