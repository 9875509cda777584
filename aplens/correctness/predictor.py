"""Predicting, from how the heads look, whether the model's prediction is correct."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Bool, Float, Int

from aplens._documents import require_choice
from aplens.correctness.clusters import HeadClusters
from aplens.correctness.features import make_features
from aplens.correctness.logistic import fit_logistic
from aplens.correctness.observations import Observations, incorrect_labels

#: Both have exact SHAP values, so that heads can be ranked by them.
Classifier = Literal["boosting", "logistic"]

#: What tells most of errors: how the last query departs from what AP-MAE expects, as a whole and by
#: region, with the model's own confidence (docs/results/study.md).
DEFAULT_FEATURES = "surprise+unexpected+confidence"

#: The baselines, surprise alone and with the confidence, and the paper's clusters.
FEATURE_SETS = (
    "majority",
    "task",
    "confidence",
    "statistics",
    "surprise+unexpected",
    DEFAULT_FEATURES,
    "clusters",
)

#: Fewer scenarios than this are fitted, and described, in one thread.
_SMALL = 5000


class CorrectnessPredictor:
    """Predicts whether the model's next token is wrong (docs/method.md, step 9).

    *Incorrect* is the positive class, as in the paper: margins are its log-odds, and positive SHAP
    values push toward it.

    Args:
        features: "surprise" (how the last query departs from what AP-MAE expects, 4 numbers a
            head), "unexpected" (the same by region of the prompt, 6 numbers), "confidence" (the
            model's own), "clusters" (the paper: the category of each head's pattern), "embeddings"
            (8 directions a head), "statistics" and "regions" (8 and 6 hand-made numbers a head),
            "task", "majority" (nothing), or several joined by "+".
        classifier: "boosting": gradient-boosted trees, as the paper; the default for clusters.
            "logistic": linear, its L2 penalty chosen by cross-validation over source files; the
            default for everything else.
        clusters: The settings of "clusters".
        seed: Of the trees and of the inner folds.

    Attributes:
        classes_: What the columns of `predict_proba` stand for.

    Raises:
        ValueError: When `features` or `classifier` is unknown.
    """

    classes_ = ("correct", "incorrect")

    def __init__(
        self,
        features: str = DEFAULT_FEATURES,
        *,
        classifier: Classifier | None = None,
        clusters: HeadClusters | None = None,
        seed: int = 0,
    ) -> None:
        if classifier is not None:
            require_choice("classifier", classifier, get_args(Classifier))
        self.features = features
        self.classifier = classifier or ("boosting" if features == "clusters" else "logistic")
        self.seed = seed
        self._blocks = make_features(features, clusters or HeadClusters(seed=seed))

    def __repr__(self) -> str:
        state = "fitted" if hasattr(self, "model_") else "not fitted"
        return f"CorrectnessPredictor({self.features!r}, {self.classifier}, {state})"

    def fit(self, observations: Observations) -> CorrectnessPredictor:
        """Fit on training observations; what the features need is fitted on them too.

        Raises:
            ValueError: When there is only one outcome, or a feature is not finite.
        """
        incorrect = incorrect_labels(observations)
        with _few_threads(observations):
            parts = [block.fit_transform(observations) for block in self._blocks]
            columns = self._join(parts)
            #: Which head each column describes, -1 for none.
            self.column_heads_: Int[np.ndarray, " column"] = np.concatenate(
                [[-1], *(block.column_heads for block in self._blocks)]
            ).astype(int)
            widths = [1, *(part.shape[1] for part in parts)]
            self.model_: Any = self._fit_model(columns, incorrect, observations.files, widths)
        return self

    def _fit_model(
        self,
        columns: Float[np.ndarray, "scenario column"],
        incorrect: Bool[np.ndarray, " scenario"],
        files: Sequence[str],
        widths: Sequence[int],
    ) -> Any:
        if self.classifier == "boosting":
            return _fit_boosting(columns, incorrect, self.seed)
        return fit_logistic(columns, incorrect, files, widths, self.seed)

    def columns(self, observations: Observations) -> Float[np.ndarray, "scenario column"]:
        """The features as the fitted model reads them."""
        with _few_threads(observations):
            return self._join([block.transform(observations) for block in self._blocks])

    def decision_function(self, observations: Observations) -> Float[np.ndarray, " scenario"]:
        """Log-odds of *incorrect*."""
        return self.model_.decision_function(self.columns(observations))

    def predict_proba(self, observations: Observations) -> Float[np.ndarray, "scenario 2"]:
        """Probabilities of *correct* and *incorrect*."""
        incorrect = 1 / (1 + np.exp(-self.decision_function(observations)))
        return np.stack([1 - incorrect, incorrect], axis=1)

    def _join(
        self, parts: list[Float[np.ndarray, "scenario column"]]
    ) -> Float[np.ndarray, "scenario column"]:
        # The constant column leaves features that say nothing a model to fit: its intercept.
        columns = np.concatenate([np.zeros((len(parts[0]), 1)), *parts], axis=1)
        if not np.isfinite(columns).all():
            raise ValueError(f"features {self.features!r} contain NaN or infinity")
        return columns


def _few_threads(observations: Observations) -> AbstractContextManager[Any]:
    """One thread for few scenarios: on problems this small, threads wait longer than they work."""
    from threadpoolctl import threadpool_limits

    return threadpool_limits(1 if len(observations) < _SMALL else None)


def _fit_boosting(
    columns: Float[np.ndarray, "scenario column"],
    incorrect: Bool[np.ndarray, " scenario"],
    seed: int,
) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier

    # Shallow trees on a tenth of the columns each: hundreds of scenarios against a thousand columns
    # otherwise let one lucky head hide all others. Two bins are all that 0 and 1 need.
    return HistGradientBoostingClassifier(
        learning_rate=0.05,
        max_iter=100,
        max_depth=3,
        max_features=0.1,
        max_bins=2 if ((columns == 0) | (columns == 1)).all() else 64,
        early_stopping=False,
        random_state=seed,
    ).fit(columns, incorrect)
