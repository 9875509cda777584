"""AUC and intervals against scikit-learn and against what resampling files must do."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import permutation_test
from sklearn.metrics import roc_auc_score

from aplens.intervals import FileBootstrap, sign_flip_p_values


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    n=st.integers(4, 40),
    levels=st.integers(1, 6),  # few levels, so many ties
)
def test_auc_is_scikit_learns_also_with_ties_and_weights(seed, n, levels):
    rng = np.random.default_rng(seed)
    scores, positive = rng.integers(0, levels, n) / levels, rng.random(n) < 0.5
    positive[:2] = True, False
    bootstrap = FileBootstrap([f"f{i // 2}" for i in range(n)], n_resamples=20, seed=seed)
    found = bootstrap.auc(scores, positive)
    assert found.value == pytest.approx(roc_auc_score(positive, scores))
    resampled = [
        roc_auc_score(positive, scores, sample_weight=weights)
        for weights in bootstrap.weights[1:]
        if len(set(positive[weights > 0])) == 2
    ]
    if resampled:
        assert found[1:] == pytest.approx(np.quantile(resampled, [0.025, 0.975]))


def test_auc_compares_within_folds_only():
    # Each fold is ranked perfectly, at levels that would make a poor ranking together.
    scores = np.array([0.1, 0.2, 0.8, 0.9])
    positive = np.array([False, True, False, True])
    bootstrap = FileBootstrap(["a", "b", "c", "d"])
    assert bootstrap.auc(scores, positive).value == 0.75
    assert bootstrap.auc_values(scores, positive, folds=np.array([0, 0, 1, 1]))[0] == 1.0


def test_auc_of_one_outcome_is_not_defined():
    found = FileBootstrap(["a", "b"]).auc(np.array([0.1, 0.9]), np.array([True, True]))
    assert all(math.isnan(value) for value in found)


def test_interval_of_a_mean_is_the_textbook_one():
    rng = np.random.default_rng(0)
    hits = (rng.random(900) < 0.7).astype(float)
    found = FileBootstrap([str(i) for i in range(900)], n_resamples=4000).mean(hits)
    half = 1.96 * math.sqrt(found.value * (1 - found.value) / 900)
    assert found.low == pytest.approx(found.value - half, abs=0.004)
    assert found.high == pytest.approx(found.value + half, abs=0.004)


def test_files_whose_scenarios_agree_widen_the_interval():
    rng = np.random.default_rng(0)
    hits = np.repeat((rng.random(50) < 0.5).astype(float), 20)
    by_file = FileBootstrap([str(i // 20) for i in range(1000)]).mean(hits)
    by_scenario = FileBootstrap([str(i) for i in range(1000)]).mean(hits)
    assert by_file.value == by_scenario.value
    assert by_file.high - by_file.low > 3 * (by_scenario.high - by_scenario.low)


def test_a_resample_draws_whole_files_and_as_many():
    files = ["a", "a", "b", "c", "c", "c"]
    weights = FileBootstrap(files, n_resamples=50).weights
    assert (weights[0] == 1).all()
    assert (weights[:, 0] == weights[:, 1]).all()
    assert (weights[:, 3] == weights[:, 5]).all()
    assert (weights[:, [0, 2, 3]].sum(axis=1) == 3).all()


def test_same_seed_same_resamples():
    files = [str(i) for i in range(20)]
    first, again, other = (FileBootstrap(files, seed=seed).weights for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


def test_calibration_is_the_gap_between_what_is_said_and_what_happens():
    rng = np.random.default_rng(0)
    n = 20_000
    probability = rng.random(n)
    positive = rng.random(n) < probability
    bootstrap = FileBootstrap([str(i) for i in range(n)], n_resamples=50)
    honest = bootstrap.calibration_error(probability, positive)
    assert honest.value < 0.015
    boasting = bootstrap.calibration_error(np.full(n, 0.9), rng.random(n) < 0.6)
    assert abs(boasting.value - 0.3) < 0.015
    assert boasting.low < 0.3 + 0.01
    assert boasting.high > 0.3 - 0.01


def test_a_calibration_error_is_inside_its_own_interval():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        probability = rng.random(120)
        positive = rng.random(120) < probability  # calibrated: resampling can only add to it
        files = [str(i // 3) for i in range(120)]
        found = FileBootstrap(files, n_resamples=200).calibration_error(probability, positive)
        assert 0 <= found.low < found.value < found.high


@given(seed=st.integers(0, 1000), n=st.integers(1, 40))
def test_calibration_error_is_the_sum_over_bins(seed, n):
    rng = np.random.default_rng(seed)
    probability, positive = rng.random(n), rng.random(n) < 0.5
    found = FileBootstrap(["one"] * n, n_resamples=2).calibration_error(probability, positive)
    order = np.argsort(probability, kind="stable")
    edges = np.unique(np.linspace(0, n, 11).astype(int))
    bins = [order[a:b] for a, b in itertools.pairwise(edges)]
    expected = sum(abs((probability[b] - positive[b]).sum()) for b in bins) / n
    assert found.value == pytest.approx(expected)


def test_p_values_are_those_of_scipys_exact_permutation_test():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(5, 10)) + np.array([0, 0.3, 0.6, -1, 2])[:, None]
    found = sign_flip_p_values(values, [str(i) for i in range(10)])
    for row, p in zip(values, found, strict=True):
        exact = permutation_test((row,), np.mean, permutation_type="samples").pvalue
        assert p == pytest.approx(exact, abs=0.02)


def test_p_values_draw_the_signs_of_whole_files_and_are_uniform_without_an_effect():
    rng = np.random.default_rng(1)
    alike = np.repeat(rng.normal(size=(400, 12)), 5, axis=1)  # five scenarios a file, all the same
    files = [str(i // 5) for i in range(60)]
    found = sign_flip_p_values(alike, files)
    assert (found < 0.05).mean() == pytest.approx(0.05, abs=0.03)
    assert found == pytest.approx(sign_flip_p_values(alike[:, ::5], files[::5]), abs=1e-9)
    as_if_single = sign_flip_p_values(alike, [str(i) for i in range(60)])
    assert (as_if_single < 0.05).mean() > 0.3
