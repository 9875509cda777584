"""Heads and prompts given as anything at all: understood, or refused in words of our own."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from fuzz_helpers import deep, fuzz, is_clear, refusal_of
from hypothesis import example, given
from hypothesis import strategies as st

from aplens import parse_heads
from aplens.heads import ModelShape
from aplens.prompts import Prompts, read_prompts

numbers = st.integers(-3, 6) | st.sampled_from([2**31, 2**63, 2**64, -(2**70), 10**400])
leaves = (
    numbers
    | st.none()
    | st.booleans()
    | st.floats()
    | st.binary(max_size=3)
    | st.text(max_size=6)
    | st.sampled_from(["L1H2", "1.2", "L1H2,L0H0", "L٣H٣", "L" + "9" * 5000 + "H1"])
    | st.sampled_from([1j, object, range(3), np.int64(2), np.float32(1.5), np.bool_(True)])
)
hashable = numbers | st.booleans() | st.text(max_size=3) | st.none()
anything = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(hashable, inner, max_size=2)
        | st.sets(hashable, max_size=3)
        | st.lists(inner, max_size=3).map(iter)
    ),
    max_leaves=8,
)
arrays = st.sampled_from(
    [
        torch.tensor(3),
        torch.tensor([[1, 2]]),
        torch.zeros(0),
        torch.zeros(2, 3, dtype=torch.complex64),
        torch.ones(1, 2, 2, dtype=torch.int64),
        torch.ones(2, dtype=torch.bool),
        np.array(3),
        np.array([[1, 2]]),
        np.array(["L1H2"]),
        np.array([None]),
        pd.DataFrame({"layer": [1]}),
        pd.Series([1, 2]),
        (n for n in ()),
    ]
)


@fuzz(400)
@given(anything | arrays)
@example({1: None})
@example(np.array(3))
@example(torch.tensor(3))
@example((True, False))
@example({True: [1]})
@example(b"ab")
@example("L" + "9" * 5000 + "H1")
@example(itertools.count())
def test_heads_of_any_kind(value):  # an error shows a head as L3H0
    refusal = refusal_of(
        (TypeError, ValueError), lambda: list(parse_heads(value, ModelShape("tiny", 3, 4)))
    )
    assert refusal is None or is_clear(refusal, "L") or is_clear(refusal, "head")


def test_heads_that_cannot_even_be_printed():
    for value in ((10**5000, 1), [(0, 10**5000)]):
        refusal = refusal_of((TypeError, ValueError), parse_heads, value)
        assert is_clear(refusal, "head")


def test_prompts_that_cannot_even_be_printed(any_model):
    for value in ([deep(10_000)], [10**5000], [[10**5000]], {"input_ids": deep(10_000)}):
        refusal = refusal_of((TypeError, ValueError), read_prompts, any_model, value)
        assert is_clear(refusal, "expected")


def test_true_is_no_head():
    for value in ((True, False), {1: True}, {True: [0]}, [(0, True)]):
        with pytest.raises(TypeError, match="expected"):
            parse_heads(value)


@fuzz(400)
@given(anything | arrays)
@example(b"ab")
@example([True, False])
@example([[2**70]])
@example({"input_ids": None})
@example({"input_ids": [[1.5]]})
@example({"input_ids": [1, 2], "attention_mask": [1]})
@example({"input_ids": [[1, 2]], "attention_mask": [[1, 1], [1, 1]]})
@example({"input_ids": [[1, 2]], "attention_mask": 1})
@example({"input_ids": torch.ones(1, 2, dtype=torch.int64), "attention_mask": [[1, 0]]})
@example({"input_ids": torch.ones(1, 2, dtype=torch.int64), "attention_mask": "ab"})
@example({"input_ids": np.array([[1, 2]])})
@example({1: 2, "a": 3})
@example(torch.zeros(1, 2, dtype=torch.complex64))
def test_prompts_of_any_kind(any_model, value):
    refusal = refusal_of((TypeError, ValueError), read_prompts, any_model, value)
    if refusal is not None:
        words = ("prompt", "token", "input_ids", "attention_mask")
        assert is_clear(refusal)
        assert any(word in str(refusal) for word in words)


@fuzz(150)
@given(
    st.dictionaries(
        st.sampled_from(["input_ids", "attention_mask", "labels"]), anything | arrays, min_size=1
    )
)
def test_encodings_of_any_kind(any_model, value):
    refusal = refusal_of((TypeError, ValueError), read_prompts, any_model, value)
    assert refusal is None or is_clear(refusal)


def test_bytes_and_truth_values_are_no_token_ids(any_model):
    for value in (b"ab", [True, False], [[1, True]], [b"ab"]):
        with pytest.raises(TypeError, match="expected"):
            read_prompts(any_model, value)


def test_a_mask_may_be_a_list(any_model):
    tokens = torch.tensor([[0, 5, 6]])
    read = read_prompts(any_model, {"input_ids": tokens, "attention_mask": [[0, 1, 1]]})
    assert isinstance(read, Prompts)
    assert read.ids(0) == [5, 6]
