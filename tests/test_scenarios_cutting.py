"""Prompts and targets are the tokens of the file itself."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scenario_helpers import (
    byte_level_tokenizer,
    java_file,
    python_file,
    sentencepiece_like_tokenizer,
)

from aplens.scenarios import PromptBuilder, ScenarioError
from aplens.scenarios.cutting import TokenizedFile
from aplens.scenarios.tasks import SourceTree, Span

BOS = "<|bos|>"
FAMILIES = {
    "starcoder2": ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    "qwen2.5-coder": ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    "deepseek-coder": ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    "code-llama": ("▁<PRE>", "▁<SUF>", "▁<MID>"),
}

plain = byte_level_tokenizer()


@pytest.fixture(scope="module")
def file():
    return PromptBuilder(plain, 32).tokenize(java_file(3) + python_file(4))


code = st.text(alphabet="ab.;(+ \n\té😀", max_size=40).filter(str.strip)


@st.composite
def text_and_span(draw):
    text = draw(code)
    start = draw(st.integers(0, len(text) - 1))
    return text, Span(start, draw(st.integers(start + 1, len(text))))


def clean_starts(text: str, ids: list[int], start: int) -> list[int]:
    """Token positions that begin at a character, or before it by blanks only: by decoding."""
    found = []
    for position in range(len(ids)):
        before, until = plain.decode(ids[:position]), plain.decode(ids[: position + 1])
        if text.startswith(before) and not text[len(before) : start].strip():
            reaches = len(until) > start if text.startswith(until) else "\ufffd" in until[start:]
            if len(before) <= start and reaches:
                found.append(position)
    return found


@given(text_and_span())
@settings(max_examples=400, deadline=None)
def test_target_token_begins_where_the_span_does(case):
    text, span = case
    tokenized = PromptBuilder(plain, 8).tokenize(text)
    assert tokenized.ids == plain(text)["input_ids"]
    tokens = tokenized.tokens_of(span)
    starts = clean_starts(text, tokenized.ids, span.start)
    assert ([tokens.start] if tokens else []) == starts[:1]
    if tokens:
        covered = plain.decode(tokenized.ids[tokens.start : tokens.stop])
        assert "\ufffd" not in covered
        assert text[span.start : span.end] in covered
        fewer = plain.decode(tokenized.ids[tokens.start : tokens.stop - 1])
        assert not fewer.strip() or not fewer.endswith(text[span.start : span.end])


def test_blank_in_front_belongs_to_the_target_and_other_text_does_not():
    file = TokenizedFile("return x;", [1, 2, 3], np.array([0, 6, 8]), np.array([6, 8, 9]))
    assert file.tokens_of(Span(7, 8)) == range(1, 2)
    assert file.tokens_of(Span(7, 9)) == range(1, 3)
    assert file.tokens_of(Span(3, 6)) is None
    assert file.tokens_of(Span(9, 9)) is None


def test_left_to_right_prompt_is_what_stands_before_the_span(file):
    builder = PromptBuilder(plain, 32)
    ids = plain(file.text)["input_ids"]
    assert builder.style == "left_to_right"
    assert builder.build(file, range(31, 33)) is None
    assert builder.build(file, range(32, 33)) == tuple(ids[:32])
    assert builder.build(file, range(70, 75)) == tuple(ids[38:70])


def test_prompt_starts_with_bos_where_the_tokenizer_adds_one(file):
    tokenizer = byte_level_tokenizer(bos=BOS)
    prompt = PromptBuilder(tokenizer, 32).build(file, range(70, 71))
    assert len(prompt) == 32
    assert prompt[0] == tokenizer.bos_token_id
    assert prompt[1:] == tuple(file.ids[39:70])


@pytest.mark.parametrize("bos", [None, BOS])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("first", [0, 3, 60, -3])
def test_fim_prompt_is_the_file_around_the_span_in_the_models_order(family, bos, first):
    tokenizer = byte_level_tokenizer(FAMILIES[family], bos=bos)
    builder = PromptBuilder(tokenizer, 32)
    file = builder.tokenize(java_file(1))
    start = first % len(file.ids)
    middle = range(start, start + 2)
    prompt = builder.build(file, middle)

    assert builder.style == "fim"
    assert len(prompt) == 32
    to_prefix, to_suffix, to_middle = tokenizer.convert_tokens_to_ids(list(FAMILIES[family]))
    if bos:
        assert prompt[0] == tokenizer.bos_token_id
        prompt = prompt[1:]
    hole = prompt.index(to_suffix)
    assert prompt[0] == to_prefix
    assert prompt[-1] == to_middle
    prefix, suffix = prompt[1:hole], prompt[hole + 1 : -1]
    window = file.ids[middle.start - len(prefix) : middle.stop + len(suffix)]
    assert [*prefix, *file.ids[middle.start : middle.stop], *suffix] == window
    assert tokenizer.decode(window) in file.text
    if start > 16 and start + 18 < len(file.ids):
        assert abs(len(prefix) - len(suffix)) <= 1
    else:
        assert len(prefix) == start or len(suffix) == len(file.ids) - middle.stop


def test_fim_uses_a_whole_short_file_but_no_shorter_one():
    tokenizer = byte_level_tokenizer(FAMILIES["starcoder2"])
    file = PromptBuilder(tokenizer, 8).tokenize("a b c d e f g h")
    n = len(file.ids)
    assert len(PromptBuilder(tokenizer, n + 2).build(file, range(2, 3))) == n + 2
    assert PromptBuilder(tokenizer, n + 3).build(file, range(2, 3)) is None


def test_style_can_be_chosen_where_there_are_markers():
    tokenizer = byte_level_tokenizer(FAMILIES["starcoder2"])
    assert PromptBuilder(tokenizer, 32, "left_to_right").style == "left_to_right"
    assert PromptBuilder(tokenizer, 32, "fim").style == "fim"


def test_an_incomplete_set_of_markers_is_none():
    tokenizer = byte_level_tokenizer(("<fim_prefix>", "<fim_middle>"))
    assert PromptBuilder(tokenizer, 32).style == "left_to_right"
    with pytest.raises(ScenarioError, match="fill-in-the-middle markers"):
        PromptBuilder(tokenizer, 32, "fim")


def test_markers_in_a_file_are_plain_text():
    tokenizer = byte_level_tokenizer(FAMILIES["starcoder2"])
    text = 'String marker = "<fim_suffix>";'
    file = PromptBuilder(tokenizer, 8).tokenize(text)
    assert tokenizer.convert_tokens_to_ids("<fim_suffix>") not in file.ids
    assert tokenizer.decode(file.ids) == text
    assert len(tokenizer("<fim_suffix>")["input_ids"]) == 1  # and a marker again elsewhere


def test_what_cannot_work_is_refused():
    with pytest.raises(ScenarioError, match="auto, left_to_right or fim, got 'middle'"):
        PromptBuilder(plain, 32, "middle")
    with pytest.raises(ScenarioError, match="context_length 3 has no room"):
        PromptBuilder(byte_level_tokenizer(FAMILIES["starcoder2"]), 3)

    class Slow:
        is_fast = False

    with pytest.raises(ScenarioError, match=r"fast tokenizer.*Slow"):
        PromptBuilder(Slow(), 32)


def test_spans_are_found_in_sentencepiece_tokens():
    tokenizer = sentencepiece_like_tokenizer()
    builder = PromptBuilder(tokenizer, 8)
    text = java_file(2).replace("names", "naïve𐐀")  # a letter of four bytes
    file = builder.tokenize(text)
    spans = SourceTree(text, "java").spans("identifiers")
    found = {span: tokens for span in spans if (tokens := file.tokens_of(span))}
    assert len(found) >= 10
    for span, tokens in found.items():
        name = text[span.start : span.end]
        covered = tokenizer.convert_ids_to_tokens(file.ids[tokens.start : tokens.stop])
        if name.isascii():
            assert "".join(covered).lstrip("▁").startswith(name)
        else:
            assert "<0xC3>" in covered or "ï" in "".join(covered)
    assert builder.build(file, range(20, 21))[0] == tokenizer.bos_token_id


@pytest.mark.real
@pytest.mark.parametrize(("make", "language"), [(java_file, "java"), (python_file, "python")])
def test_real_tokenizer_aligns_with_the_file(smollm2_tokenizer, make, language):
    text = "\n".join(make(number) for number in range(3))
    builder = PromptBuilder(smollm2_tokenizer, 64)
    file = builder.tokenize(text)
    assert file.ids == smollm2_tokenizer(text)["input_ids"]
    spans = SourceTree(text, language).spans("keywords")
    prompts = [
        (span, tokens, builder.build(file, tokens))
        for span in spans
        if (tokens := file.tokens_of(span)) and tokens.start >= 64
    ]
    assert len(prompts) > len(spans) / 2
    for span, tokens, prompt in prompts:
        assert text[: span.start].rstrip().endswith(smollm2_tokenizer.decode(prompt).rstrip())
        target = smollm2_tokenizer.decode(file.ids[tokens.start])
        keyword = text[span.start : span.end]
        assert target.lstrip().startswith(keyword) or keyword.startswith(target.lstrip())
