"""Patterns in parts, a thread each."""

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mae_helpers import softmax_patterns, tiny_mae

from aplens._threads import map_parts


@pytest.fixture(autouse=True)
def _threads_as_they_were():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@settings(deadline=None)
@given(n=st.integers(0, 300), n_threads=st.integers(1, 5))
def test_parts_come_back_whole_and_in_order(n, n_threads):
    torch.set_num_threads(n_threads)
    numbers = torch.arange(n)
    sums = map_parts(torch.add, numbers, numbers)
    assert torch.equal(torch.cat(sums), 2 * numbers)
    assert max(map(len, sums)) <= 48
    assert torch.get_num_threads() == n_threads


def test_each_part_has_one_thread_and_learns_nothing():
    torch.set_num_threads(2)
    both_there = threading.Barrier(2, timeout=60)

    def look(part):
        both_there.wait()  # which one thread alone never passes
        return torch.get_num_threads(), torch.is_grad_enabled()

    assert map_parts(look, torch.zeros(64)) == [(1, False)] * 2


def test_an_error_in_a_part_is_raised_and_threads_are_as_before():
    torch.set_num_threads(2)

    def refuse(part):
        raise ValueError(f"{len(part)} patterns")

    with pytest.raises(ValueError, match="30 patterns"):
        map_parts(refuse, torch.zeros(60))
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("length", [7, 16])
def test_what_aplens_makes_of_patterns_does_not_depend_on_threads(length):
    mae, attention = tiny_mae(), softmax_patterns(100, 1, n_tokens=length)[:, 0]
    found = []
    for n_threads in (1, 2):
        torch.set_num_threads(n_threads)
        found.append((mae.encode(attention), mae.expect(attention)))
    for one, two in zip(*found, strict=True):
        assert torch.allclose(one, two, atol=1e-6)
