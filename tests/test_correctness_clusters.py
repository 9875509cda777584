"""Clusters: planted ones are found, new scenarios join them, odd heads do no harm."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score

from aplens.correctness import HeadClusters
from aplens.correctness.principal import fit_pca

REDUCERS = ["pca", "umap"]


@pytest.fixture(autouse=True)
def _umap_or_skip(request):
    parameters = getattr(request.node, "callspec", None)
    if parameters is not None and parameters.params.get("reducer") == "umap":
        pytest.importorskip("umap")


def planted(n, n_kinds, *, seed=0, d_embed=16, noise=0.05):
    """One head whose embeddings are of several kinds; and the kinds."""
    rng = np.random.default_rng(seed)
    kinds = rng.integers(0, n_kinds, n)
    centers = np.eye(d_embed)[:n_kinds]
    return (centers[kinds] + noise * rng.normal(size=(n, d_embed)))[:, None], kinds


@pytest.mark.parametrize("reducer", REDUCERS)
@pytest.mark.parametrize("n_kinds", [2, 3])
def test_planted_clusters_are_found_and_new_scenarios_join_them(reducer, n_kinds):
    embeddings, kinds = planted(200, n_kinds)
    clusters = HeadClusters(reducer).fit(embeddings[:150])
    assert len(set(clusters.labels_[:, 0]) - {-1}) == n_kinds
    assert adjusted_rand_score(kinds[:150], clusters.labels_[:, 0]) > 0.9
    assert adjusted_rand_score(kinds[150:], clusters.predict(embeddings[150:])[:, 0]) > 0.9


@pytest.mark.parametrize("reducer", REDUCERS)
def test_a_head_without_structure_is_one_cluster_or_nearly(reducer):
    embeddings = 1 + 0.1 * np.random.default_rng(0).normal(size=(150, 1, 8))
    labels = HeadClusters(reducer).fit(embeddings).labels_
    assert len(set(labels[:, 0]) - {-1}) <= 3


@pytest.mark.parametrize("reducer", REDUCERS)
@pytest.mark.parametrize("value", [0.0, 0.7])
def test_a_constant_head_is_one_cluster(reducer, value):
    embeddings, _ = planted(60, 2)
    both = np.concatenate([embeddings, np.full_like(embeddings, value)], axis=1)
    clusters = HeadClusters(reducer).fit(both)
    assert set(clusters.labels_[:, 1]) == {0}
    assert set(clusters.predict(both)[:, 1]) == {0}
    assert len(set(clusters.labels_[:, 0]) - {-1}) == 2


def test_length_does_not_matter_only_direction():
    embeddings, _ = planted(100, 2)
    lengths = np.random.default_rng(1).uniform(0.5, 2, size=(100, 1, 1))
    plain, scaled = (HeadClusters("pca").fit(x).labels_ for x in (embeddings, embeddings * lengths))
    assert adjusted_rand_score(plain[:, 0], scaled[:, 0]) == 1


def test_small_samples_may_have_small_clusters():
    embeddings, kinds = planted(30, 2)  # 15 each: the paper's smallest cluster is 25
    labels = HeadClusters("pca").fit(embeddings).labels_[:, 0]
    assert adjusted_rand_score(kinds, labels) > 0.9


def test_outliers_are_noise_and_so_is_what_is_nearest_to_them(monkeypatch):
    monkeypatch.setattr("aplens.correctness.clusters._N_VOTES", 1)
    embeddings, _ = planted(100, 2)
    outliers = np.stack([-np.eye(16)[0], -np.eye(16)[1], np.eye(16)[2]])[:, None]
    clusters = HeadClusters("pca").fit(np.concatenate([embeddings, outliers]))
    assert list(clusters.labels_[-3:, 0]) == [-1, -1, -1]
    assert list(clusters.predict(0.9 * outliers)[:, 0]) == [-1, -1, -1]


def test_fitting_is_deterministic():
    embeddings = np.random.default_rng(0).normal(size=(80, 3, 8)).astype(np.float16)
    first, again = (HeadClusters("pca", seed=3).fit(embeddings) for _ in range(2))
    assert (first.labels_ == again.labels_).all()
    assert (first.predict(embeddings[:9]) == again.predict(embeddings[:9])).all()


def few_values(n, n_distinct, d_embed, n_constant, seed, steps):
    """One head with ties: few distinct rows, of few distinct numbers, some columns constant."""
    rng = np.random.default_rng(seed)
    distinct = rng.integers(-steps, steps + 1, size=(n_distinct, 1, d_embed)).astype(np.float16)
    distinct[..., :n_constant] = 1
    return distinct[rng.integers(0, n_distinct, n)]


TIED = {
    "n": st.integers(10, 30),
    "n_distinct": st.integers(1, 10),
    "d_embed": st.integers(1, 8),
    "n_constant": st.integers(0, 3),
    "seed": st.integers(0, 2**16),
    "steps": st.sampled_from([1, 3, 1000]),
}


@settings(max_examples=100, deadline=None)
@given(**TIED)
def test_with_few_values_pca_gives_the_same_labels_again(**tied):
    embeddings = few_values(**tied)
    first, again = (HeadClusters("pca", seed=0).fit(embeddings).labels_ for _ in range(2))
    np.testing.assert_array_equal(first, again)


@settings(max_examples=15, deadline=None)
@given(**TIED)
@example(n=11, n_distinct=3, d_embed=6, n_constant=0, seed=0, steps=1000)
@example(n=18, n_distinct=3, d_embed=6, n_constant=0, seed=0, steps=1000)
@example(n=20, n_distinct=8, d_embed=8, n_constant=0, seed=0, steps=1)
def test_with_few_values_umap_gives_the_same_labels_again(**tied):
    pytest.importorskip("umap")
    embeddings = few_values(**tied)
    first, again = (HeadClusters("umap", seed=0).fit(embeddings).labels_ for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_labels_do_not_depend_on_the_last_digits_of_components(monkeypatch):
    from aplens.correctness import clusters

    heads = [few_values(120, 20, 3, 0, seed, steps=1) for seed in range(10)]
    embeddings = np.concatenate(heads, axis=1)  # many distances are equal, by different sums
    labels = HeadClusters("pca").fit(embeddings).labels_

    def fit_pca_otherwise(rows, n_components):
        fitted = fit_pca(rows, n_components)
        noise = 1e-14 * np.random.default_rng(1).normal(size=fitted.axes.shape)
        return replace(fitted, axes=fitted.axes + noise)

    monkeypatch.setattr(clusters, "fit_pca", fit_pca_otherwise)
    np.testing.assert_array_equal(HeadClusters("pca").fit(embeddings).labels_, labels)


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(10, 60),
    d_embed=st.integers(1, 12),
    n_distinct=st.integers(1, 60),
    seed=st.integers(0, 2**16),
)
def test_any_finite_embeddings_get_labels(n, d_embed, n_distinct, seed):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n_distinct, 1, d_embed))[rng.integers(0, n_distinct, n)]
    clusters = HeadClusters("pca").fit(rows)
    assert clusters.labels_.shape == (n, 1)
    labels = set(clusters.labels_[:, 0])
    assert labels - {-1} == set(range(len(labels - {-1})))
    assert len(labels - {-1}) >= 1
    assert set(clusters.predict(rows)[:, 0]) <= labels


def test_what_is_installed_decides_no_result(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert HeadClusters().reducer == "pca"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert HeadClusters().reducer == "pca"
    with pytest.raises(ImportError, match=r"pip install 'aplens\[umap\]'"):
        HeadClusters("umap")


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="reducer must be one of"):
        HeadClusters("tsne")
    with pytest.raises(ValueError, match="at least 10 scenarios, got 9"):
        HeadClusters("pca").fit(np.zeros((9, 1, 4)))
    with pytest.raises(ValueError, match=r"expected embeddings \(scenario, head, d_embed\)"):
        HeadClusters("pca").fit(np.zeros((20, 4)))
    broken = np.zeros((20, 3, 4))
    broken[5, 1, 2] = np.nan
    with pytest.raises(ValueError, match="embeddings of head number 1 have NaN"):
        HeadClusters("pca").fit(broken)
    fitted = HeadClusters("pca").fit(np.zeros((20, 3, 4)))
    with pytest.raises(ValueError, match=r"= \(3, 4\) as fitted, got \(2, 4\)"):
        fitted.predict(np.zeros((5, 2, 4)))
