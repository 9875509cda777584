"""Principal components without anything random in them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

#: Lengths below this share of the longest are rounding: the square root of float64's, since they
#: come from squares, with some room.
_NOTHING = 1e-7


@dataclass(frozen=True)
class PrincipalAxes:
    """The directions in which rows vary most, from their mean.

    Axes are orthogonal, of length 1, the most variance first, the largest entry of each positive.
    """

    mean: Float[np.ndarray, " column"]
    axes: Float[np.ndarray, "column axis"]

    def transform(self, rows: Float[np.ndarray, "row column"]) -> Float[np.ndarray, "row axis"]:
        """Where rows lie along the axes, from their mean."""
        return (rows - self.mean) @ self.axes


def fit_pca(rows: Float[np.ndarray, "row column"], n_components: int) -> PrincipalAxes:
    """Principal components in float64, fewer where rows vary in fewer directions.

    What rows vary by rounding is no direction: neither that of float64 nor that of numbers that
    were less precise before.

    scikit-learn's solvers that are as fast for a few components start from random numbers; where
    few rows are distinct, ARPACK goes on from others that no seed decides.
    """
    from scipy.linalg import eigh

    mean = rows.mean(axis=0, dtype=np.float64)
    centred = rows - mean
    by_row = len(rows) < rows.shape[1]  # products of rows are fewer than those of columns
    products = centred @ centred.T if by_row else centred.T @ centred
    last = len(products) - 1
    squares, axes = eigh(products, subset_by_index=(max(0, last + 1 - n_components), last))
    lengths = np.sqrt(np.maximum(squares, 0))
    rounding = np.finfo(rows.dtype).eps * np.linalg.norm(rows)
    varies = lengths > max(_NOTHING * lengths.max(), rounding)
    axes = axes[:, varies][:, ::-1]
    if by_row:
        axes = centred.T @ axes
        axes = axes / np.linalg.norm(axes, axis=0)
    largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=0)[None], axis=0)
    return PrincipalAxes(mean, np.where(largest < 0, -axes, axes))
