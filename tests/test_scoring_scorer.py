"""The whole road: hooked model, scenarios, ranking."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scoring_helpers import make_mae, make_observations, make_scenarios, with_labels

from aplens.heads import Head, HeadRanking
from aplens.scenarios import Scenarios
from aplens.scoring import HeadClusters, HeadScorer, rank_heads, split_by_file

PCA = HeadClusters("pca")


def half_correct(model, n=60):
    """Scenarios on which the model is right every other time."""
    scenarios = make_scenarios(n)
    with torch.no_grad():
        predicted = model(scenarios.tokens())[:, -1].argmax(-1).tolist()
    return Scenarios(
        replace(scenario, target=token + i % 2)
        for i, (scenario, token) in enumerate(zip(scenarios, predicted, strict=True))
    )


def test_rank_heads_of_a_model(tiny_model):
    seen = []
    scenarios = half_correct(tiny_model)
    ranking = rank_heads(
        tiny_model,
        scenarios,
        mae=make_mae(),
        features="embeddings",
        progress=lambda done, total: seen.append((done, total)),
    )
    assert len(ranking) == 12
    assert set(ranking) == {Head(layer, head) for layer in range(3) for head in range(4)}
    assert seen[-1] == (60, 60)
    facts = ranking.metadata
    assert facts["n_train"] + facts["n_test"] == 60
    assert facts["positive_class"] == "incorrect"
    for name in ("auc", "confidence_auc"):
        value, low, high = facts[name]
        assert low <= value <= high


def test_a_folder_keeps_the_observations_and_gives_the_same_ranking(tiny_hooked, tmp_path):
    scenarios = half_correct(tiny_hooked)
    settings = {"mae": make_mae(), "features": "embeddings", "seed": 3}
    kept = rank_heads(tiny_hooked, scenarios, folder=tmp_path / "kept", **settings)
    assert (tmp_path / "kept" / "manifest.json").is_file()
    assert kept.to_frame().equals(rank_heads(tiny_hooked, scenarios, **settings).to_frame())
    kept.save(tmp_path / "ranking.json")
    assert HeadRanking.load(tmp_path / "ranking.json").metadata == kept.metadata


def test_no_folder_leaves_no_files(tiny_hooked, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    observations = HeadScorer(make_mae()).observe(tiny_hooked, make_scenarios(5))
    assert list(tmp_path.iterdir()) == []
    assert observations.embeddings.shape[:2] == (5, 12)


def test_a_planted_head_is_ranked_first_with_the_predictors_auc():
    observations = make_observations(n=300, planted=Head(1, 0))
    train, test = split_by_file(observations, 0.4, seed=0)
    scorer = HeadScorer(make_mae(), clusters=PCA).fit(train)
    ranking = scorer.rank(test)
    assert ranking.top(1) == (Head(1, 0),)
    assert ranking.model_name == "planted"
    assert ranking.metadata["features"] == "clusters"
    assert ranking.metadata["classifier"] == "boosting"
    assert ranking.metadata["auc"][1] > 0.7  # even the interval's lower end
    low, high = ranking.metadata["confidence_auc"][1:]
    assert low < 0.5 < high
    assert (ranking.metadata["n_train"], ranking.metadata["n_test"]) == (len(train), len(test))


def test_evaluate_uses_the_scorers_settings():
    observations = make_observations(n=120, planted=Head(0, 0))
    table = HeadScorer(make_mae(), clusters=PCA).evaluate(
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


def test_bad_input_is_refused_before_the_model_runs(tiny_hooked):
    def never(*args):
        raise AssertionError("the model ran")

    mae = make_mae()
    calls = [
        (make_scenarios(39), {}, "needs 40 scenarios or more .* got 39"),
        (make_scenarios(50, per_file=50), {}, "2 files or more, got 1"),
        (make_scenarios(50), {"test_fraction": 0}, "test_fraction must be between 0 and 1, got 0"),
        (make_scenarios(50), {"features": "cluster"}, "features must be one of"),
    ]
    for scenarios, settings, message in calls:
        with pytest.raises(ValueError, match=message):
            rank_heads(tiny_hooked, scenarios, mae=mae, progress=never, **settings)


def test_a_model_that_is_always_wrong_is_a_clear_error(tiny_hooked):
    with torch.no_grad():
        predicted = tiny_hooked(make_scenarios(50).tokens())[:, -1].argmax(-1).tolist()
    wrong = Scenarios(
        replace(scenario, target=(token + 1) % 101)
        for scenario, token in zip(make_scenarios(50), predicted, strict=True)
    )
    with pytest.raises(ValueError, match="got 0 correct and"):
        rank_heads(tiny_hooked, wrong, mae=make_mae(), features="embeddings")


def test_a_test_side_with_one_outcome_is_a_clear_error():
    train = make_observations(n=60)
    test = make_observations(n=20, seed=1)
    test.table["file"] += "2"
    scorer = HeadScorer(make_mae(), features="embeddings").fit(train)
    with pytest.raises(ValueError, match="got 20 correct and 0 incorrect"):
        scorer.rank(with_labels(test, True))


def test_importing_scoring_is_cheap():
    import subprocess
    import sys

    code = (
        "import sys, aplens.scoring; "
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
        HeadScorer(make_mae(), clusters=PCA, seed=5).fit(train).rank(test).to_frame()
        for _ in range(2)
    ]
    assert frames[0].equals(frames[1])
    assert np.isfinite(frames[0][["importance", "mean"]].to_numpy()).all()


@pytest.mark.real
def test_rank_heads_of_smollm2(smollm2_hooked):
    ranking = rank_heads(
        smollm2_hooked, half_correct(smollm2_hooked, n=40), mae=make_mae(), features="embeddings"
    )
    assert len(ranking) == 270
    assert ranking.model_name == "smollm2-135m"
    assert ranking.to_frame()["importance"].gt(0).all()
