"""Seeds that NumPy, PyTorch and a file of results all take."""

from __future__ import annotations

from typing import Any

from aplens._words import is_whole, shorten

#: Larger whole numbers fit neither a column of a table nor every generator.
_LARGEST = 2**63 - 1


def read_seed(seed: Any, name: str = "seed") -> int:
    """A seed as a Python integer, NumPy's among what it may come as."""
    if not is_whole(seed) or not 0 <= seed <= _LARGEST:
        raise ValueError(f"{name} must be a whole number from 0 to 2**63 - 1, got {shorten(seed)}")
    return int(seed)
