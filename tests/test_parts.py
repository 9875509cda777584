"""Patterns in parts."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from aplens._parts import in_parts


@given(n=st.integers(0, 700))
def test_parts_come_back_whole_and_in_order(n):
    numbers = torch.arange(n)
    parts = list(in_parts(numbers, 2 * numbers))
    first, second = (torch.cat(of_one) for of_one in zip(*parts, strict=True))
    assert torch.equal(first, numbers)
    assert torch.equal(second, 2 * numbers)
    sizes = [len(part) for part, _ in parts]
    assert max(sizes) <= 96
    assert max(sizes) - min(sizes) <= 1
