"""Templates that need the tokens' text, on patterns made by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paper.text_templates import (
    TEXT_TEMPLATES,
    template_keys,
    text_template_strengths,
)

TEXTS = ["f", "(", "x", ",", " [", "y", "]", ")", "\n", "z", "\n", "w", ";", "v"]


def keys_of(name):
    return template_keys(TEXTS)[TEXT_TEMPLATES.index(name)]


def test_delimiters_are_punctuation_and_line_breaks():
    last = keys_of("delimiter")[-1]
    found = [TEXTS[place] for place in last.nonzero()[:, 0]]
    assert found == ["(", ",", " [", "]", ")", "\n", "\n", ";"]


def test_lines_start_after_a_line_break():
    assert keys_of("line_start")[-1].nonzero()[:, 0].tolist() == [9, 11]
    assert not keys_of("line_start")[8].any()


def test_the_scope_is_the_innermost_open_bracket():
    scope = keys_of("scope")
    places = [row.nonzero()[:, 0].tolist() for row in scope]
    assert places == [[], [], [1], [1], [1], [4], [4], [1], [], [], [], [], [], []]


def test_no_key_lies_ahead_and_none_is_the_first_token():
    keys = template_keys(["(", *TEXTS])
    assert not keys.triu(1).any()
    assert not keys[:, :, 0].any()


@pytest.mark.parametrize("name", TEXT_TEMPLATES)
def test_a_pattern_that_follows_a_template_has_strength_1_and_uniform_0(name):
    texts = TEXTS * 4
    keys = template_keys(texts)[TEXT_TEMPLATES.index(name)].float()
    following = keys.clone()
    following[:, 0] += (keys.sum(-1) == 0).float()  # the sink, where there is no key
    following /= following.sum(-1, keepdim=True)
    uniform = torch.ones(len(texts), len(texts)).tril()
    uniform /= uniform.sum(-1, keepdim=True)
    found = text_template_strengths(torch.stack([following, uniform]), texts)
    assert found[0, TEXT_TEMPLATES.index(name)].item() == pytest.approx(1, abs=1e-5)
    assert found[1, TEXT_TEMPLATES.index(name)].item() == pytest.approx(0, abs=1e-5)


def test_a_template_without_a_chance_says_nothing():
    found = text_template_strengths(torch.eye(5)[None], list("abcde"))
    assert found.isnan().all()


@given(st.lists(st.sampled_from(["a", "(", ")", "[]", "}{", "\n", " ", ");", ""]), min_size=1))
def test_any_text_is_read(texts):
    n = len(texts)
    pattern = torch.ones(n, n).tril() / torch.arange(1, n + 1)[:, None]
    found = text_template_strengths(pattern, texts)
    assert ((found <= 1 + 1e-5) | found.isnan()).all()


def test_patterns_must_be_as_long_as_the_text():
    with pytest.raises(ValueError, match=r"of 3 tokens, got \(4, 4\)"):
        text_template_strengths(torch.eye(4), list("abc"))
