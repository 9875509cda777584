"""Scoring heads: observations, clusters, the correctness predictor with its baselines, rankings."""

from aplens.scoring.attribution import HeadAttributions, attribute_heads
from aplens.scoring.clusters import HeadClusters
from aplens.scoring.distance import output_norms, pattern_distances
from aplens.scoring.evaluation import (
    cross_validate,
    evaluate_predictors,
    score_table,
)
from aplens.scoring.features import keep_for
from aplens.scoring.observations import HEAD_NUMBERS, Keep, Observations
from aplens.scoring.observing import Progress, describe_outcomes, observe
from aplens.scoring.predictor import DEFAULT_FEATURES, FEATURE_SETS, CorrectnessPredictor
from aplens.scoring.regions import REGIONS
from aplens.scoring.scorer import HeadScorer
from aplens.scoring.splits import assign_folds, split_by_file
from aplens.scoring.statistics import STATISTICS, pattern_statistics
from aplens.scoring.surprise import SURPRISES
from aplens.scoring.unsupervised import score_heads

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
    "HeadScorer",
    "Keep",
    "Observations",
    "Progress",
    "assign_folds",
    "attribute_heads",
    "cross_validate",
    "describe_outcomes",
    "evaluate_predictors",
    "keep_for",
    "observe",
    "output_norms",
    "pattern_distances",
    "pattern_statistics",
    "score_heads",
    "score_table",
    "split_by_file",
]
