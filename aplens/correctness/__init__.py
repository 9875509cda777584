"""Whether the model will be right: observations, predictors beside their baselines, SHAP."""

from aplens.correctness.attribution import HeadAttributions, attribute_heads, rank_by_predictor
from aplens.correctness.clusters import HeadClusters
from aplens.correctness.evaluation import (
    cross_validate,
    evaluate_predictors,
    score_table,
)
from aplens.correctness.features import keep_for
from aplens.correctness.observations import HEAD_NUMBERS, Keep, Observations
from aplens.correctness.observing import describe_outcomes, observe
from aplens.correctness.predictor import DEFAULT_FEATURES, FEATURE_SETS, CorrectnessPredictor
from aplens.correctness.regions import REGIONS
from aplens.correctness.splits import assign_folds, split_by_file
from aplens.correctness.statistics import STATISTICS, pattern_statistics
from aplens.correctness.surprise import SURPRISES

__all__ = [
    "DEFAULT_FEATURES",
    "FEATURE_SETS",
    "HEAD_NUMBERS",
    "REGIONS",
    "STATISTICS",
    "SURPRISES",
    "CorrectnessPredictor",
    "HeadAttributions",
    "HeadClusters",
    "Keep",
    "Observations",
    "assign_folds",
    "attribute_heads",
    "cross_validate",
    "describe_outcomes",
    "evaluate_predictors",
    "keep_for",
    "observe",
    "pattern_statistics",
    "rank_by_predictor",
    "score_table",
    "split_by_file",
]
