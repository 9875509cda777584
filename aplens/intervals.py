"""Intervals that resample source files, and tests that draw their signs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

#: Resamples of a bootstrap interval, and the share of them inside it.
N_RESAMPLES = 1000
COVERAGE = 0.95

#: Draws of a permutation test.
N_FLIPS = 9999

#: Bins of a calibration error; fewer where there are fewer scenarios.
_N_BINS = 10


class Estimate(NamedTuple):
    """A figure with its 95 % interval; NaN where it is not defined."""

    value: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        value, *ends = (format(number, spec or ".3f") for number in self)
        return value if np.isnan(self[1:]).any() else f"{value} [{', '.join(ends)}]"

    def __str__(self) -> str:
        return format(self)

    def columns(self, name: str) -> dict[str, float]:
        """As columns of a table: `name`, and its interval as `name_low` and `name_high`."""
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}


class FileBootstrap:
    """Resamples of scenarios that draw whole source files, since a file's scenarios are alike.

    Args:
        files: Each scenario's source file.
        n_resamples: How many resamples.
        seed: Decides the draws; one seed gives every predictor the same resamples.

    Attributes:
        weights: `Float[ndarray, "resample scenario"]`, how often each scenario was drawn. The first
            row is all ones: the sample itself.
    """

    def __init__(self, files: Sequence[str], n_resamples: int = N_RESAMPLES, seed: int = 0) -> None:
        names, file = np.unique(np.asarray(files, dtype=str), return_inverse=True)
        draws = np.random.default_rng(seed).multinomial(
            len(names), np.full(len(names), 1 / len(names)), size=n_resamples
        )
        self.weights = np.vstack([np.ones(len(file)), draws[:, file]])

    def auc(
        self,
        scores: Float[np.ndarray, " scenario"],
        positive: Bool[np.ndarray, " scenario"],
    ) -> Estimate:
        """The chance that a positive scenario scores above a negative one; ties count half."""
        return estimate_from(self.auc_values(scores, positive))

    def auc_values(
        self,
        scores: Float[np.ndarray, " scenario"],
        positive: Bool[np.ndarray, " scenario"],
        folds: Int[np.ndarray, " scenario"] | None = None,
    ) -> Float[np.ndarray, " resample"]:
        """`auc` in the sample and in every resample; NaN where it is not defined.

        The difference of two predictors' values has an interval of its own: they share resamples.

        Args:
            scores: Higher means positive.
            positive: The truth.
            folds: Only scenarios of the same fold are compared: scores of predictors fitted on
                different folds differ in level, which says nothing about how they rank.
        """
        folds = np.zeros(len(scores), dtype=np.int64) if folds is None else folds
        concordant, pairs = np.zeros(len(self.weights)), np.zeros(len(self.weights))
        for fold in np.unique(folds):
            chosen = folds == fold
            counts = _count_pairs(scores[chosen], positive[chosen], self.weights[:, chosen])
            concordant += counts[0]
            pairs += counts[1]
        return _ratios(concordant, pairs)

    def mean(self, values: Float[np.ndarray, " scenario"]) -> Estimate:
        """The mean over scenarios, such as of hits for accuracy."""
        return self.ratio(values, np.ones(len(values)))

    def calibration_error(
        self,
        probability: Float[np.ndarray, " scenario"],
        positive: Bool[np.ndarray, " scenario"],
    ) -> Estimate:
        """How far probabilities are from the shares that come true (expected calibration error).

        Scenarios are put into ten bins of neighbouring probabilities, as many in each; the error is
        the mean over scenarios of the distance between their bin's mean probability and its share
        of positive ones. Noise adds to it: a perfect predictor has about 0.4 / sqrt(scenarios a
        bin).

        Args:
            probability: Of being positive.
            positive: The truth.
        """
        order = np.argsort(probability, kind="stable")
        surplus = (probability - positive)[order]
        edges = np.unique(np.linspace(0, len(order), _N_BINS + 1).astype(int)[:-1])
        sums = np.add.reduceat(self.weights[:, order] * surplus, edges, axis=1)
        values = _ratios(np.abs(sums).sum(axis=1), self.weights.sum(axis=1))
        if len(values) > 1:
            # Resampling adds noise, which a mean of sizes only counts up: unless that is taken off
            # again, the interval can lie above the error that it is of.
            values[1:] -= np.nanmean(values[1:]) - values[0]
        value, low, high = estimate_from(values)
        return Estimate(value, max(0.0, min(low, value)), max(high, value))

    def ratio(
        self,
        numerator: Float[np.ndarray, " scenario"],
        denominator: Float[np.ndarray, " scenario"],
    ) -> Estimate:
        """A sum over scenarios divided by another, such as an error by a baseline's."""
        return estimate_from(_ratios(self.weights @ numerator, self.weights @ denominator))


