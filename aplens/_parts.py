"""Patterns in parts, so that memory does not grow with their number."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor

# Patterns a part: on a CPU as many as its caches hold; an accelerator is only busy with many.
_MOST_ON_CPU, _MOST = 96, 512


def in_parts(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Parts of the tensors, split alike along their first dimension.

    They are of about equal size: a small rest would take nearly as long as a whole part.
    """
    most = _MOST_ON_CPU if tensors[0].device.type == "cpu" else _MOST
    n_parts = max(1, math.ceil(len(tensors[0]) / most))
    return zip(*(tensor.tensor_split(n_parts) for tensor in tensors), strict=True)
