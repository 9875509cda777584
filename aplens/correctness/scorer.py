"""The road from a hooked model to ranked heads."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from aplens._progress import Progress
from aplens.correctness.attribution import HeadAttributions, attribute_heads
from aplens.correctness.clusters import HeadClusters
from aplens.correctness.evaluation import evaluate_predictors
from aplens.correctness.features import keep_for
from aplens.correctness.observations import Keep, Observations, incorrect_labels
from aplens.correctness.observing import observe
from aplens.correctness.predictor import DEFAULT_FEATURES, CorrectnessPredictor
from aplens.correctness.splits import require_disjoint_files
from aplens.heads import HeadRanking
from aplens.intervals import FileBootstrap

if TYPE_CHECKING:
    import pandas as pd

    from aplens.mae import APMAE
    from aplens.scenarios import Scenarios


class HeadScorer:
    """Ranks heads by what their patterns say about correctness (docs/method.md, steps 8 to 10).

    Args:
        mae: The AP-MAE that encodes patterns.
        features: What the predictor looks at, as `CorrectnessPredictor` takes it.
        clusters: As `CorrectnessPredictor` takes it.
        seed: Decides the predictor's random choices, and the resamples.

    Attributes:
        predictor_: The fitted predictor.
        confidence_: The baseline, fitted on the same scenarios: the model's own confidence.

    Example:
        >>> scorer = HeadScorer(mae)
        >>> train, test = split_by_file(scorer.observe(model, scenarios), 0.4, seed=0)
        >>> ranking = scorer.fit(train).rank(test)
    """

    def __init__(
        self,
        mae: APMAE,
        *,
        features: str = DEFAULT_FEATURES,
        clusters: HeadClusters | None = None,
        seed: int = 0,
    ) -> None:
        self.mae = mae
        self.features = features
        self.seed = seed
        self._clusters = clusters
        self._new_predictor(features)  # refuses wrong settings before any work is done

    def __repr__(self) -> str:
        state = "fitted" if hasattr(self, "predictor_") else "not fitted"
        return f"HeadScorer({self.features!r}, {state})"

    def observe(
        self,
        model: Any,
        scenarios: Scenarios,
        folder: str | os.PathLike[str] | None = None,
        *,
        batch_size: int = 8,
        keep: Sequence[Keep] | None = None,
        progress: bool | Progress = True,
    ) -> Observations:
        """Run the model on scenarios and encode its heads' patterns; see `observe`.

        Args:
            model: A HookedTransformer or TransformerBridge.
            scenarios: Prompts of one length with their targets.
            folder: Where observations are kept, so that an interrupted run goes on. None keeps them
                in memory only.
            batch_size: Prompts a forward pass.
            keep: Which numbers to keep of each pattern, such as "surprise" (default: "statistics"
                and what the features need).
            progress: A bar (the default), nothing (False), or a function called with (scenarios
                done, scenarios in all).
        """
        keep = sorted({"statistics", *keep_for(self.features)}) if keep is None else keep
        return observe(
            model, scenarios, self.mae, folder, batch_size=batch_size, keep=keep, progress=progress
        )

    def fit(self, observations: Observations) -> HeadScorer:
        """Fit the predictor, and the confidence baseline, on training observations.

        Raises:
            ValueError: When there is only one outcome, or too few scenarios to cluster.
        """
        self.predictor_ = self._new_predictor(self.features).fit(observations)
        self.confidence_ = CorrectnessPredictor("confidence", seed=self.seed).fit(observations)
        self._train_files = observations.files
        return self

    def attribute(self, observations: Observations) -> HeadAttributions:
        """SHAP value of every head on every held-out scenario.

        Raises:
            ValueError: When a source file was fitted on, or `fit` was not called.
        """
        self._require_held_out(observations)
        return attribute_heads(self.predictor_, observations)

    def rank(self, observations: Observations) -> HeadRanking:
        """Rank heads by their SHAP values on held-out scenarios.

        The ranking's metadata says how good the predictor is on them, beside the model's own
        confidence: a predictor that ranks correctness no better than chance ranks heads by noise.

        Raises:
            ValueError: When a source file was fitted on, there is only one outcome, or `fit` was
                not called.
        """
        ranking = self.attribute(observations).to_ranking()
        incorrect = incorrect_labels(observations)
        bootstrap = FileBootstrap(observations.files, seed=self.seed)

        def auc(predictor: CorrectnessPredictor) -> list[float]:
            return list(bootstrap.auc(predictor.decision_function(observations), incorrect))

        ranking.metadata |= {
            "features": self.features,
            "classifier": self.predictor_.classifier,
            "positive_class": "incorrect",
            "n_train": len(self._train_files),
            "n_test": len(observations),
            "auc": auc(self.predictor_),
            "confidence_auc": auc(self.confidence_),
            "seed": self.seed,
        }
        return ranking

    def evaluate(self, observations: Observations, **options: Any) -> pd.DataFrame:
        """Cross-validate feature sets, with this scorer's seed and clusters.

        Args:
            observations: What to predict.
            options: Keywords of `evaluate_predictors`, such as `features`, `n_folds`, `by_task`.
        """
        return evaluate_predictors(observations, seed=self.seed, clusters=self._clusters, **options)

    def _new_predictor(self, features: str) -> CorrectnessPredictor:
        return CorrectnessPredictor(features, clusters=self._clusters, seed=self.seed)

    def _require_held_out(self, observations: Observations) -> None:
        if not hasattr(self, "predictor_"):
            raise ValueError("this HeadScorer is not fitted: call fit(observations) first")
        require_disjoint_files(self._train_files, observations.files)
