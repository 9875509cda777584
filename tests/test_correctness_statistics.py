"""The hand-made statistics against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aplens.correctness.statistics import STATISTICS, patch_statistics, pattern_statistics
from aplens.patterns import PatchGrid, log_normalize


def named(values):
    return dict(zip(STATISTICS, values.tolist(), strict=True))


def test_a_pattern_by_hand():
    attention = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.5, 0.25, 0.25]])
    found = named(pattern_statistics(attention))
    # m = ln 1/4, so 1 scales to 1, 1/2 to 1/2, 1/4 to 0.
    scaled = [1.0, 0.5, 0.5, 0.5, 0.0, 0.0]
    mean = sum(scaled) / 6
    expected = {
        "mean": mean,
        "spread": math.sqrt(sum((x - mean) ** 2 for x in scaled) / 6),
        "last_mean": 0.5 / 3,
        "last_entropy": 0.5 * math.log(2) + 2 * 0.25 * math.log(4),
        "last_max": 0.5,
        "last_first": 0.5,
        "last_previous": 0.25,
        "last_distance": 0.5 * 1.0 + 0.25 * 0.5,  # 2 of at most 2 steps back, then 1 of 2
    }
    assert found == pytest.approx(expected)


def test_a_head_that_copies_the_previous_token():
    attention = torch.diag(torch.ones(9), -1)
    attention[0, 0] = 1
    found = named(pattern_statistics(attention))
    assert found["last_previous"] == found["last_max"] == 1
    assert found["last_entropy"] == found["last_first"] == 0
    assert found["last_distance"] == pytest.approx(1 / 9)


def test_shape_follows_the_leading_dimensions():
    attention = torch.softmax(torch.zeros(2, 3, 5, 5).masked_fill(_above(5), -torch.inf), -1)
    assert pattern_statistics(attention).shape == (2, 3, len(STATISTICS))


def test_a_prompt_of_one_token_is_finite():
    found = named(pattern_statistics(torch.ones(1, 1)))
    assert found["last_first"] == 1
    assert found["last_previous"] == 0
    assert all(math.isfinite(value) for value in found.values())


@pytest.mark.parametrize("n", [1, 4, 7, 12])
def test_statistics_of_patches_are_those_of_the_patterns(n):
    attention, grid = _random_attention(n, seed=3)[None], PatchGrid(12, 4)
    of_patches = patch_statistics(log_normalize(grid.patchify(attention)), attention, grid)
    torch.testing.assert_close(of_patches, pattern_statistics(attention))


def test_half_precision_comes_close():
    attention = _random_attention(16, seed=1)
    expected = pattern_statistics(attention)
    torch.testing.assert_close(
        pattern_statistics(attention.bfloat16()), expected, atol=0.02, rtol=0.02
    )


@settings(max_examples=50, deadline=None)
@given(n=st.integers(1, 12), sharpness=st.floats(0, 60), seed=st.integers(0, 2**16))
def test_finite_and_in_range_for_any_attention(n, sharpness, seed):
    found = named(pattern_statistics(_random_attention(n, seed, sharpness)))
    assert all(math.isfinite(value) for value in found.values())
    for name in ("mean", "last_mean", "last_max", "last_first", "last_previous", "last_distance"):
        assert -1e-6 <= found[name] <= 1 + 1e-5
    assert -1e-6 <= found["last_entropy"] <= math.log(n) + 1e-5


@pytest.mark.parametrize("shape", [(3, 4), (0, 0), (5,)])
def test_what_is_no_pattern_is_refused(shape):
    with pytest.raises(ValueError, match="expected patterns"):
        pattern_statistics(torch.zeros(shape))


def test_nan_is_refused():
    with pytest.raises(ValueError, match="NaN"):
        pattern_statistics(torch.full((3, 3), torch.nan))


def _above(n):
    return torch.ones(n, n, dtype=torch.bool).triu(1)


def _random_attention(n, seed, sharpness=2.0):
    scores = torch.randn(n, n, generator=torch.Generator().manual_seed(seed)) * sharpness
    return scores.masked_fill(_above(n), -torch.inf).softmax(-1)
