"""Where the last query's attention goes, region by region."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aplens.correctness import REGIONS
from aplens.correctness.regions import attention_by_region


def region_of(key, n_tokens):
    """The definition, key by key."""
    back = n_tokens - 1 - key
    if key == 0:
        return "first"
    if back < 2:
        return ("self", "previous")[back]
    return "near" if back <= 8 else "middle" if back <= 32 else "far"


@given(n_tokens=st.integers(1, 80), seed=st.integers(0, 99))
def test_every_key_is_in_one_region(n_tokens, seed):
    attention = torch.rand(2, n_tokens, generator=torch.Generator().manual_seed(seed)).softmax(-1)
    found = attention_by_region(attention)
    expected = torch.zeros(2, len(REGIONS))
    for key in range(n_tokens):
        expected[:, REGIONS.index(region_of(key, n_tokens))] += attention[:, key]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(dtype):
    attention = torch.full((256,), 1 / 256, dtype=dtype)
    assert attention_by_region(attention).sum() == pytest.approx(1)
