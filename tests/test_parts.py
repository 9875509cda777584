"""Patterns in parts."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from aplens._parts import map_parts


@given(n=st.integers(0, 700))
def test_parts_come_back_whole_and_in_order(n):
    numbers = torch.arange(n)
    sums = map_parts(torch.add, numbers, numbers)
    assert torch.equal(torch.cat(sums), 2 * numbers)
    sizes = [len(part) for part in sums]
    assert max(sizes) <= 96
    assert max(sizes) - min(sizes) <= 1
