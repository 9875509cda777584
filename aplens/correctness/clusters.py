"""Categories of patterns, head by head: the paper's clusters."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float, Int

from aplens._documents import require_choice
from aplens.correctness.density import cluster_by_density
from aplens.correctness.head_array import HeadValues
from aplens.correctness.principal import fit_pca

Reducer = Literal["umap", "pca"]

#: The paper's settings, of UMAP and of HDBSCAN after it (docs/method.md, step 8).
N_NEIGHBORS = 20
MIN_DIST = 0.05
MIN_CLUSTER_SIZE = 25

#: Dimensions kept and HDBSCAN's min_samples, after each reducer. The paper's are those of UMAP,
#: which packs neighbours together. PCA does not, and with the same settings HDBSCAN finds no dense
#: places among a few hundred points: two clusters in 4 % of the heads, against half with these.
_DENSITY = {"umap": (8, 20), "pca": (3, 5)}

#: Fewer scenarios than this show no clusters.
FEWEST_SCENARIOS = 10

#: Fitted scenarios that vote on a new one.
_N_VOTES = 5

#: Scenarios compared at once with all fitted ones: what bounds the memory that comparing takes.
_ROWS_AT_ONCE = 1024

#: What positions along principal components are rounded to before they are clustered: differences
#: then square and add up exactly, and rounding that differs between processors is gone.
_GRID = 2.0**-24

#: Unit vectors that differ by less are the same but for rounding.
_ALIKE = 1e-6


class HeadClusters:
    """Clusters each head's embeddings on its own, without looking at outcomes.

    An embedding is scaled to length 1 (the paper compares by cosine), reduced, and clustered by
    HDBSCAN; what fits no cluster is noise, a category of its own (-1). See docs/method.md, step 8.

    Where HDBSCAN finds no two clusters, all of the head's scenarios are one, and none is noise.
    HDBSCAN's own `allow_single_cluster`, which the paper sets, is not used: on 485 scenarios of
    SmolLM2 it left each of 270 heads a single cluster, and called 43 % (UMAP) or 94 % (PCA) of the
    scenarios noise, where UMAP has 2.6 clusters a head without it.

    A new scenario takes the category that most of its five nearest fitted scenarios have, by cosine
    in the embedding space: neither UMAP nor HDBSCAN places new points exactly.

    Equal embeddings and an equal seed give equal labels. With "pca" they do on any processor:
    positions along the components are rounded to multiples of 2^-24 (seven decimals, of embeddings
    of length 1), and merges at equal distances have a fixed order
    (`aplens.correctness.density`). With "umap", whose steps enlarge the last digit, and for
    embeddings that another processor computed, labels may differ. UMAP starts from PCA, not from
    the graph's spectrum as the paper's: that start is random where few embeddings are distinct.

    With fewer than 250 scenarios the smallest cluster is a tenth of them, not the paper's 25, and
    `min_samples` no larger.

    Args:
        reducer: "pca" (0.03 s a head for 300 scenarios), or "umap" as the paper (a second a head).
        seed: Of UMAP.

    Attributes:
        labels_: `Int[ndarray, "scenario head"]`, clusters of the fitted scenarios; -1 is noise.

    Raises:
        ValueError: When `reducer` is unknown.
        ImportError: When "umap" is asked for and umap-learn is not installed.
    """

    def __init__(self, reducer: Reducer = "pca", *, seed: int = 0) -> None:
        require_reducer(reducer)
        self.reducer = reducer
        self.seed = seed

    def describe(self) -> dict[str, Any]:
        """What decides the clusters, beside the data."""
        return {"reducer": self.reducer, "n_votes": _N_VOTES, "seed": self.seed}

    def fit(self, embeddings: HeadValues) -> HeadClusters:
        """Cluster every head.

        Args:
            embeddings: `Float["scenario head d_embed"]`, in memory or not; heads are read one by
                one, and those of the fitted scenarios again when new ones are placed.

        Raises:
            ValueError: When the shape is wrong, there are fewer than 10 scenarios, or a value is
                not finite.
        """
        check_shape(embeddings)
        if len(embeddings) < FEWEST_SCENARIOS:
            raise ValueError(
                f"clustering needs at least {FEWEST_SCENARIOS} scenarios, got {len(embeddings)}"
            )
        labels = [
            _cluster_one_head(rows, self.reducer, self.seed) for rows in unit_heads(embeddings)
        ]
        self.labels_: Int[np.ndarray, "scenario head"] = np.stack(labels, axis=1)
        self._fitted = embeddings
        return self

    def predict(self, embeddings: HeadValues) -> Int[np.ndarray, "scenario head"]:
        """The categories of scenarios that may be new.

        Raises:
            ValueError: When the heads or the width differ from those fitted, or a value is not
                finite.
        """
        check_shape(embeddings)
        if embeddings.shape[1:] != self._fitted.shape[1:]:
            raise ValueError(
                f"expected (head, d_embed) = {self._fitted.shape[1:]} as fitted, "
                f"got {embeddings.shape[1:]}"
            )
        return np.stack(
            [
                _vote(rows, fitted, labels)
                for rows, fitted, labels in zip(
                    unit_heads(embeddings), unit_heads(self._fitted), self.labels_.T, strict=True
                )
            ],
            axis=1,
        )


def require_reducer(reducer: Reducer) -> None:
    """Refuse a reducer that is unknown or not installed."""
    require_choice("reducer", reducer, get_args(Reducer))
    if reducer == "umap" and importlib.util.find_spec("umap") is None:
        raise ImportError(
            "reducer 'umap' needs umap-learn: pip install 'aplens[umap]', or take reducer 'pca'"
        )


def check_shape(embeddings: HeadValues) -> None:
    """Refuse what is not (scenario, head, d_embed)."""
    if embeddings.ndim != 3 or 0 in embeddings.shape:
        raise ValueError(
            f"expected embeddings (scenario, head, d_embed), not empty, got {embeddings.shape}"
        )


def unit_heads(embeddings: HeadValues) -> Iterator[Float[np.ndarray, "scenario d_embed"]]:
    """Head by head, each embedding scaled to length 1."""
    for head in range(embeddings.shape[1]):
        rows = embeddings[:, head]
        if not np.isfinite(rows).all():
            raise ValueError(f"the embeddings of head number {head} have NaN or infinity")
        yield unit_rows(rows)


def unit_rows(
    embeddings: Float[np.ndarray, "scenario d_embed"],
) -> Float[np.ndarray, "scenario d_embed"]:
    """Scale each row to length 1 in float32; a row of zeros stays."""
    rows = embeddings.astype(np.float32)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1)


def are_alike(rows: Float[np.ndarray, "scenario d_embed"]) -> bool:
    """Whether a head's unit embeddings differ by rounding at most."""
    return bool(np.ptp(rows, axis=0).max() < _ALIKE)


