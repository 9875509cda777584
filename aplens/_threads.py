"""Patterns in parts, a thread each.

Most operations of an AP-MAE are small: two threads at one of them are hardly faster than one,
two threads at two parts of the patterns take half the time (docs/performance.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")

# Patterns a part: as many as stay in a core's cache; an accelerator is only busy with many.
_MOST_ON_CPU, _MOST, _FEWEST = 48, 512, 16


def map_parts(work: Callable[..., Result], *tensors: Tensor) -> list[Result]:
    """What `work` makes of parts of the tensors, in their order. Nothing is learned.

    The tensors are split alike, along their first dimension. On a CPU as many parts run at a time
    as torch has threads, and each computes with one thread.
    """
    on_cpu, n = tensors[0].device.type == "cpu", len(tensors[0])
    n_threads = torch.get_num_threads() if on_cpu else 1
    # Parts of about equal size: a small rest would take nearly as long as a whole part.
    n_parts = max(
        1,
        math.ceil(n / (_MOST_ON_CPU if on_cpu else _MOST)),
        min(n_threads, n // _FEWEST),
    )
    parts = list(zip(*(tensor.tensor_split(n_parts) for tensor in tensors), strict=True))
    run = torch.no_grad()(lambda part: work(*part))  # of each thread's own
    if min(n_threads, n_parts) == 1:
        return [run(part) for part in parts]
    one_each = partial(torch.set_num_threads, 1)
    try:
        with ThreadPoolExecutor(min(n_threads, n_parts), initializer=one_each) as threads:
            return list(threads.map(run, parts))
    finally:
        torch.set_num_threads(n_threads)  # what threads to come begin with
