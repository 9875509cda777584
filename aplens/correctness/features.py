"""What a correctness predictor looks at: the paper's clusters, embeddings, and the baselines."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import numpy as np
from jaxtyping import Float, Int

from aplens._words import shorten, split_features
from aplens.correctness.clusters import HeadClusters, are_alike, check_shape, unit_heads
from aplens.correctness.observations import HEAD_NUMBERS, Keep, Observations
from aplens.correctness.principal import fit_pca

#: Directions kept of each head's embeddings; measured, 2 to 16 predict alike.
N_COMPONENTS = 8


class FeatureBlock:
    """One kind of feature as columns of numbers, fitted on training observations alone.

    This one has no column: what a predictor can still learn is how often the model is wrong.

    Attributes:
        column_heads: Which head a column describes, by its place in `Observations.heads`; -1 where
            it describes none.
    """

    column_heads: Int[np.ndarray, " column"] = np.empty(0, dtype=int)

    def fit_transform(self, observations: Observations) -> Float[np.ndarray, "scenario column"]:
        """Fit on these observations, and describe them."""
        self._fit(observations)
        return self.transform(observations)

    def transform(self, observations: Observations) -> Float[np.ndarray, "scenario column"]:
        """Describe observations that may be new."""
        return np.empty((len(observations), 0))

    def _fit(self, observations: Observations) -> None:
        """Learn what `transform` needs, and the heads of the columns."""


class TaskFeatures(FeatureBlock):
    """One column a task, 1 where a scenario is of that task; a task that is new has none."""

    def _fit(self, observations: Observations) -> None:
        self._tasks = np.unique(_tasks_of(observations))
        self.column_heads = np.full(len(self._tasks), -1)

    def transform(self, observations: Observations) -> Float[np.ndarray, "scenario task"]:
        """See `FeatureBlock`."""
        return (_tasks_of(observations)[:, None] == self._tasks).astype(float)


class ConfidenceFeatures(FeatureBlock):
    """How sure the model itself is: the probability of its prediction, and the entropy."""

    column_heads = np.array([-1, -1])

    def transform(self, observations: Observations) -> Float[np.ndarray, "scenario 2"]:
        """See `FeatureBlock`."""
        return observations.table[["top_probability", "entropy"]].to_numpy(dtype=float)


class HeadNumberFeatures(FeatureBlock):
    """Numbers that observing kept for every head, as they are: one of `HEAD_NUMBERS`."""

    def __init__(self, name: str) -> None:
        self._name = name

    def _fit(self, observations: Observations) -> None:
        n_heads, n_numbers = observations.numbers(self._name).shape[1:]
        self.column_heads = np.repeat(np.arange(n_heads), n_numbers)

    def transform(self, observations: Observations) -> Float[np.ndarray, "scenario column"]:
        """See `FeatureBlock`."""
        return observations.numbers(self._name).reshape(len(observations), -1).astype(float)


class EmbeddingFeatures(FeatureBlock):
    """Where each head's embedding lies along the directions in which it varies most (PCA).

    A head has no more columns than there are directions in which it varies, none if it never does.
    """

    def _fit(self, observations: Observations) -> None:
        check_shape(observations.embeddings)
        self._axes = [
            None if are_alike(rows) else fit_pca(rows, N_COMPONENTS)
            for rows in unit_heads(observations.embeddings)
        ]
        widths = [0 if found is None else found.axes.shape[1] for found in self._axes]
        self.column_heads = np.repeat(np.arange(len(widths)), widths)

    def transform(self, observations: Observations) -> Float[np.ndarray, "scenario column"]:
        """See `FeatureBlock`."""
        check_shape(observations.embeddings)
        heads = zip(self._axes, unit_heads(observations.embeddings), strict=True)
        parts = [found.transform(rows) for found, rows in heads if found is not None]
        return np.concatenate([np.empty((len(observations), 0)), *parts], axis=1)


class ClusterFeatures(FeatureBlock):
    """The category of each head's pattern, one column a category (docs/method.md, step 9).

    Columns of 0 and 1, not one categorical column a head: shap's TreeExplainer reads scikit-learn's
    categorical splits as numerical ones, and its values are wrong without a warning. A head's SHAP
    value is the sum over its columns, so all heads' values still add up to the prediction. A head
    with a single category has no column.
    """

    def __init__(self, clusters: HeadClusters) -> None:
        self._clusters = copy.copy(clusters)  # fitted here, the caller's stays as it is

    def fit_transform(self, observations: Observations) -> Float[np.ndarray, "scenario column"]:
        """See `FeatureBlock`."""
        labels = self._clusters.fit(observations.embeddings).labels_
        found = [np.unique(column) for column in labels.T]
        self._categories = [one if len(one) > 1 else one[:0] for one in found]
        widths = [len(categories) for categories in self._categories]
        self.column_heads = np.repeat(np.arange(len(widths)), widths)
        return self._encode(labels)

    def transform(self, observations: Observations) -> Float[np.ndarray, "scenario column"]:
        """See `FeatureBlock`."""
        return self._encode(self._clusters.predict(observations.embeddings))

    def _encode(
        self, labels: Int[np.ndarray, "scenario head"]
    ) -> Float[np.ndarray, "scenario column"]:
        return np.concatenate(
            [labels[:, [head]] == categories for head, categories in enumerate(self._categories)],
            axis=1,
        ).astype(float)


def make_features(name: str, clusters: HeadClusters) -> list[FeatureBlock]:
    """The blocks that a name such as "embeddings+confidence" stands for."""
    blocks: dict[str, Callable[[], FeatureBlock]] = {
        "majority": FeatureBlock,
        "task": TaskFeatures,
        "confidence": ConfidenceFeatures,
        **{name: partial(HeadNumberFeatures, name) for name in HEAD_NUMBERS},
        "embeddings": EmbeddingFeatures,
        "clusters": lambda: ClusterFeatures(clusters),
    }
    parts = split_features(name)
    unknown = [part for part in parts if part not in blocks]
    if unknown:
        raise ValueError(
            f"features must be one of {list(blocks)}, or several joined by '+', got {shorten(name)}"
        )
    return [blocks[part]() for part in parts]


def keep_for(features: str) -> set[Keep]:
    """What `observe` has to keep for features such as "surprise+confidence"."""
    return {HEAD_NUMBERS[part] for part in split_features(features) if part in HEAD_NUMBERS}


def _tasks_of(observations: Observations) -> np.ndarray:
    return observations.table["task"].to_numpy(dtype=str)
