"""Ranking heads by a predictor: what was fitted on is not ranked on, and its AUC is told."""

from __future__ import annotations

import numpy as np
import pytest
from correctness_helpers import make_observations

from aplens.correctness import HeadClusters, rank_by_predictor, split_by_file
from aplens.heads import Head

PCA = HeadClusters("pca")


def test_a_planted_head_is_ranked_first_with_the_predictors_auc():
    observations = make_observations(n=300, planted=Head(1, 0))
    train, test = split_by_file(observations, 0.4, seed=0)
    ranking = rank_by_predictor(train, test, features="clusters", clusters=PCA)
    assert ranking.top(1) == (Head(1, 0),)
    assert ranking.model.name == "planted"
    assert ranking.metadata["features"] == "clusters"
    assert ranking.metadata["classifier"] == "boosting"
    assert ranking.metadata["auc"][1] > 0.7  # even the interval's lower end
    low, high = ranking.metadata["confidence_auc"][1:]
    assert low < 0.5 < high
    assert (ranking.metadata["n_train"], ranking.metadata["n_test"]) == (len(train), len(test))


def test_scenarios_fitted_on_cannot_be_ranked_on():
    observations = make_observations(n=90)
    train, test = observations.select(range(46)), observations.select(range(46, 90))
    with pytest.raises(ValueError, match=r"1 source files are in both .* 'File15\.java'"):
        rank_by_predictor(train, test, features="embeddings")  # file 15 is cut in two


def test_a_test_side_with_one_outcome_is_a_clear_error():
    train = make_observations(n=60)
    test = make_observations(n=20, seed=1)
    test.table["file"] += "2"
    with pytest.raises(ValueError, match="got 20 correct and 0 incorrect"):
        rank_by_predictor(train, test.with_outcomes(True), features="embeddings")


def test_importing_scoring_is_cheap():
    import subprocess
    import sys

    code = (
        "import sys, aplens.correctness; "
        "print([m for m in ('shap', 'umap', 'sklearn', 'transformer_lens', 'timm') "
        "if m in sys.modules])"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert output.strip() == "[]"


def test_ranking_is_the_same_for_the_same_seed():
    observations = make_observations(n=120, planted=Head(0, 0))
    train, test = split_by_file(observations, 0.4, seed=0)
    frames = [
        rank_by_predictor(train, test, features="clusters", clusters=PCA, seed=5).to_frame()
        for _ in range(2)
    ]
    assert frames[0].equals(frames[1])
    assert np.isfinite(frames[0][["importance", "mean"]].to_numpy()).all()
