"""Patterns in parts, so that memory does not grow with their number."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")

# Patterns a part: on a CPU as many as its caches hold; an accelerator is only busy with many.
_MOST_ON_CPU, _MOST = 96, 512


@torch.no_grad()
def map_parts(work: Callable[..., Result], *tensors: Tensor) -> list[Result]:
    """What `work` makes of parts of the tensors, in their order. Nothing is learned.

    The tensors are split alike, along their first dimension, into parts of about equal size: a
    small rest would take nearly as long as a whole part.
    """
    most = _MOST_ON_CPU if tensors[0].device.type == "cpu" else _MOST
    n_parts = max(1, math.ceil(len(tensors[0]) / most))
    parts = (tensor.tensor_split(n_parts) for tensor in tensors)
    return [work(*part) for part in zip(*parts, strict=True)]
