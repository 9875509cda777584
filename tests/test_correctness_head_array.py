"""Arrays that are read head by head."""

from __future__ import annotations

import numpy as np
import pytest
from correctness_helpers import make_observations
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from aplens.correctness import HeadClusters, Observations, rank_by_predictor
from aplens.correctness.head_array import HeadArray


def lazy(values):
    """A HeadArray of these values, and the heads it was asked for."""
    asked = []

    def read_head(head):
        asked.append(head)
        return values[:, head]

    return HeadArray(values.shape, values.dtype, read_head), asked


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_head_array_indexes_as_a_numpy_array_does(data):
    values = np.arange(7 * 3 * 2).reshape(7, 3, 2)
    array, _ = lazy(values)
    for _ in range(data.draw(st.integers(0, 2))):
        rows = data.draw(
            st.one_of(
                st.lists(st.integers(0, len(values) - 1), min_size=1, max_size=9).map(np.array),
                hnp.arrays(bool, len(values)).filter(np.any),
                st.slices(len(values)).filter(lambda s: len(values[s]) > 0),  # noqa: B023
            )
        )
        values, array = values[rows], array[rows]
    assert array.shape == values.shape
    assert len(array) == len(values)
    np.testing.assert_array_equal(array, values)
    row, head = data.draw(st.integers(0, len(values) - 1)), data.draw(st.integers(0, 2))
    np.testing.assert_array_equal(array[row], values[row])
    np.testing.assert_array_equal(array[:, head], values[:, head])
    np.testing.assert_array_equal(array[row, head], values[row, head])


def test_only_the_head_asked_for_is_read():
    array, asked = lazy(np.zeros((4, 3, 2)))
    _ = array[[1, 2]][:, 1]
    assert asked == [1]


@pytest.mark.parametrize("key", [(slice(None), 3), (slice(None), slice(0, 2)), (0, 1, 2), 9])
def test_what_a_head_array_does_not_know_is_refused(key):
    array, _ = lazy(np.zeros((4, 3, 2)))
    with pytest.raises(IndexError):
        array[key]


def test_ranking_out_of_shards_is_ranking_in_memory_and_holds_one_head_at_a_time():
    in_memory = make_observations(n=120, planted=(1, 2))
    array, asked = lazy(in_memory.embeddings)
    numbers = {"statistics": in_memory.numbers("statistics")}
    on_disk = Observations(in_memory.table, in_memory.heads, array, numbers, model=in_memory.model)

    def rank(observations):
        train, test = observations.select(range(78)), observations.select(range(78, 120))
        clusters = HeadClusters("pca")
        return rank_by_predictor(train, test, features="clusters", clusters=clusters).to_frame()

    expected = rank(in_memory)
    asked.clear()
    assert rank(on_disk).equals(expected)
    assert asked[: len(in_memory.heads)] == list(range(len(in_memory.heads)))
    assert isinstance(on_disk.embeddings, HeadArray)
