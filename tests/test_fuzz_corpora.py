"""Corpora of anything: mining goes on with the files that are files of the language."""

from __future__ import annotations

import random
import warnings

import pytest
from fuzz_helpers import damaged, fuzz
from hypothesis import given
from hypothesis import strategies as st
from scenario_helpers import byte_level_tokenizer, java_file, python_file

from aplens.scenarios import (
    Scenarios,
    mine_scenarios,
)
from aplens.scenarios.tasks import RANDOM_TASK, parse

tokenizer = byte_level_tokenizer()
CONTEXT = 16


def prose_file(number: int) -> str:
    return f"It was the {number}th day, and nobody had seen a whale; the sea was calm.\n" * 3


MAKE = {"java": java_file, "python": python_file, "prose": prose_file}
SUFFIX = {"java": ".java", "python": ".py", "prose": ".txt"}


def require_exact(mined: Scenarios, read) -> None:
    """Prompt and target stand in the tokenized file, and the span where it is said to be."""
    for scenario in mined:
        text = read(scenario.file)
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        wanted = [*scenario.prompt, scenario.target]
        assert len(scenario.prompt) == CONTEXT
        assert any(ids[i : i + len(wanted)] == wanted for i in range(len(ids) - len(wanted) + 1))
        assert scenario.span in "\n".join(text.split("\n")[scenario.line - 1 :])
        if scenario.task != RANDOM_TASK:
            spans = parse(text, scenario.language).spans(scenario.task)
            assert scenario.span in {text[start:end] for start, end in spans}


def mine(corpus, language: str) -> Scenarios:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tasks that are not full
        return mine_scenarios(
            corpus, tokenizer, language=language, per_task=200, per_file=50, context_length=CONTEXT
        )


def mine_beside_good_files(folder, language: str, data: bytes) -> None:
    """Mine a file of these bytes among good ones, which have to give what they give alone."""
    for i in range(2):
        (folder / f"good{i}{SUFFIX[language]}").write_text(MAKE[language](i))
    odd = folder / f"odd{SUFFIX[language]}"
    odd.unlink(missing_ok=True)
    alone = {scenario.file for scenario in mine(folder, language)}
    odd.write_bytes(data)
    mined = mine(folder, language)
    assert alone <= set(mined.files)
    require_exact(mined, lambda name: (folder / name).read_bytes().decode("utf-8-sig"))
    mined.save(folder / "mined.parquet")
    assert Scenarios.load(folder / "mined.parquet") == mined


@pytest.fixture(scope="module", params=MAKE)
def place(request, tmp_path_factory):
    return tmp_path_factory.mktemp(request.param), request.param


encodings = st.sampled_from(
    ["utf-8", "latin-1", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig", "cp1252"]
)
pieces = st.sampled_from(
    [
        "\r\n",
        "\r",
        "\f",
        "\v",
        "\0",
        "\x85",
        "\u2028",
        "é",
        "\U0001f40b",
        "e\u0301",
        "\u202e",
        "\ufeff",
        '"""',
        "'",
        '"',
        "/*",
        "//",
        "#",
        "((((",
        "}",
        "\\",
        "<fim_prefix>",
        "<|endoftext|>",
        " ",
        "\t",
    ]
)


@fuzz(12)
@given(data=st.data())
def test_a_file_with_odd_characters(place, data):
    folder, language = place
    text = MAKE[language](7)
    for piece in data.draw(st.lists(pieces, max_size=3)):
        at = data.draw(st.integers(0, len(text)))
        text = text[:at] + piece + text[at:]
    ends = data.draw(st.sampled_from(["\n", "\r\n", "\r", "\f\n", "\n\n"]))
    encoded = text.replace("\n", ends).encode(data.draw(encodings), errors="replace")
    mine_beside_good_files(folder, language, encoded)


@fuzz(12)
@given(data=st.data())
def test_a_damaged_file(place, data):
    folder, language = place
    changed = data.draw(damaged(MAKE[language](7).encode()) | st.binary(max_size=300))
    mine_beside_good_files(folder, language, changed)


BIG = {
    "one long line": b"x" * 60_000,
    "one long line of words": b"ab c, " * 16_000,
    "newlines": b"\n" * 999_000,
    "parentheses": b"(" * 100_000,
    "balanced": b"(" * 5_000 + b"1" + b")" * 5_000,
    "braces": b"{" * 100_000,
    "brackets": b"x = " + b"[" * 20_000 + b"]" * 20_000 + b"\n",
    "dots": b"a" + b".b" * 5_000 + b"\n",
    "additions": b"x = 1" + b" + 1" * 5_000 + b"\n",
    "negations": b"x = " + b"-" * 5_000 + b"1\n",
    "strings": b'"' * 200_000,
    "unterminated": b'x = """' + b"a\n" * 20_000,
    "comment": b"/* # " + b"*\n" * 20_000,
    "indents": b"".join(b" " * i + b"if x:\n" for i in range(300)) + b" " * 300 + b"y\n",
    "binary": random.Random(0).randbytes(999_000),
    "ascii": bytes(random.Random(0).choices(range(32, 127), k=300_000)),
    "nul": b"\0" * 999_000,
    "java": b"class A { int f() { return " + b"(" * 5_000 + b"1" + b")" * 5_000 + b"; } }",
}


@pytest.mark.parametrize("kind", BIG)
def test_large_and_deep_files_do_not_stop_mining(place, kind):
    mine_beside_good_files(*place, BIG[kind])
