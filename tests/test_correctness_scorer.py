"""The whole road: hooked model, scenarios, ranking."""

from __future__ import annotations

import numpy as np
import pytest
from correctness_helpers import make_mae, make_observations, make_scenarios

from aplens.correctness import HeadClusters, HeadScorer, split_by_file
from aplens.heads import Head

PCA = HeadClusters("pca")


def test_no_folder_leaves_no_files(any_model, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    observations = HeadScorer(make_mae()).observe(any_model, make_scenarios(5))
    assert list(tmp_path.iterdir()) == []
    assert observations.embeddings.shape[:2] == (5, 12)


def test_what_the_features_need_is_kept(any_model):
    observed = HeadScorer(make_mae(), features="surprise+confidence").observe(
        any_model, make_scenarios(5)
    )
    assert observed.numbers("surprise").shape == (5, 12, 4)
    assert observed.numbers("statistics").shape == (5, 12, 8)


def test_a_planted_head_is_ranked_first_with_the_predictors_auc():
    observations = make_observations(n=300, planted=Head(1, 0))
    train, test = split_by_file(observations, 0.4, seed=0)
    scorer = HeadScorer(make_mae(), features="clusters", clusters=PCA).fit(train)
    ranking = scorer.rank(test)
    assert ranking.top(1) == (Head(1, 0),)
    assert ranking.model.name == "planted"
    assert ranking.metadata["features"] == "clusters"
    assert ranking.metadata["classifier"] == "boosting"
    assert ranking.metadata["auc"][1] > 0.7  # even the interval's lower end
    low, high = ranking.metadata["confidence_auc"][1:]
    assert low < 0.5 < high
    assert (ranking.metadata["n_train"], ranking.metadata["n_test"]) == (len(train), len(test))


def test_evaluate_uses_the_scorers_settings():
    observations = make_observations(n=120, planted=Head(0, 0))
    table = HeadScorer(make_mae(), features="clusters", clusters=PCA).evaluate(
        observations, features=["majority", "clusters"], n_folds=3
    )
    assert list(table["features"]) == ["majority", "clusters"]
    assert table["auc"].iloc[1] > 0.75


def test_scenarios_fitted_on_cannot_be_ranked_on():
    observations = make_observations(n=90)
    scorer = HeadScorer(make_mae(), features="embeddings")
    with pytest.raises(ValueError, match=r"not fitted: call fit\(observations\) first"):
        scorer.rank(observations)
    scorer.fit(observations.select(range(46)))  # file 15 is cut in two
    with pytest.raises(ValueError, match=r"1 source files are in both .* 'File15\.java'"):
        scorer.rank(observations.select(range(46, 90)))


def test_a_test_side_with_one_outcome_is_a_clear_error():
    train = make_observations(n=60)
    test = make_observations(n=20, seed=1)
    test.table["file"] += "2"
    scorer = HeadScorer(make_mae(), features="embeddings").fit(train)
    with pytest.raises(ValueError, match="got 20 correct and 0 incorrect"):
        scorer.rank(test.with_outcomes(True))


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
        HeadScorer(make_mae(), features="clusters", clusters=PCA, seed=5)
        .fit(train)
        .rank(test)
        .to_frame()
        for _ in range(2)
    ]
    assert frames[0].equals(frames[1])
    assert np.isfinite(frames[0][["importance", "mean"]].to_numpy()).all()