def sign_flip_p_values(
    values: Float[np.ndarray, "row scenario"], files: Sequence[str]
) -> Float[np.ndarray, " row"]:
    """How often chance gives a mean as far from 0: a two-sided permutation test of each row.

    Where a row has no effect, its sign is as likely one as the other. So the signs of whole source
    files are drawn at random, and a mean that is as large in size is counted. The smallest p-value
    is 1 / (N_FLIPS + 1), and 2 / 2^files with few files: five cannot give one below 0.06.

    Args:
        values: Effects.
        files: Each scenario's source file.
    """
    names, file = np.unique(np.asarray(files, dtype=str), return_inverse=True)
    sums = np.zeros((len(values), len(names)))
    np.add.at(sums.T, file, values.T)
    signs = np.random.default_rng(0).integers(0, 2, (len(names), N_FLIPS)) * 2.0 - 1
    observed = np.abs(sums.sum(axis=1))
    # Equal sums in another order of addition are as large, too.
    as_large = np.abs(sums @ signs) >= observed[:, None] * (1 - 1e-9)
    return (1 + as_large.sum(axis=1)) / (1 + N_FLIPS)


def _count_pairs(
    scores: Float[np.ndarray, " scenario"],
    positive: Bool[np.ndarray, " scenario"],
    weights: Float[np.ndarray, "resample scenario"],
) -> tuple[Float[np.ndarray, " resample"], Float[np.ndarray, " resample"]]:
    """Positive-negative pairs in the right order, and all of them, in every resample at once."""
    order = np.argsort(scores, kind="stable")
    ties = np.flatnonzero(np.diff(scores[order], prepend=np.nan))  # where each new score starts
    up = np.add.reduceat(weights[:, order] * positive[order], ties, axis=1)
    down = np.add.reduceat(weights[:, order] * ~positive[order], ties, axis=1)
    below = down.cumsum(axis=1) - down
    return (up * (below + down / 2)).sum(axis=1), up.sum(axis=1) * down.sum(axis=1)


def _ratios(
    numerator: Float[np.ndarray, " resample"], denominator: Float[np.ndarray, " resample"]
) -> Float[np.ndarray, " resample"]:
    """NaN where the denominator is 0."""
    defined = denominator > 0
    return np.divide(numerator, denominator, out=np.full(len(defined), np.nan), where=defined)


def estimate_from(values: Float[np.ndarray, " resample"]) -> Estimate:
    """A figure and its interval, from its value in the sample and in every resample.

    Args:
        values: As computed with `FileBootstrap.weights`: the first is the sample's. NaN where a
            figure is not defined; those resamples are left out.
    """
    if np.isnan(values[0]):
        return Estimate(np.nan, np.nan, np.nan)
    resampled = values[1:] if len(values) > 1 else values
    tail = (1 - COVERAGE) / 2
    low, high = np.nanquantile(resampled, [tail, 1 - tail])
    return Estimate(float(values[0]), float(low), float(high))
