"""Predictors: what decides correctness is found, what says nothing predicts the base rate."""

from __future__ import annotations

import numpy as np
import pytest
from correctness_helpers import make_observations
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from aplens.correctness import (
    FEATURE_SETS,
    CorrectnessPredictor,
    HeadClusters,
)
from aplens.correctness.logistic import fit_logistic
from aplens.heads import Head

PCA = HeadClusters("pca")


def fit_and_score(features, observations, **settings):
    """AUC on the second half."""
    half = len(observations) // 2
    train, test = observations.select(range(half)), observations.select(range(half, 2 * half))
    predictor = CorrectnessPredictor(features, clusters=PCA, **settings).fit(train)
    probability = predictor.predict_proba(test)
    assert probability.shape == (len(test), 2)
    np.testing.assert_allclose(probability.sum(axis=1), 1)
    return roc_auc_score(~test.table["correct"], probability[:, 1])


@pytest.mark.parametrize("classifier", ["boosting", "logistic"])
@pytest.mark.parametrize("features", ["clusters", "embeddings", "statistics"])
def test_a_head_that_decides_correctness_is_used(features, classifier):
    observations = make_observations(n=400, planted=Head(1, 0))
    floor = 0.6 if features == "statistics" else 0.8  # there the head's sign is one number in 48
    assert fit_and_score(features, observations, classifier=classifier) > floor


def test_confidence_and_sums_of_features():
    observations = make_observations(n=400, planted=Head(0, 1), confidence=0.3)
    alone = fit_and_score("confidence", observations)
    assert alone > 0.75
    assert fit_and_score("embeddings+confidence", observations) > alone


def test_a_few_columns_are_not_drowned_by_many():
    # 6 heads x 8 directions of noise beside two columns that say everything.
    observations = make_observations(n=300, confidence=0.9)
    assert fit_and_score("embeddings+confidence", observations) > 0.9


def test_majority_knows_how_often_the_model_is_wrong():
    observations = make_observations(n=200)
    predictor = CorrectnessPredictor("majority").fit(observations)
    expected = (~observations.table["correct"]).mean()
    np.testing.assert_allclose(predictor.predict_proba(observations)[:, 1], expected, atol=1e-4)


def test_the_task_alone_gives_each_task_its_rate():
    observations = make_observations(n=400)
    easy = observations.table["task"] == "eol"
    rng = np.random.default_rng(0)
    observations = observations.with_outcomes(rng.random(400) < np.where(easy, 0.9, 0.3))
    probability = CorrectnessPredictor("task").fit(observations).predict_proba(observations)[:, 1]
    for task in ("eol", "identifiers"):
        chosen = observations.table["task"] == task
        wrong = (~observations.table["correct"][chosen]).mean()
        assert probability[chosen] == pytest.approx(wrong, abs=0.06)
    assert set(CorrectnessPredictor.classes_) == {"correct", "incorrect"}


def test_a_new_task_and_a_new_cluster_are_no_error():
    observations = make_observations(n=120, planted=Head(0, 0))
    others = make_observations(n=20, seed=5, clumps=False)
    others.table["task"] = "something new"
    for features in ("task", "clusters+task"):
        predictor = CorrectnessPredictor(features, clusters=PCA).fit(observations)
        assert np.isfinite(predictor.predict_proba(others)).all()


def test_heads_that_never_vary_leave_the_base_rate():
    observations = make_observations(n=80)
    observations.embeddings[:] = 0.5
    for features in ("clusters", "embeddings"):
        predictor = CorrectnessPredictor(features, clusters=PCA).fit(observations)
        probability = predictor.predict_proba(observations)[:, 1]
        expected = (~observations.table["correct"]).mean()
        np.testing.assert_allclose(probability, expected, atol=1e-3)


@pytest.mark.parametrize("features", FEATURE_SETS)
def test_same_seed_same_prediction_and_fitting_changes_nothing_given(features):
    observations = make_observations(n=100, planted=Head(0, 0), seed=2)
    before = observations.table.copy(), observations.embeddings.copy()
    predictors = [CorrectnessPredictor(features, clusters=PCA, seed=4) for _ in range(2)]
    first, again = (p.fit(observations).predict_proba(observations) for p in predictors)
    assert (first == again).all()
    assert before[0].equals(observations.table)
    assert (before[1] == observations.embeddings).all()
    assert not hasattr(PCA, "labels_")  # settings are copied, not fitted


def test_wrong_settings_and_input_are_refused():
    with pytest.raises(ValueError, match=r"features must be one of .* got 'cluster'"):
        CorrectnessPredictor("cluster")
    with pytest.raises(ValueError, match="classifier must be one of"):
        CorrectnessPredictor(classifier="forest")
    observations = make_observations(n=40)
    with pytest.raises(ValueError, match="got 40 correct and 0 incorrect"):
        CorrectnessPredictor("task").fit(observations.with_outcomes(True))
    observations.table.loc[3, "entropy"] = np.nan
    with pytest.raises(ValueError, match="'confidence' contain NaN"):
        CorrectnessPredictor("confidence").fit(observations)
    with pytest.raises(ValueError, match="'statistics' in keep"):
        CorrectnessPredictor("statistics").fit(make_observations(n=40, statistics=False))


@pytest.mark.parametrize(("n", "n_columns"), [(60, 5), (30, 80)])
def test_logistic_on_rotated_axes_is_logistic_regression(n, n_columns):
    rng = np.random.default_rng(0)
    columns = rng.normal(size=(n, n_columns)) * rng.uniform(0.1, 9, n_columns) + 3
    positive = columns[:, 0] + rng.normal(size=n) > 3
    files = [f"f{i // 2}" for i in range(n)]
    model = fit_logistic(columns, positive, files, [n_columns], seed=0)
    scaled = (columns - columns.mean(0)) / columns.std(0) / np.sqrt(n_columns)
    expected = LogisticRegression(C=model.inverse_penalty, max_iter=5000, tol=1e-8).fit(
        scaled, positive
    )
    np.testing.assert_allclose(
        model.decision_function(columns), expected.decision_function(scaled), atol=5e-3
    )


def test_the_penalty_follows_the_signal():
    rng = np.random.default_rng(0)
    columns = rng.normal(size=(300, 20))
    files = [str(i) for i in range(300)]
    clear = fit_logistic(columns, columns[:, :5].sum(1) > 0, files, [20], seed=0)
    nothing = fit_logistic(columns, rng.random(300) < 0.5, files, [20], seed=0)
    assert clear.inverse_penalty > nothing.inverse_penalty
