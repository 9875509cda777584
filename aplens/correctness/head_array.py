"""An array of every head on every scenario that is read from disk only where it is looked at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float, Int


class HeadArray:
    """`Float[ndarray, "scenario head width"]` that holds nothing: heads are read when asked for.

    Ranking goes head by head, so that it needs the memory of one head, not that of all. Indexing
    takes scenarios and, after them, one head or all: `array[rows]` is lazy again, `array[rows,
    head]` and `array[row]` are NumPy arrays, `numpy.asarray(array)` reads everything.

    Args:
        shape: (scenario, head, width).
        dtype: Of the numbers.
        read_head: Reads one head on all scenarios of the folder.
        rows: Which of these scenarios are in the array, in order.
    """

    ndim = 3

    def __init__(
        self,
        shape: tuple[int, int, int],
        dtype: Any,
        read_head: Callable[[int], Float[np.ndarray, "stored width"]],
        rows: Int[np.ndarray, " scenario"] | None = None,
    ) -> None:
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self._read_head = read_head
        self._rows = np.arange(shape[0]) if rows is None else rows

    def __len__(self) -> int:
        """Scenarios."""
        return self.shape[0]

    def __repr__(self) -> str:
        return f"HeadArray(shape={self.shape}, dtype={self.dtype})"

    def __getitem__(self, key: Any) -> Any:
        """Some scenarios of all heads or of one.

        Raises:
            IndexError: When a scenario or head is out of range, or the index is of another form.
        """
        rows, head = key if isinstance(key, tuple) and len(key) == 2 else (key, slice(None))
        chosen = self._rows[rows]
        if isinstance(head, int | np.integer):
            if not -self.shape[1] <= head < self.shape[1]:
                raise IndexError(f"head number {head} is out of range: there are {self.shape[1]}")
            return self._read_head(int(head) % self.shape[1])[chosen]
        if head != slice(None):
            raise IndexError(f"expected one head or all after the scenarios, got {head!r}")
        if np.ndim(chosen) == 0:
            return np.stack([self._read_head(number)[chosen] for number in range(self.shape[1])])
        return HeadArray((len(chosen), *self.shape[1:]), self.dtype, self._read_head, chosen)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        values = np.empty(self.shape, dtype or self.dtype)
        for head in range(self.shape[1]):
            values[:, head] = self[:, head]
        return values


#: Numbers of every head on every scenario, in memory or not.
HeadValues: TypeAlias = "np.ndarray | HeadArray"
