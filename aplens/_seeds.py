"""Seeds that NumPy, PyTorch and a file of results all take."""

from __future__ import annotations

from numbers import Integral
from typing import Any

from aplens._words import shorten

#: Larger whole numbers fit neither a column of a table nor every generator.
_LARGEST = 2**63 - 1


def read_seed(seed: Any, name: str = "seed") -> int:
    """A seed as a Python integer, NumPy's among what it may come as.

    Raises:
        ValueError: When it is not a whole number from 0 to 2**63 - 1.
    """
    whole = isinstance(seed, Integral) and not isinstance(seed, bool)
    if not whole or not 0 <= seed <= _LARGEST:
        raise ValueError(f"{name} must be a whole number from 0 to 2**63 - 1, got {shorten(seed)}")
    return int(seed)
