"""Compare what Python printed with what a page shows."""

from __future__ import annotations

import re

import pytest

_NUMBER = re.compile(r"-?\d+\.\d+")


def assert_same_output(printed: str, shown: str) -> None:
    """The same words, and numbers that differ by no more than processors round differently."""
    assert _NUMBER.sub("", printed).split() == _NUMBER.sub("", shown).split()
    numbers = [[float(number) for number in _NUMBER.findall(text)] for text in (printed, shown)]
    assert numbers[0] == pytest.approx(numbers[1], abs=0.03)
