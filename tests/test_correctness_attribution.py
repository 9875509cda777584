"""Attribution: SHAP values add up, the planted head comes first, with the right sign."""

from __future__ import annotations

import numpy as np
import pytest
from correctness_helpers import make_observations

import aplens.correctness.attribution as attribution
from aplens.correctness import CorrectnessPredictor, HeadClusters, attribute_heads, split_by_file
from aplens.heads import Head, ModelShape

PCA = HeadClusters("pca")


@pytest.mark.parametrize("classifier", ["boosting", "logistic"])
@pytest.mark.parametrize(
    "features",
    ["clusters", "embeddings", "statistics", "embeddings+confidence", "task", "majority"],
)
def test_values_add_up_to_the_margin(features, classifier):
    observations = make_observations(n=160, planted=Head(1, 2), confidence=0.2)
    train, test = split_by_file(observations, 0.4, seed=0)
    predictor = CorrectnessPredictor(features, classifier=classifier, clusters=PCA).fit(train)
    found = attribute_heads(predictor, test)
    assert found.values.shape == (len(test), 6)
    total = found.values.sum(axis=1) + found.others + found.expected_value
    np.testing.assert_allclose(total, predictor.decision_function(test), atol=1e-8)
    if "embeddings" not in features and features not in ("clusters", "statistics"):
        assert (found.values == 0).all()  # nothing here is about a head


@pytest.mark.parametrize("features", ["clusters", "embeddings"])
@pytest.mark.parametrize("planted", [Head(0, 1), Head(1, 2)])
def test_the_planted_head_ranks_first_and_pushes_the_right_way(features, planted):
    observations = make_observations(n=300, planted=planted)
    train, test = split_by_file(observations, 0.4, seed=0)
    predictor = CorrectnessPredictor(features, clusters=PCA).fit(train)
    found = attribute_heads(predictor, test)
    ranking = found.to_ranking()
    assert ranking.top(1) == (planted,)
    # Its second kind of pattern means incorrect: positive there, negative for the first kind.
    index = test.heads.index(planted)
    second_kind = test.embeddings[:, index, 0] > 0.5
    assert found.values[second_kind, index].min() > 0 > found.values[~second_kind, index].max()


def test_the_ranking_sums_up_the_values():
    heads = (Head(0, 0), Head(0, 1))
    values = np.array([[1.0, -2.0], [-3.0, -2.0], [0.5, 0.0], [0.5, 1.0]])
    found = attribution.HeadAttributions(heads, values, np.zeros(4), 0.0, ModelShape("m", 1, 2))
    frame = found.to_ranking().to_frame()
    assert frame.loc["L0H0"].to_dict() == {
        "layer": 0,
        "head": 0,
        "importance": 5 / 4,
        "mean": -1 / 4,
        "toward_incorrect": 2 / 4,
        "toward_correct": 3 / 4,
    }
    assert list(frame.index) == ["L0H0", "L0H1"]
    assert frame.loc["L0H1", "toward_correct"] == 1.0


def test_values_that_do_not_add_up_are_refused(monkeypatch):
    observations = make_observations(n=80, planted=Head(0, 0))
    predictor = CorrectnessPredictor("clusters", clusters=PCA).fit(observations)
    right = attribution._explain

    def wrong(model, columns):
        values, expected = right(model, columns)
        return values, expected + 0.1

    monkeypatch.setattr(attribution, "_explain", wrong)
    with pytest.raises(RuntimeError, match=r"miss the predictor's margin by 0\.1"):
        attribute_heads(predictor, observations)


def test_shap_still_misreads_categorical_splits():
    """Why clusters are columns of 0 and 1. When this fails, shap has learned: simplify."""
    import shap
    from sklearn.ensemble import HistGradientBoostingClassifier

    rng = np.random.default_rng(0)
    categories = rng.integers(0, 5, (300, 4))
    outcome = np.isin(categories[:, 0], [1, 3])
    model = HistGradientBoostingClassifier(categorical_features=[0, 1, 2, 3]).fit(
        categories, outcome
    )
    explainer = shap.TreeExplainer(model)
    total = explainer.shap_values(categories).sum(axis=1) + explainer.expected_value
    assert np.abs(total - model.decision_function(categories)).max() > 1
