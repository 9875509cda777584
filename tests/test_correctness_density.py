"""Density clusters are HDBSCAN's, and the same however equal distances are sorted."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.cluster import HDBSCAN
from sklearn.metrics import adjusted_rand_score

from aplens.correctness.density import cluster_by_density


def blobs(seed, n=120, n_dimensions=3):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, n_dimensions)) + 4 * rng.integers(0, 3, size=(n, 1))


@pytest.mark.parametrize("seed", range(5))
def test_where_no_distances_are_equal_the_clusters_are_scikit_learns(seed):
    points = blobs(seed)  # each point its own core: the tree's edges are distances, all different
    labels = cluster_by_density(points, 8, 1)
    expected = HDBSCAN(min_cluster_size=8, min_samples=1, copy=True).fit_predict(points)
    assert expected.max() > 0
    assert adjusted_rand_score(labels, expected) == 1
    assert ((labels == -1) == (expected == -1)).all()


@pytest.mark.parametrize("seed", range(5))
def test_core_distances_count_the_point_itself(seed):
    points = blobs(seed)
    labels = cluster_by_density(points, 8, 5)
    expected = HDBSCAN(min_cluster_size=8, min_samples=5, copy=True).fit_predict(points)
    assert adjusted_rand_score(labels, expected) > 0.9  # equal edges are in another order


def test_labels_do_not_depend_on_how_the_processor_sorts_what_is_equal(monkeypatch):
    points = [np.random.default_rng(seed).normal(size=(200, 3)) * [3, 1, 1] for seed in range(8)]
    labels = [cluster_by_density(one, 5, 5) for one in points]
    sort = np.argsort

    def sort_equal_ones_backward(values, axis=-1, kind=None, **options):
        if kind == "stable" or np.ndim(values) != 1:
            return sort(values, axis=axis, kind=kind, **options)
        return len(values) - 1 - sort(values[::-1], kind="stable")

    monkeypatch.setattr(np, "argsort", sort_equal_ones_backward)
    for one, before in zip(points, labels, strict=True):
        np.testing.assert_array_equal(cluster_by_density(one, 5, 5), before)


def test_points_in_one_place_are_in_one_cluster():
    places = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 3.0]])
    kinds = np.repeat([0, 1, 2], [10, 12, 14])
    assert adjusted_rand_score(cluster_by_density(places[kinds], 5, 5), kinds) == 1