def _cluster_one_head(
    rows: Float[np.ndarray, "scenario d_embed"], reducer: str, seed: int
) -> Int[np.ndarray, " scenario"]:
    one_cluster = np.zeros(len(rows), dtype=np.int64)
    if are_alike(rows):
        return one_cluster
    n_dimensions, min_samples = _DENSITY[reducer]
    reduced = (
        fit_umap(rows, n_dimensions, seed=seed)
        if reducer == "umap"
        else np.rint(fit_pca(rows, n_dimensions).transform(rows) / _GRID) * _GRID
    )
    smallest = min(MIN_CLUSTER_SIZE, max(2, len(rows) // 10))
    labels = cluster_by_density(reduced, smallest, min(min_samples, smallest))
    return labels if labels.max() > 0 else one_cluster


def fit_umap(
    rows: Float[np.ndarray, "row d_embed"],
    n_dimensions: int,
    n_neighbors: int = N_NEIGHBORS,
    min_dist: float = MIN_DIST,
    seed: int = 0,
) -> Float[np.ndarray, "row dim"]:
    """UMAP by cosine that gives the same places for the same seed."""
    with warnings.catch_warnings():
        # That TensorFlow is missing, and that a seed means one thread: neither matters here.
        warnings.simplefilter("ignore")
        from umap import UMAP

        # Its own "spectral" asks SciPy's ARPACK, which goes on from random numbers that no seed
        # decides where few rows are distinct.
        umap = UMAP(
            n_components=min(n_dimensions, len(rows) - 2, rows.shape[1]),
            n_neighbors=min(n_neighbors, len(rows) - 1),
            min_dist=min_dist,
            metric="cosine",
            init="pca",
            random_state=seed,
        )
        return umap.fit_transform(rows).astype(np.float64)


def _vote(
    rows: Float[np.ndarray, "scenario d_embed"],
    fitted: Float[np.ndarray, "fitted d_embed"],
    labels: Int[np.ndarray, " fitted"],
) -> Int[np.ndarray, " scenario"]:
    """The most frequent label among the nearest fitted rows; the nearest row's among equals.

    Every row is compared with every fitted one: exact, and the product of their numbers in time. In
    a few hundred dimensions a tree would compare as many.
    """
    if (labels == labels[0]).all():
        return np.full(len(rows), labels[0])
    import torch

    known = torch.from_numpy(fitted).T
    # torch's topk is several times as fast as numpy's argpartition.
    nearest = torch.cat(
        [
            (part @ known).topk(min(_N_VOTES, len(fitted)), dim=1).indices
            for part in torch.from_numpy(rows).split(_ROWS_AT_ONCE)
        ]
    )
    votes = labels[nearest.numpy()]
    counts = (votes[:, :, None] == votes[:, None, :]).sum(axis=2)
    return np.take_along_axis(votes, counts.argmax(axis=1)[:, None], axis=1)[:, 0]
