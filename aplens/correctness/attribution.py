"""What each head contributes to a prediction of correctness, its SHAP value, and ranks by it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from aplens.correctness.clusters import HeadClusters
from aplens.correctness.logistic import LogisticModel
from aplens.correctness.observations import Observations, incorrect_labels
from aplens.correctness.predictor import DEFAULT_FEATURES, CorrectnessPredictor
from aplens.correctness.splits import require_disjoint_files
from aplens.heads import Head, HeadRanking, ModelShape
from aplens.intervals import FileBootstrap
from aplens.tables import Shown

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, repr=False)
class HeadAttributions(Shown):
    """SHAP values in the predictor's log-odds of *incorrect* (docs/method.md, step 10).

    On every scenario `values.sum(1) + others + expected_value` is the predictor's margin.

    Attributes:
        heads: The heads.
        values: `Float[ndarray, "scenario head"]`; positive pushes toward *incorrect*.
        others: `Float[ndarray, "scenario"]`, what features of no head contribute.
        expected_value: The margin when nothing is known of a scenario.
        model: The model that the heads are of.
    """

    heads: tuple[Head, ...]
    values: Float[np.ndarray, "scenario head"]
    others: Float[np.ndarray, " scenario"]
    expected_value: float
    model: ModelShape

    def __repr__(self) -> str:
        n_scenarios, n_heads = self.values.shape
        return f"HeadAttributions({n_scenarios} scenarios × {n_heads} heads of {self.model.name})"

    def _shown_rows(self) -> pd.DataFrame:
        return self.to_ranking()._shown_rows()

    def to_frame(self) -> pd.DataFrame:
        """One row a head, those that say most of errors first; see `HeadRanking`."""
        return self.to_ranking().to_frame()

    def to_ranking(self) -> HeadRanking:
        """Summarize over scenarios, head by head."""
        return HeadRanking.from_values(self.heads, self.values.T, self.model)


def rank_by_predictor(
    train: Observations,
    test: Observations,
    *,
    features: str = DEFAULT_FEATURES,
    clusters: HeadClusters | None = None,
    seed: int = 0,
) -> HeadRanking:
    """Rank heads by what their patterns say about correctness (docs/method.md, steps 8 to 10).

    A predictor is fitted on training observations; heads are ranked by their SHAP values on others.
    The ranking's metadata says how good the predictor is on these, beside the model's own
    confidence: a predictor that ranks correctness no better than chance ranks heads by noise.

    Args:
        train: What is fitted on.
        test: What is ranked on, of other source files.
        features: What the predictor looks at, as `CorrectnessPredictor` takes it.
        clusters: As `CorrectnessPredictor` takes it.
        seed: Of the predictors, and of the resamples.

    Raises:
        ValueError: When a source file is on both sides, a side has only one outcome, there are too
            few scenarios to cluster, or a feature is not there or not finite.

    Example:
        >>> train, test = split_by_file(observe(model, scenarios, mae), 0.4, seed=0)
        >>> ranking = rank_by_predictor(train, test, features="statistics")
    """
    require_disjoint_files(train.files, test.files)
    incorrect = incorrect_labels(test)
    predictor = CorrectnessPredictor(features, clusters=clusters, seed=seed).fit(train)
    confidence = CorrectnessPredictor("confidence", seed=seed).fit(train)
    bootstrap = FileBootstrap(test.files, seed=seed)

    def auc(of: CorrectnessPredictor) -> list[float]:
        return list(bootstrap.auc(of.decision_function(test), incorrect))

    ranking = attribute_heads(predictor, test).to_ranking()
    ranking.metadata |= {
        "features": features,
        "classifier": predictor.classifier,
        "positive_class": "incorrect",
        "n_train": len(train),
        "n_test": len(test),
        "auc": auc(predictor),
        "confidence_auc": auc(confidence),
        "seed": seed,
    }
    return ranking


def attribute_heads(
    predictor: CorrectnessPredictor, observations: Observations
) -> HeadAttributions:
    """SHAP value of every head on every scenario.

    A head's value is the sum over the columns that describe it, which are its categories or the
    directions of its embedding.

    Args:
        predictor: Fitted.
        observations: Scenarios the predictor was not fitted on.

    Raises:
        RuntimeError: When the installed shap misreads the trees, so that its values do not add up.
    """
    columns = predictor.columns(observations)
    values, expected = _explain(predictor.model_, columns)
    margin = predictor.model_.decision_function(columns)
    error = np.abs(values.sum(axis=1) + expected - margin).max()
    if error > 1e-6 * max(1.0, np.abs(margin).max()):
        # Checked here because shap does not: some scikit-learn trees it explains wrongly.
        raise RuntimeError(f"SHAP values miss the predictor's margin by {error:.3g} log-odds")
    by_head = np.zeros((len(observations), len(observations.heads)))
    of_head = predictor.column_heads_ >= 0
    np.add.at(by_head.T, predictor.column_heads_[of_head], values[:, of_head].T)
    return HeadAttributions(
        observations.heads,
        by_head,
        values[:, ~of_head].sum(axis=1),
        float(expected),
        observations.model,
    )


def _explain(
    model: Any, columns: Float[np.ndarray, "scenario column"]
) -> tuple[Float[np.ndarray, "scenario column"], float]:
    if isinstance(model, LogisticModel):
        # What shap.LinearExplainer computes: exact, with the training mean as background.
        return (columns - model.mean) * model.weights, model.intercept
    import shap

    explainer = shap.TreeExplainer(model)
    return explainer.shap_values(columns), float(np.ravel(explainer.expected_value)[0])
