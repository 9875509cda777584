"""Greedy choice of heads: the best next one, and no more than help."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aplens.heads import Head, all_heads
from paper.greedy import choose_greedily

HEADS = all_heads(2, 3)


@given(
    values=st.lists(st.integers(-5, 5), min_size=6, max_size=6),
    n_heads=st.integers(1, 6),
)
def test_where_heads_add_up_it_takes_the_largest_that_help(values, n_heads):
    worth = dict(zip(HEADS, values, strict=True))
    found = choose_greedily(lambda heads: sum(map(worth.get, heads)), HEADS, n_heads, n_tried=6)
    best = max(
        sum(map(worth.get, chosen))
        for size in range(n_heads + 1)
        for chosen in itertools.combinations(HEADS, size)
    )
    assert found.scores[-1] == best
    assert all(later > earlier for earlier, later in itertools.pairwise(found.scores))
    assert len(found.scores) == len(found.heads) + 1


def test_heads_that_help_only_together_are_missed_and_what_was_chosen_counts():
    both = {Head(0, 0), Head(0, 1)}

    def score(heads):
        return float(both <= set(heads))

    assert choose_greedily(score, HEADS, 3).heads == ()

    def redundant(heads):  # either of two is worth 2, the second adds nothing; a third is worth 1
        return 2.0 * bool(both & set(heads)) + (Head(1, 0) in heads)

    assert choose_greedily(redundant, HEADS, 3).heads == (Head(0, 0), Head(1, 0))


def test_it_tries_the_first_candidates_only():
    asked = []

    def score(heads):
        asked.append(tuple(heads))
        return len(heads)

    found = choose_greedily(score, HEADS[::-1], 2, n_tried=2)
    assert asked[0] == ()
    assert asked[1:3] == [(HEADS[5],), (HEADS[4],)]
    assert asked[3:] == [(HEADS[5], HEADS[4]), (HEADS[5], HEADS[3])]
    assert found.heads == (HEADS[5], HEADS[4])


@pytest.mark.parametrize(
    ("candidates", "numbers", "message"),
    [
        ((), {}, "expected candidates, each once, got"),
        ((HEADS[0], HEADS[0]), {}, "each once, got .*L0H0"),
        (HEADS, {"n_heads": 0}, "n_heads must be 1 or more, got 0"),
        (HEADS, {"n_tried": -1}, "n_tried must be 1 or more, got -1"),
    ],
)
def test_what_cannot_be_searched_is_refused(candidates, numbers, message):
    numbers = {"n_heads": 2, **numbers}
    with pytest.raises(ValueError, match=message):
        choose_greedily(lambda heads: pytest.fail("scored"), candidates, **numbers)
