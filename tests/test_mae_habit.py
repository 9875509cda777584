"""What AP-MAE expects of a head: its habit."""

from __future__ import annotations

import pytest
import torch
from mae_helpers import tiny_mae

from aplens import APMAE


def patterns_of_known_habit(n_tokens):
    """A head of the previous token, one of the first token, and one that looks three back."""
    queries = torch.arange(n_tokens)
    keys = torch.stack([(queries - 1).clamp(min=0), 0 * queries, (queries - 3).clamp(min=0)])
    faint = torch.ones(n_tokens, n_tokens).tril()
    strong = torch.nn.functional.one_hot(keys, n_tokens) * 200.0
    patterns = strong + faint
    return patterns / patterns.sum(-1, keepdim=True), keys


@pytest.mark.real
@pytest.mark.parametrize("n_tokens", [64, 45])
def test_a_pattern_of_one_habit_is_expected_to_go_on_with_it(n_tokens):
    mae = APMAE.from_pretrained("aplens-short")
    patterns, keys = patterns_of_known_habit(n_tokens)
    broken = patterns.clone()
    broken[:, -1] = patterns.new_tensor([0.0] * 10 + [1.0] + [0.0] * (n_tokens - 11))
    habit = mae.expect(broken)
    assert habit.shape == (3, 1, n_tokens)
    assert habit[:, 0].argmax(-1).tolist() == keys[:, -1].tolist()
    assert (habit[:, 0].gather(1, keys[:, -1:]) > 0.25).all()  # by chance at most 1 / 45
    assert (habit[:, 0, 10] < 0.05).all()  # what it does on this prompt is no part of the habit


@pytest.mark.parametrize(("n_tokens", "n_queries"), [(16, 1), (13, 6), (9, 9)])
def test_expected_queries_are_distributions_over_earlier_keys(n_tokens, n_queries):
    mae = tiny_mae()
    patterns, _ = patterns_of_known_habit(n_tokens)
    expected = mae.expect(patterns[None].expand(2, -1, -1, -1), n_queries)
    assert expected.shape == (2, 3, n_queries, n_tokens)
    torch.testing.assert_close(expected.sum(-1), torch.ones(2, 3, n_queries))
    assert (expected.tril(n_tokens - n_queries) == expected).all()
    every = mae.expect(patterns, None)
    torch.testing.assert_close(every[:, -n_queries:], expected[0])


def test_what_a_query_itself_does_is_no_part_of_what_is_expected_of_it():
    mae = tiny_mae()
    patterns, _ = patterns_of_known_habit(16)
    other = patterns.clone()
    other[:, -1] = patterns[:, -1].roll(3)  # the same smallest value, which scaling depends on
    torch.testing.assert_close(mae.expect(other), mae.expect(patterns))
    assert not torch.allclose(mae.expect(other, 5)[:, 0], mae.expect(patterns, 16)[:, 0, -1:])


@pytest.mark.parametrize(
    ("n_tokens", "n_queries", "message"),
    [(4, 1, "longer than one patch, 4 tokens.*got 4"), (16, 0, "1 to 16, got 0"), (16, 17, "17")],
)
def test_what_cannot_be_expected_is_refused(n_tokens, n_queries, message):
    with pytest.raises(ValueError, match=message):
        tiny_mae().expect(patterns_of_known_habit(n_tokens)[0], n_queries)
