"""Figures of several tasks as one: their mean, each task counting the same."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

#: The row of a table that averages over tasks.
MEAN_OF_TASKS = "mean of tasks"


def average_tasks(values: Float[np.ndarray, "task resample"]) -> Float[np.ndarray, " resample"]:
    """The mean over tasks, for `estimate_from`: over those defined in the sample, its first column.

    A resample in which one of them is not defined averages the others; NaN where none is.
    """
    known = values[~np.isnan(values[:, 0])]
    counts = (~np.isnan(known)).sum(axis=0)
    means = np.full(values.shape[1], np.nan)
    return np.divide(np.nansum(known, axis=0), counts, out=means, where=counts > 0)
