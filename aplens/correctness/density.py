"""HDBSCAN whose labels do not depend on the order in which a processor sorts equal distances."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

#: Merges of points in one place count as this far apart: half of what embeddings are rounded to
#: before they are clustered (`aplens.correctness.clusters`).
_SHORTEST = 2.0**-25

#: What sets equal merges apart: a few units in the last place.
_APART = 2.0**-50


def cluster_by_density(
    points: Float[np.ndarray, "point dim"], min_cluster_size: int, min_samples: int
) -> Int[np.ndarray, " point"]:
    """Label points as scikit-learn's HDBSCAN does, with equal merges in the order they are found.

    A point's core distance is the length of several edges of the spanning tree, so many are equal.
    scikit-learn sorts the edges with NumPy's default sort, which leaves equal ones in another
    order on a processor with other vector instructions: on the demo's 270 heads every fifth got
    other labels. Here the tree is built first, its equal edges are set apart, and scikit-learn
    cuts it. Takes memory for a few numbers a point, time for every pair. Labels are the same
    everywhere when squares of differences add up without rounding, as those of multiples of 2^-24
    below 2 do.
    """
    from scipy.sparse import coo_array
    from sklearn.cluster import HDBSCAN

    ends, lengths = _spanning_tree(points, _core_distances(points, min_samples))
    order = np.argsort(lengths, kind="stable")
    apart = np.maximum(lengths[order], _SHORTEST) * (1 + _APART * np.arange(len(order)))
    one, other = ends[order].T
    both_ways = (np.concatenate([one, other]), np.concatenate([other, one]))
    tree = coo_array((np.tile(apart, 2), both_ways), shape=(len(points), len(points)))
    # With min_samples=1 HDBSCAN takes distances as they are: core distances are in them already.
    return HDBSCAN(
        metric="precomputed", min_cluster_size=min_cluster_size, min_samples=1, copy=True
    ).fit_predict(tree.tocsr())


def _core_distances(
    points: Float[np.ndarray, "point dim"], min_samples: int
) -> Float[np.ndarray, " point"]:
    """Squared distance of each point to its nearest `min_samples`-th, itself the first."""
    from scipy.spatial import KDTree

    _, nearest = KDTree(points).query(points, k=[min_samples])
    # Squared anew: the square of a root is rounded.
    return np.square(points - points[nearest[:, 0]]).sum(axis=1)


def _spanning_tree(
    points: Float[np.ndarray, "point dim"], core: Float[np.ndarray, " point"]
) -> tuple[Int[np.ndarray, "edge 2"], Float[np.ndarray, " edge"]]:
    """The minimum spanning tree of mutual reachability, by Prim's algorithm.

    `core` has squares. Edges come in the order they are found, their lengths not squared.
    """
    n_edges = len(points) - 1
    # Points outside the tree lie in the first places of each array.
    outside, places, cores = np.arange(1, len(points)), points[1:].T.copy(), core[1:].copy()
    reach, nearest = np.full(n_edges, np.inf), np.zeros(n_edges, dtype=np.int64)
    ends, squares = np.empty((n_edges, 2), dtype=np.int64), np.empty(n_edges)
    new = 0
    for edge in range(n_edges):
        left = n_edges - edge
        from_new = np.square(places[:, :left] - points[new][:, None]).sum(axis=0)
        from_new = np.maximum(np.maximum(from_new, cores[:left]), core[new])
        nearest[:left][from_new < reach[:left]] = new
        np.minimum(reach[:left], from_new, out=reach[:left])
        at = int(reach[:left].argmin())
        new = int(outside[at])
        ends[edge], squares[edge] = (nearest[at], new), reach[at]
        for array in (outside, places, cores, reach, nearest):
            array[..., at] = array[..., left - 1]
    return ends, np.sqrt(squares)
